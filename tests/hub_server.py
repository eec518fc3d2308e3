"""A small Hub on loopback: the HTTP protocol of the Hugging Face Hub as huggingface_hub uses it, without Xet.

    create, preupload, commit, LFS batch and upload, revisions, tree, refs, resolve, validate-yaml, whoami

Content is kept in memory. Large files are stored by their sha256 and served from another address, as on the Hub. Files
of private repositories and all writing need the token.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "loopbackLoopbackLoopback"
LARGE = (".safetensors", ".parquet", ".gz", ".png", ".bin")


def blob_id(content):
    """The id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """A repository: its commits, oldest first, each with all its files; and the tip of each branch."""

    private: bool = False
    commits: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)

    def commit(self, branch, files, message):
        text = json.dumps([branch, message, len(self.commits), sorted((n, blob_id(c)) for n, c in files.items())])
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def at(self, revision):
        """The hash and the files of a branch or commit; None where there is none."""
        oid = self.branches.get(revision, revision)
        return (oid, self.commits[oid]) if oid in self.commits else None


class Hub:
    """The repositories, by `(type, id)`, and what people do in the browser."""

    def __init__(self):
        self.repositories, self.stored, self.requests = {}, {}, []
        self.endpoint = ""

    def files(self, repo_id, repo_type="model", revision="main"):
        return self.repositories[repo_type, repo_id].at(revision)[1]

    def text(self, repo_id, name="README.md", repo_type="model"):
        return self.files(repo_id, repo_type)[name].decode()

    def revision(self, repo_id, repo_type="model"):
        return self.repositories[repo_type, repo_id].branches["main"]

    def edit(self, repo_id, text, repo_type="model"):
        """Write the card by hand."""
        self.write(repo_id, "README.md", text.encode(), repo_type)

    def write(self, repo_id, name, content, repo_type="model"):
        """Write a file by hand."""
        repository = self.repositories[repo_type, repo_id]
        repository.commit("main", {**self.files(repo_id, repo_type), name: content}, f"Update {name}")


class Refused(Exception):
    """An answer of the Hub that is an error."""

    def __init__(self, status, code, message, headers=()):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers)


