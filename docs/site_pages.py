"""What the site shows beside the pages of this folder; mkdocs calls the functions whose names begin with `on_`.

    README.md, CHANGELOG.md, CONTRIBUTING.md, eval/README.md  ->  pages of the site, their links made to fit
    docs/tutorials/*.md                                       ->  executed: what the code gives, pictures, .ipynb
    the modules of the package                                ->  api/*.md, which mkdocstrings fills with docstrings
    the commands of `xtrimogene`                              ->  commands.md

`EXECUTE=no` leaves the tutorials without outputs.
"""

import importlib.util
import logging
import os
import posixpath
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
import notebooks

ROOT = Path(__file__).resolve().parents[1]
PLACE = tempfile.TemporaryDirectory()  # removed when the build has ended
LOG = logging.getLogger("mkdocs.xtrimogene")
# Pages whose text lies elsewhere in the repository.
ELSEWHERE = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "protocols.md": "eval/README.md",
}
COPIED = ("LICENSE", "NOTICE", "CITATION.cff")
LINK = re.compile(r"(!?\[[^\]\n]*\]\()([^()\s]+)(\))")
CODE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
SKIPPED = ("xtrimogene.cli", "xtrimogene.eval.metric_modules")  # the commands have a page, these modules are scripts


@event_priority(100)  # before mkdocstrings' own, which looks up where modules lie
def on_config(config: "MkDocsConfig") -> None:
    """Tell mkdocstrings where the package lies, whatever the checkout is called.

    Where it is not told, a checkout of another name is not found, and the command `.venv/bin/xtrimogene` is taken for
    the package.

    Raises:
        PluginError: If Python finds another copy of the package than this one, or none.
    """
    found = importlib.util.find_spec("xtrimogene")
    if found is None or Path(found.origin or "").resolve() != ROOT / "__init__.py":
        where = "nowhere" if found is None else found.origin
        raise PluginError(f"Python finds the package xtrimogene {where}, not in {ROOT}: run `make docs`")
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(linked(Path(PLACE.name)))]


def linked(folder: Path) -> Path:
    """Link the modules and packages of this checkout into `folder/xtrimogene`, and return the folder.

    Griffe, which reads docstrings, goes through all folders below a package and follows links. Below the checkout it
    would go through the environment, and through its link to the checkout, forty times over.
    """
    place = folder / "xtrimogene"
    place.mkdir()
    folders = dict.fromkeys(package.split(".")[1] for package in packages() if "." in package)
    for path in (*ROOT.glob("*.py"), *(ROOT / name for name in folders)):
        (place / path.name).symlink_to(path)
    return folder


def on_files(files: Files, config: "MkDocsConfig") -> Files:
    """Add the pages that are made here, and the tutorials with what their code gives."""
    for name, source in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=f"---\nsearch:\n  boost: 0.5\n---\n{text}"))
    for name in COPIED:
        files.append(File.generated(config, name, content=(ROOT / name).read_bytes()))
    for name, text in api_pages():
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "commands.md", content=commands()))
    if os.environ.get("EXECUTE") != "no":
        for file in executed(files, config):
            if (old := files.get_file_from_path(file.src_uri)) is not None:
                files.remove(old)
            files.append(file)
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: Files) -> str:
    """Make links fit that lead to files of the repository."""
    here = page.file.src_uri
    return relinked(markdown, here, ELSEWHERE.get(here, f"docs/{here}"))


def executed(files: Files, config: "MkDocsConfig") -> Iterator[File]:
    """Run all tutorials, each behind the one that it needs, and yield their pages, pictures and notebooks.

    Raises:
        PluginError: If one does not run.
    """
    texts = {file.name: file.content_string for file in files if file.src_uri.startswith("tutorials/")}
    with tempfile.TemporaryDirectory() as folder:
        for name in sorted(texts, key=lambda name: (notebooks.needed(texts[name]) is not None, name)):
            try:
                cells, seconds = notebooks.run(ROOT / f"docs/tutorials/{name}.md", Path(folder))
            except RuntimeError as error:
                raise PluginError(str(error)) from error
            LOG.info("tutorials/%s.md: executed in %.0f s of processor time", name, seconds)
            text, pictures = notebooks.as_page(cells, name)
            link = f"[:material-download: as a notebook]({name}.ipynb){{ .md-button download }}\n\n"
            yield File.generated(config, f"tutorials/{name}.md", content=text.replace("\n\n", f"\n\n{link}", 1))
            yield File.generated(config, f"tutorials/{name}.ipynb", content=notebooks.as_notebook(cells))
            for picture, content in pictures.items():
                yield File.generated(config, f"tutorials/{picture}", content=content)


