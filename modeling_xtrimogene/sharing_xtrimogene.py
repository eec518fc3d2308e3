# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Push a folder to the Hub: what is in it is checked, its card is merged with that on the Hub, one commit has it all.

    folder  ->  check_folder  pickles, missing files, secrets, paths of a machine are refused
            ->  card          what people wrote by hand on the Hub stays (`card_xtrimogene`)
            ->  commit        files, and the removal of weights that the folder does not have

It is saved with the models, so that a model can push itself where this package is not installed.
"""

import fnmatch
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from transformers.dynamic_module_utils import get_relative_imports

from .card_xtrimogene import CARD, METADATA, in_repository, merged

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
READ_AS_TEXT = (".json", ".py", ".txt", ".md", ".yaml", ".yml", ".html", ".svg", ".csv", ".tsv", ".cff", "")
KINDS = (*READ_AS_TEXT, ".safetensors", ".parquet", ".png", ".gz")
# Files of an earlier push that would be read beside, or instead of, those of the folder.
STALE = {"model": ("*.safetensors", "*.safetensors.index.json"), "dataset": ("data/*.parquet",)}

SECRETS = {
    "a token of the Hub": r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}",
    "a token of GitHub": r"\b(?:gh[opsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,})",
    "a token of GitLab": r"\bglpat-[\w-]{16,}",
    "a key of an API": r"\b(?:sk-[\w-]{20,}|AIza[\w-]{30,}|xox[abps]-[\w-]{10,})",
    "a key of AWS": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"\b[a-z][a-z+]*://[^\s/:@\"'`]+:[^\s/:@\"'`{]+@",
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
    files = check_folder(folder, needed, token)
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
    there = hub.list_repo_files(repo_id, **where)
    contents: dict[str, Any] = {name: str(folder / name) for name in files}
    kept: list[str] = []
    if CARD in files:
        on_hub = None
        if CARD in there:
            with TemporaryDirectory() as place:
                found = hub.hf_hub_download(repo_id, CARD, local_dir=place, **where)
                on_hub = Path(found).read_text(encoding="utf-8")
        new = in_repository((folder / CARD).read_text(encoding="utf-8"), repo_id)
        text, kept = merged(new, on_hub, METADATA if repo_type == "model" else {})
        contents[CARD] = text.encode()
    operations: list[Any] = [CommitOperationAdd(name, content) for name, content in contents.items()]
    stale = [name for name in there if any(fnmatch.fnmatch(name, pattern) for pattern in STALE[repo_type])]
    operations += [CommitOperationDelete(name) for name in stale if name not in contents]
    described = {"commit_message": f"Upload {folder.name}", **commit}
    done = hub.create_commit(repo_id, operations, repo_type=repo_type, **described)
    return Pushed(repo_id, done, len(files), tuple(kept))


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


def check_folder(folder: Path, needed: Sequence[str] = (), token: str | bool | None = None) -> list[str]:
    """Return the names of the files of a folder that is to be shared, relative to it, in order.

    Args:
        folder: The folder. Hidden files and folders in it are left out.
        needed: Files that have to be in it. Those that its `config.json` and its index of weights name have to be too.
        token: A token that no file may hold, beside that of this machine.

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
        check_kind(folder / name, name)
    for name, because in needed_files(folder, needed):
        if name not in names:
            raise ValueError(f"{folder} lacks {name}, {because}: save the model and its tokenizer there again")
    secrets = secret_patterns(token)
    for name in names:
        for line, text in texts_of(folder / name):
            where = f"{folder / name}, {f'line {line}' if line else 'its header'},"
            for what, pattern in secrets.items():
                if re.search(pattern, text):
                    raise ValueError(f"{where} holds {what}: remove it, and make it invalid if others could read it")
            if found := PATHS.search(text):
                raise ValueError(
                    f"{where} holds a path of a machine, {found.group()}: write a name that tells others something, "
                    f"such as {Path(found.group()).name!r}"
                )
    return names


def check_kind(path: Path, name: str) -> None:
    """Refuse a file that may be a pickle, or is of no kind that is shared.

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
    if path.suffix not in KINDS or (path.suffix == "" and path.name.upper() != path.name):
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


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file of text with their numbers, from 1; of a safetensors file its header, as line 0."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            yield 0, file.read(min(length, 100_000_000)).decode("utf-8", errors="replace")
    elif path.suffix in READ_AS_TEXT:
        with path.open(encoding="utf-8", errors="replace") as lines:
            yield from enumerate(lines, start=1)