class Answers(BaseHTTPRequestHandler):
    """Answer requests; the method of a request is the first of `ROUTES` whose pattern fits."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def answer(self):
        split = urlsplit(self.path)
        path, self.query = unquote(split.path), parse_qs(split.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.body = b"".join(self.chunks())
        self.hub.requests.append(f"{self.command} {path}")
        try:
            for methods, pattern, function in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in methods:
                    return function(self, **found.groupdict())
            raise Refused(404, "NotFound", f"no route for {self.command} {path}")
        except Refused as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error), **error.headers}
            return self.send({"error": str(error)}, error.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def send(self, content=b"", status=200, headers=()):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # -- who asks, and for what ---------------------------------------------------------------------------------------

    def demand_token(self):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "", "Invalid username or password.")

    def repository(self, kind, repo):
        repository = self.hub.repositories.get((kind or "model", repo))
        is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not is_known):
            raise Refused(404 if is_known else 401, "RepoNotFound", "Repository not found")
        return repository

    def state(self, kind, repo, revision):
        found = self.repository(kind, repo).at(revision or "main")
        if found is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    # -- the answers --------------------------------------------------------------------------------------------------

    def whoami(self):
        self.demand_token()
        self.send(
            {"type": "user", "name": "me", "fullname": "Me", "auth": {"accessToken": {"role": "write"}}, "orgs": []}
        )

    def create(self):
        self.demand_token()
        asked = json.loads(self.body)
        kind, repo = asked.get("type") or "model", f"{asked.get('organization') or 'me'}/{asked['name']}"
        place = {"model": "", "dataset": "datasets/"}[kind]
        answer = {"url": f"{self.hub.endpoint}/{place}{repo}", "name": repo, "id": repo}
        if (kind, repo) in self.hub.repositories:
            return self.send({"error": "You already created this repo", **answer}, 409)
        made = self.hub.repositories[kind, repo] = Repository(
            private=asked.get("visibility") == "private" or bool(asked.get("private"))
        )
        made.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return self.send(answer)

    def validate(self):
        asked = json.loads(self.body)
        content = asked["content"]
        errors = [] if content.startswith("---\n") else [{"message": "Metadata is missing"}]
        self.send({"errors": errors, "warnings": []}, 400 if errors else 200)

    def branch(self, kind, repo, name):
        self.demand_token()
        repository = self.repository(kind, repo)
        if name in repository.branches:
            raise Refused(409, "", "Reference already exists")
        repository.branches[name] = repository.branches["main"]
        self.send({})

    def preupload(self, kind, repo, revision):
        self.demand_token()
        _, files = self.state(kind, repo, revision)
        answers = []
        for each in json.loads(self.body)["files"]:
            assert len(base64.b64decode(each["sample"])) == min(each["size"], 512)
            there = files.get(each["path"])
            is_large = each["path"].endswith(LARGE)
            oid = None
            if there is not None:
                oid = hashlib.sha256(there).hexdigest() if is_large else blob_id(there)
            answers.append({
                "path": each["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": oid,
            })  # fmt: skip
        self.send({"files": answers})

    def lfs_batch(self, kind, repo):
        self.demand_token()
        self.repository(kind, repo)
        asked = json.loads(self.body)
        assert (asked["operation"], asked["hash_algo"], asked["transfers"][0]) == ("upload", "sha256", "basic")
        objects = []
        for each in asked["objects"]:
            links = {
                "upload": {"href": f"{self.hub.endpoint}/lfs/{each['oid']}"},
                "verify": {"href": f"{self.hub.endpoint}/lfs/{each['oid']}/verify"},
            }
            is_new = each["oid"] not in self.hub.stored
            objects.append({"oid": each["oid"], "size": each["size"], **({"actions": links} if is_new else {})})
        self.send({"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def lfs_upload(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "", "the content has another sha256")
        self.hub.stored[oid] = self.body
        self.send()

    def lfs_verify(self, oid):
        self.demand_token()
        assert json.loads(self.body) == {"oid": oid, "size": len(self.hub.stored[oid])}
        self.send()

    def commit(self, kind, repo, revision):
        self.demand_token()
        _, files = self.state(kind, repo, revision)
        files = dict(files)
        header, *rest = (json.loads(line) for line in self.body.splitlines())
        assert (self.headers["Content-Type"], header["key"]) == ("application/x-ndjson", "header")
        for line in rest:
            value, name = line["value"], line["value"]["path"]
            if line["key"] == "file":
                files[name] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.stored:
                    raise Refused(400, "", f"{name} was not uploaded")
                files[name] = self.hub.stored[value["oid"]]
            else:
                assert line["key"] == "deletedFile", line["key"]
                del files[name]
        oid = self.repository(kind, repo).commit(revision, files, header["value"]["summary"])
        place = {None: "", "model": "", "dataset": "datasets/"}[kind]
        url = f"{self.hub.endpoint}/{place}{repo}/commit/{oid}"
        self.send({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": "", "pullRequestUrl": None})

    def info(self, kind, repo, revision=None):
        oid, files = self.state(kind, repo, revision)
        self.send({
            "id": repo, "modelId": repo, "sha": oid, "private": self.repository(kind, repo).private, "tags": [],
            "downloads": 0, "likes": 0, "author": repo.split("/")[0], "lastModified": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": name} for name in sorted(files)],
        })  # fmt: skip

    def refs(self, kind, repo):
        tips = self.repository(kind, repo).branches
        branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in tips.items()]
        self.send({"branches": branches, "converts": [], "tags": [], "pullRequests": []})

    def entries(self, files, names):
        for name in names:
            entry = {"type": "file", "path": name, "size": len(files[name]), "oid": blob_id(files[name])}
            if name.endswith(LARGE):
                oid = hashlib.sha256(files[name]).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(files[name]), "pointerSize": 130}
            yield entry

    def tree(self, kind, repo, revision, folder=""):
        _, files = self.state(kind, repo, revision)
        prefix = f"{folder}/" if folder else ""
        inside = sorted(name for name in files if name.startswith(prefix))
        if folder and not inside:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist")
        folders = sorted({prefix + name[len(prefix) :].split("/")[0] for name in inside if "/" in name[len(prefix) :]})
        is_deep = self.query.get("recursive", [""])[0].lower() in ("1", "true")
        shown = inside if is_deep else [name for name in inside if "/" not in name[len(prefix) :]]
        entries = [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in folders]
        self.send([*entries, *self.entries(files, shown)])

    def paths_info(self, kind, repo, revision):
        _, files = self.state(kind, repo, revision)
        asked = parse_qs(self.body.decode())["paths"]
        folders = [name for name in asked if any(each.startswith(f"{name}/") for each in files)]
        entries = [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in folders]
        self.send([*entries, *self.entries(files, [name for name in asked if name in files])])

    def resolve(self, kind, repo, revision, name):
        oid, files = self.state(kind, repo, revision)
        if name not in files:
            raise Refused(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": oid})
        content = files[name]
        headers = {"X-Repo-Commit": oid}
        if name.endswith(LARGE):
            sha = hashlib.sha256(content).hexdigest()
            self.hub.stored[sha] = content
            headers |= {
                "X-Linked-Etag": f'"{sha}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{self.hub.endpoint.replace('127.0.0.1', 'localhost')}/cdn/{sha}",
            }
            return self.send(b"", 302, headers)
        return self.send_part(content, {**headers, "ETag": f'"{blob_id(content)}"'})

    def cdn(self, oid):
        self.send_part(self.hub.stored[oid], {"ETag": f'"{oid}"'})

    def send_part(self, content, headers):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.send(content, headers={**headers, "Accept-Ranges": "bytes"})
        start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        span = f"bytes {start}-{end}/{len(content)}"
        return self.send(content[start : end + 1], 206, {**headers, "Content-Range": span})


KIND = r"/api/(?P<kind>model|dataset)s/(?P<repo>[^/]+/[^/]+)"
PLACE = r"/(?:(?P<kind>dataset)s/)?(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    (("GET",), "/api/whoami-v2", Answers.whoami),
    (("POST",), "/api/repos/create", Answers.create),
    (("POST",), "/api/validate-yaml", Answers.validate),
    (("POST",), KIND + "/branch/(?P<name>.+)", Answers.branch),
    (("POST",), KIND + "/preupload/(?P<revision>.+)", Answers.preupload),
    (("POST",), KIND + "/commit/(?P<revision>.+)", Answers.commit),
    (("GET",), KIND + "/refs", Answers.refs),
    (("GET",), KIND + "/revision/(?P<revision>.+)", Answers.info),
    (("GET",), KIND + "/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", Answers.tree),
    (("POST",), KIND + "/paths-info/(?P<revision>.+)", Answers.paths_info),
    (("GET",), KIND, Answers.info),
    (("POST",), PLACE + r"\.git/info/lfs/objects/batch", Answers.lfs_batch),
    (("PUT",), "/lfs/(?P<oid>[0-9a-f]{64})", Answers.lfs_upload),
    (("POST",), "/lfs/(?P<oid>[0-9a-f]{64})/verify", Answers.lfs_verify),
    (("GET", "HEAD"), "/cdn/(?P<oid>[0-9a-f]{64})", Answers.cdn),
    (("GET", "HEAD"), PLACE + "/resolve/(?P<revision>[^/]+)/(?P<name>.+)", Answers.resolve),
]


@contextmanager
def running_hub():
    """Start a Hub on a free port of loopback, and stop it."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Answers,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
