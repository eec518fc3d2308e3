"""What the documents point at is there: links, files, modules, names; and the tour of CONTRIBUTING.md is complete."""

import ast
import importlib
import importlib.util
import re
import textwrap
import tomllib
from pathlib import Path

import pytest

import xtrimogene

ROOT = Path(xtrimogene.__file__).parent
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "eval").rglob("*.md")]
)
# Environments and caches, whose names begin with a dot, hold files of others.
HELD = {path.name for top in ROOT.iterdir() if top.name[0] != "." for path in [top, *top.rglob("*.py")]}
LINK = re.compile(r"\]\(([^()\s]+)\)")
FILE = re.compile(r"(?<![\w/.:-])(?:[\w.-]+/)+[\w.-]+\.(?:py|yaml|md|cff)\b")  # path/like.py
BARE_FILE = re.compile(r"`(\w+\.py)`")
COMMAND = re.compile(r"python -m (xtrimogene[\w.]*)")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
MOVED = re.compile(r"\| `xtrimogene\.")  # a row of the table of names


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(text):
    """Give the anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def files_of(text, folder):
    """Give the files that a text names and that lie neither below the root nor below the document's folder."""
    paths = {match[0] for match in FILE.finditer(re.sub(r"\w+://\S+", " ", text))}
    absent = {path for path in paths if not (ROOT / path).is_file() and not (folder / path).is_file()}
    return sorted(absent | (set(BARE_FILE.findall(text)) - HELD))


def is_module(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def has_name(module, name):
    return is_module(module) and (hasattr(importlib.import_module(module), name) or is_module(f"{module}.{name}"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    broken = []
    for target in LINK.findall(read(name)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        if not path.exists() or (anchor and anchor not in anchors(path.read_text(encoding="utf-8"))):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_are_named_are_there(name):
    assert files_of(read(name), (ROOT / name).parent) == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_modules_that_are_run_are_there(name):
    assert [module for module in COMMAND.findall(read(name)) if not is_module(module)] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_examples_import_is_there(name):
    missing = []
    for block in PYTHON.findall(read(name)):
        for node in ast.walk(ast.parse(textwrap.dedent(block))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "xtrimogene":
                missing += [f"{node.module}.{each.name}" for each in node.names if not has_name(node.module, each.name)]
    assert missing == []


def test_names_that_moved_are_where_the_changelog_says():
    cells = [re.findall(r"`([\w.]+)`", line) for line in read("CHANGELOG.md").splitlines() if MOVED.match(line)]
    assert len(cells) > 20
    for old, *names, new in cells:
        assert [name for name in names if not has_name(new, name)] == [], f"not in {new}"
        assert [name for name in names if has_name(old, name)] == [], f"still in {old}"


def tour():
    """Give the paths of the tour in CONTRIBUTING.md: what each line begins with, in the folders it is indented by."""
    block = re.search(r"## A tour.*?```text\n(.*?)^```", read("CONTRIBUTING.md"), re.DOTALL | re.MULTILINE)[1]
    above = []
    for line in filter(None, block.splitlines()):
        indent, names = len(line) - len(line.lstrip()), re.split(r" {2,}", line.strip())[0]
        above = [(depth, folder) for depth, folder in above if depth < indent]
        for name in names.split(", "):
            yield "".join(folder for _, folder in above) + name
        if names.endswith("/"):
            above.append((indent, names))


def test_the_tour_names_what_is_there():
    assert [path for path in tour() if "*" not in path and not (ROOT / path).exists()] == []


def test_the_tour_visits_every_folder_and_file_of_the_package():
    seen = {found.relative_to(ROOT).as_posix() for path in tour() for found in ROOT.glob(path)}
    project = tomllib.loads(read("pyproject.toml"))["tool"]["setuptools"]["packages"]
    folders = [name.partition(".")[2].replace(".", "/") or "." for name in project]
    files = [path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).glob("*.py")]
    wanted = [name for name in [*folders, *files] if name != "." and not name.endswith(("__init__.py", "__main__.py"))]
    assert sorted(set(wanted) - seen) == [], "give each a line, one clause long, in the tour of CONTRIBUTING.md"


def test_the_citation_names_the_paper_and_this_version():
    import yaml

    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == xtrimogene.__version__
    assert citation["authors"] == [{"name": "The xTrimoGene-HF authors"}]
    assert "2311.15156" in str(citation["references"][0])


@pytest.mark.parametrize(
    ("text", "absent"),
    [
        ("see `eval/inference.py`", ["eval/inference.py"]),
        ("see [it](../eval/evaluate.py) and https://example.org/a/b.py", []),
        ("`rejection.py`", ["rejection.py"]),
        ("`running.py` and docs/evaluation.yaml", []),
    ],
)
def test_a_file_that_is_gone_is_found(text, absent):
    assert files_of(text, ROOT / "docs") == absent
