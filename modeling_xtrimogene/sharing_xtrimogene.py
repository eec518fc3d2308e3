# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Push a folder to the Hub: what is in it is checked, its card is merged with that on the Hub, one commit has it all.

    folder  ->  check_folder  pickles, missing files, secrets, paths of a machine are refused
            ->  card          what people wrote by hand on the Hub stays (`card_xtrimogene`)
            ->  commit        files, and the removal of weights that an earlier push wrote and the folder does not have

It is saved with the models, so that a model can push itself where this package is not installed.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from transformers.dynamic_module_utils import get_relative_imports

from .card_xtrimogene import CARD, METADATA, in_repository, merged, pushed_files

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
READ_AS_TEXT = (".json", ".py", ".txt", ".md", ".yaml", ".yml", ".html", ".svg", ".csv", ".tsv", ".cff", "")
KINDS = {  # by type of repository; all of them are searched
    "model": (*READ_AS_TEXT, ".safetensors", ".png", ".gz"),
    "dataset": (*READ_AS_TEXT, ".parquet"),
}
DIGITS = 12  # of a hash in the card
LARGE = (".safetensors", ".parquet")  # the Hub tells their SHA-256, by which a push knows those of an earlier one

SECRETS = {
    "a token of the Hub": r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}",
    "a token of GitHub": r"\b(?:gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,})",
    "a token of GitLab": r"\bglpat-[\w-]{16,}",
    "a token of a package index": r"\b(?:pypi-[\w-]{40,}|npm_[A-Za-z0-9]{30,})",
    "a token of Slack": r"\b(?:xox[a-z]|xapp)-[\w-]{10,}|hooks\.slack\.com/services/\w+/\w+",
    "a key of an API": r"\b(?:sk-(?=[\w-]*\d)[\w-]{20,}|[rs]k_live_\w{16,}|AIza[\w-]{30,}|ya29\.[\w-]{20,})",
    "a key of AWS": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|(?i:aws_secret_access_key)[\"']?\s*[=:]\s*[\"']?[\w/+]{30,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----",
    "a web token (JWT)": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "a password of a .netrc": r"\blogin\s+\S+\s+password\s+\S|^\s*password\s+(?=\S*\d)\S{6,}\s*$",
    "a password in an address": r"\b[a-z][a-z+]*://[^\s/:@\"'`]+:[^\s/:@\"'`{]+@",
    "a password of a request": r"(?i:authorization[\"']?\s*[:=]\s*[\"']?(?:basic|bearer))\s+[\w+/=.~-]{12,}",
    "a secret of an environment": (
        r"\b[A-Z][A-Z0-9_]*(?:API_KEY|TOKEN|SECRET|PASSWORD)[\"']?\s*[=:]\s*[\"']?(?=\S*\d)[\w+/.-]{16,}"
    ),
}
ROOTS = (
    "home|Users|root|tmp|var|mnt|media|scratch|data|work|workspace|private|Volumes|opt|srv|gpfs|lustre|nfs|cluster|"
    "projects?|labs?|storage|net|content|kaggle|dbfs"
)
PATHS = re.compile(
    rf"(?<![\w./~}})\]*-])/(?:{ROOTS})/[\w.@%+~-]+[^\s\"'`)<>]*|file:/{{3}}[^\s\"'`)<>]+"
    r"|(?<![\w])[A-Za-z]:(?:\\{1,2}|/)(?:Users|Documents and Settings|[\w.-]+(?:\\{1,2}|/))[^\s\"'`)<>]*"
)


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        repo_id: The repository, `user/name`.
        commit: The commit: its address is `commit.commit_url`, and `commit.oid` is the revision by which exactly these
            files are loaded.
        files: Number of files in the folder.
        kept: Parts of the card that people changed on the Hub, and that therefore stayed as they were there.
    """

    repo_id: str
    commit: CommitInfo
    files: int
    kept: tuple[str, ...]


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    repo_type: str = "model",
    needed: Sequence[str] = (),
    private: bool | None = None,
    token: str | bool | None = None,
    **commit: Any,
) -> Pushed:
    """Push a checked folder to the Hub in one commit; the repository is made if there is none.

    Weights and shards that an earlier push wrote, and that are still as it wrote them, are removed if the folder has
    them no longer. So are weights of the same kind under the standard names, which would be loaded in their place.

    Args:
        folder: The folder.
        repo_id: The repository, `user/name`.
        repo_type: `model` or `dataset`.
        needed: Files that have to be in the folder, beside those that its files name.
        private: Whether a new repository is private; the Hub's default unless given.
        token: Token of the Hub; that of `hf auth login` unless given.
        **commit: Arguments of the commit: `revision` (a branch), `commit_message`, `commit_description`, `create_pr`.

    Raises:
        ValueError: If the folder is refused (`check_folder`), or `private` is set and the repository is public.

    Example:
        >>> push_folder("checkpoint", "me/blood", private=True).commit.oid  # doctest: +SKIP
        '8f3c...'
    """
    folder = Path(folder)
    files = check_folder(folder, needed, token, repo_type)
    hub = HfApi(token=token)
    with in_a_sentence(repo_id, hub.endpoint):
        repo_id = hub.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
        if private and not hub.repo_info(repo_id, repo_type=repo_type).private:
            raise ValueError(
                f"{repo_id} is public on the Hub, and it was to be private: make it private there, or push to another "
                f"name"
            )
        return commit_files(hub, folder, files, (repo_id, repo_type), commit)


def commit_files(
    hub: HfApi, folder: Path, files: Sequence[str], repository: tuple[str, str], commit: Mapping[str, Any]
) -> Pushed:
    """Commit the files of a folder, with its card merged with that on the Hub.

    Args:
        hub: The Hub.
        folder: The folder.
        files: Names of its files.
        repository: The repository and its type.
        commit: Arguments of the commit.
    """
    repo_id, repo_type = repository
    where: dict[str, Any] = {"repo_type": repo_type, "revision": commit.get("revision")}
    if where["revision"] is not None:
        hub.create_branch(repo_id, repo_type=repo_type, branch=where["revision"], exist_ok=True)
    there = {item.path: item for item in hub.list_repo_tree(repo_id, recursive=True, **where)}
    operations: list[Any] = [CommitOperationAdd(name, str(folder / name)) for name in files if name != CARD]
    written = {
        each.path_in_repo: each.upload_info.sha256.hex()[:DIGITS]
        for each in operations
        if each.path_in_repo.endswith(LARGE)
    }
    kept: list[str] = []
    earlier: dict[str, str] = {}
    if CARD in files:
        on_hub = None
        if CARD in there:
            with TemporaryDirectory() as place:
                found = hub.hf_hub_download(repo_id, CARD, local_dir=place, **where)
                on_hub = Path(found).read_text(encoding="utf-8")
                earlier = pushed_files(on_hub)
        new = in_repository((folder / CARD).read_text(encoding="utf-8"), repo_id)
        text, kept = merged(new, on_hub, METADATA if repo_type == "model" else {}, written)
        operations.append(CommitOperationAdd(CARD, text.encode()))
    unchanged = {name for name, sha in earlier.items() if name in there and sha_of(there[name]) == sha}
    shadows = {WEIGHTS, INDEX} if WEIGHTS in files or INDEX in files else set()
    stale = (unchanged | shadows & set(there)) - set(files)
    operations += [CommitOperationDelete(name) for name in sorted(stale)]
    described = {"commit_message": f"Upload {folder.name}", **commit}
    done = hub.create_commit(repo_id, operations, repo_type=repo_type, **described)
    return Pushed(repo_id, done, len(files), tuple(kept))


def sha_of(item: Any) -> str | None:
    """Return the first digits of the SHA-256 of a large file on the Hub; None of other files and of folders."""
    large = getattr(item, "lfs", None)
    return None if large is None else large.sha256[:DIGITS]


@contextmanager
def in_a_sentence(repo_id: str, endpoint: str) -> Iterator[None]:
    """Say in one sentence what to do where the Hub refuses or does not answer.

    Raises:
        ValueError: If the Hub does not know the token, or the token may not write there.
        ConnectionError: If the Hub does not answer.
    """
    advice = {
        401: "the Hub does not know the token of this machine: log in again with `hf auth login`",
        403: f"the token of this machine may not write to {repo_id}: name a repository of yours, or another token",
    }
    try:
        yield
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code not in advice:
            raise
        raise ValueError(advice[error.response.status_code]) from error
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):
            raise
        raise ConnectionError(f"{endpoint} does not answer ({error}): nothing was pushed; try again later") from error


# -- what is refused --------------------------------------------------------------------------------------------------


def check_folder(
    folder: Path, needed: Sequence[str] = (), token: str | bool | None = None, repo_type: str = "model"
) -> list[str]:
    """Return the names of the files of a folder that is to be shared, relative to it, in order.

    Args:
        folder: The folder. Hidden files and folders in it are left out.
        needed: Files that have to be in it. Those that its `config.json` and its index of weights name have to be too.
        token: A token that no file may hold, beside that of this machine.
        repo_type: `model` or `dataset`: which kinds of files may be in it.

    Raises:
        ValueError: If there is no such folder, a file is missing, may be a pickle or is of no kind that is shared, or
            a line holds a secret or the path of a file on a machine. The message names the file and the line.

    Example:
        >>> Path("shared").mkdir()
        >>> _ = Path("shared/README.md").write_text("Trained on /home" + "/jane/cells.h5ad")
        >>> check_folder(Path("shared"))
        Traceback (most recent call last):
        ValueError: shared/README.md, line 1, holds a path of a machine, ...
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the folder of a checkpoint or of a corpus")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    for name in names:
        check_kind(folder / name, KINDS[repo_type])
    for name, because in needed_files(folder, needed):
        if name not in names:
            raise ValueError(f"{folder} lacks {name}, {because}: save the model and its tokenizer there again")
    secrets = secret_patterns(token)
    for name in names:
        for place, text in texts_of(folder / name):
            where = f"{folder / name}, {place},"
            for what, pattern in secrets.items():
                if re.search(pattern, text, re.MULTILINE):  # columns and descriptions have several lines
                    raise ValueError(f"{where} holds {what}: remove it, and make it invalid if others could read it")
            if found := PATHS.search(text):
                raise ValueError(
                    f"{where} holds a path of a machine, {found.group()}: write a name that tells others something, "
                    f"such as {Path(found.group()).name!r}"
                )
    return names