def relinked(text: str, page: str, source: str) -> str:
    """Return a text whose links to files of the repository lead to pages of the site, or are text where it has none.

    Args:
        text: Markdown.
        page: The page of the site that it becomes, such as `index.md`.
        source: Where it lies in the repository, such as `README.md`.

    Example:
        >>> relinked("[model](docs/model.md#half), [tl](tl.py)", "index.md", "README.md")
        '[model](model.md#half), [tl](api/tl.md#xtrimogene.tl)'
    """

    def of_site(match: re.Match[str]) -> str:
        path, mark, anchor = match[2].partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        place = place_of(target)
        if place is None:  # a file that the site does not show is named; of one that is not there mkdocs warns
            return match[1][1:-2] if (ROOT / target).exists() else match[0]
        place, _, own = place.partition("#")
        shown = posixpath.relpath(place, posixpath.dirname(page) or ".")
        return f"{match[1]}{shown}{'#' if mark or own else ''}{anchor or own}{match[3]}"

    parts = CODE.split(text)
    return "".join(part if index % 2 else LINK.sub(of_site, part) for index, part in enumerate(parts))


def place_of(target: str) -> str | None:
    """Return the place on the site of a file of the repository; None if it has none."""
    for page, source in ELSEWHERE.items():
        if target == source:
            return page
    if target in COPIED:
        return target
    if target == "cli":
        return "commands.md"
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if target.endswith(".py"):
        module = "xtrimogene." + target.removesuffix(".py").replace("/", ".")
        return f"{page_of(module)}#{module}"
    return None


def page_of(module: str) -> str:
    """Return the page with the docstrings of a module: one for each folder, and one for `xtrimogene.tl`."""
    folder = module.rpartition(".")[0].removeprefix("xtrimogene").strip(".")
    return f"api/{folder or module.rpartition('.')[2]}.md"


def api_pages() -> Iterator[tuple[str, str]]:
    """Yield the pages of the reference: the modules of each folder, with the folder's docstring above."""
    yield "api/tl.md", f"# xtrimogene.tl\n\n{fields('xtrimogene.tl', 2)}"
    for package in packages():
        folder = ROOT.joinpath(*package.split(".")[1:])
        modules = sorted(path.stem for path in folder.glob("*.py") if path.stem not in ("__init__", "__main__"))
        if package == "xtrimogene":
            modules.remove("tl")
        if package.startswith(SKIPPED) or not modules:
            continue
        page = "api/index.md" if package == "xtrimogene" else page_of(f"{package}.{modules[0]}")
        above = fields(package, 2, "members: false", "show_root_heading: false")
        yield page, "\n\n".join([f"# {package}", above, *(fields(f"{package}.{name}", 2) for name in modules)])


def packages() -> list[str]:
    """Return the names of the package's packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["tool"]["setuptools"]["packages"]


def fields(name: str, level: int, *options: str) -> str:
    """Return the block that mkdocstrings replaces by docstrings."""
    lines = [f"::: {name}", "    options:", f"      heading_level: {level}", *(f"      {option}" for option in options)]
    return "\n".join(lines)


def commands() -> str:
    """Return the page of the commands, from their own help."""
    import typer

    from xtrimogene.cli import app

    parts = [
        "# Commands\n\nEach command has `--help`. `--print-config` prints the options of a command as YAML, and "
        "`--config` takes them from such a file; what is typed wins."
    ]
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        parts.append(f"## xtrimogene {name}\n\n{(command.help or '').strip()}")
        rows = ["| | | default |", "|---|---|---|"]
        for option in command.params:
            text = " ".join((getattr(option, "help", None) or "").split()).replace("|", "\\|")
            told = option.show_default if isinstance(option.show_default, str) else None
            is_flag = option.default is None or isinstance(option.default, bool)
            shown = told or ("" if is_flag else str(option.default))
            is_code = shown and " " not in shown  # else words that tell what the default depends on
            default = "required" if option.required else f"`{shown}`" if is_code else shown
            names = ", ".join(f"`{each}`" for each in option.opts if each.startswith("-")) or f"`{option.name.upper()}`"
            rows.append(f"| {names} | {text} | {default} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"