def check_kind(path: Path, kinds: Sequence[str]) -> None:
    """Refuse a file that may be a pickle, or is of none of the kinds that are shared.

    Raises:
        ValueError: If it is so.
    """
    with path.open("rb") as file:
        begin = file.read(4)
    # Pickles begin with their protocol; torch puts them into zip files.
    is_pickle = begin[:1] == b"\x80" and begin[1:2] <= b"\x05" and begin[1:2] >= b"\x02"
    if path.suffix in PICKLES or is_pickle or begin == b"PK\x03\x04":
        raise ValueError(
            f"{path} may be a pickle, which runs code where it is loaded: remove it; weights are shared as .safetensors"
        )
    if path.suffix not in kinds or (path.suffix == "" and path.name.upper() != path.name):
        raise ValueError(
            f"{path} is no file of a checkpoint or of a corpus: move it out of the folder to push the rest"
        )


def needed_files(folder: Path, needed: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the files that have to be in a folder, and why: those asked for, weights, and the code of the models."""
    yield from ((name, "without which it cannot be loaded") for name in needed)
    if CONFIG not in needed and not (folder / CONFIG).is_file():
        return
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        yield from ((name, f"which {INDEX} names") for name in dict.fromkeys(index["weight_map"].values()))
    else:
        yield WEIGHTS, "its weights"
    for described in (CONFIG, "tokenizer_config.json"):
        if (folder / described).is_file():
            yield from code_of(folder, described)


def code_of(folder: Path, described: str) -> Iterator[tuple[str, str]]:
    """Yield the files of code that a configuration names, and those that these import, and which file names each."""
    config = json.loads((folder / described).read_text(encoding="utf-8"))
    named = [
        config.get("auto_map", {}),
        {task: each["impl"] for task, each in config.get("custom_pipelines", {}).items()},
    ]
    classes = [
        name for each in named for value in each.values() for name in (value if isinstance(value, list) else [value])
    ]
    waiting = [(f"{name.split('.')[0]}.py", described) for name in classes if name and "--" not in name]
    seen: set[str] = set()
    while waiting:
        name, by = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        yield name, f"which {by} names"
        if (folder / name).is_file():
            waiting += [(f"{module}.py", name) for module in get_relative_imports(folder / name)]


def secret_patterns(token: str | bool | None) -> Mapping[str, str]:
    """Return patterns of secrets by what they are: known forms, and the token of this machine as it is."""
    own = sorted({re.escape(each) for each in (token, get_token()) if isinstance(each, str) and len(each) > 7})
    return {**SECRETS, "your token of the Hub": "|".join(own)} if own else SECRETS


def texts_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the texts of a file that can be read, and where each is: its lines, its header, its columns of text.

    Raises:
        ValueError: If it is not what its name says.
    """
    try:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                yield "its header", file.read(min(length, 100_000_000)).decode("utf-8", errors="replace")
        elif path.suffix == ".png":
            yield from (("what describes it", text.decode("latin-1")) for text in png_texts(path.read_bytes()))
        elif path.suffix == ".parquet":
            yield from parquet_texts(path)
        else:
            opened = gzip.open(path, "rt", encoding="utf-8", errors="replace") if path.suffix == ".gz" else None
            with opened or path.open(encoding="utf-8", errors="replace") as lines:
                yield from ((f"line {number}", line) for number, line in enumerate(lines, start=1))
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be searched for secrets ({error}): write it anew, or remove it") from error


def png_texts(content: bytes) -> Iterator[bytes]:
    """Yield what a PNG file holds beside the pixels: the text of its chunks, and what stands behind its end."""
    place, kind = 8, b""
    while kind != b"IEND" and place < len(content):
        length, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        chunk, place = content[place + 8 : place + 8 + length], place + length + 12
        if kind != b"IDAT":
            yield chunk
        rest = chunk.partition(b"\0")[2]
        if kind == b"zTXt":
            yield zlib.decompress(rest[1:])
        elif kind == b"iTXt" and rest[:1] == b"\1":
            yield zlib.decompress(rest[2:].split(b"\0", 2)[2])
    yield content[place:]


def parquet_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Yield what describes a Parquet file, and the values of its columns of text."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise OSError("this needs the package pyarrow") from error
    with parquet.ParquetFile(path) as file:
        yield "what describes it", str(file.metadata.metadata or "")
        names = [each.name for each in file.schema_arrow if str(each.type) in ("string", "large_string")]
        for batch in file.iter_batches(columns=names):
            for name, column in zip(names, batch.columns, strict=True):
                yield f"column {name}", "\n".join(filter(None, column.unique().to_pylist()))
