"""The site: every page is in the menu, links of the repository become links of the site, and it builds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import xtrimogene

ROOT = Path(xtrimogene.__file__).parent


def test_every_page_is_in_the_menu():
    menu = set(re.findall(r": ([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages - menu == set()
    made = {name for name in menu - pages if not name.startswith("api/")}
    assert made == {"index.md", "changelog.md", "contributing.md", "protocols.md", "commands.md"}


@pytest.fixture(scope="module")
def site_pages():
    pytest.importorskip("mkdocs")
    sys.path.insert(0, str(ROOT / "docs"))
    import site_pages

    return site_pages


@pytest.mark.parametrize(
    ("link", "page", "source", "found"),
    [
        ("docs/model.md#half", "index.md", "README.md", "model.md#half"),
        ("../README.md", "corpus.md", "docs/corpus.md", "index.md"),
        ("../eval/README.md#x", "evaluation.md", "docs/evaluation.md", "protocols.md#x"),
        ("../../tl.py", "tutorials/adapt.md", "docs/tutorials/adapt.md", "../api/tl.md#xtrimogene.tl"),
        ("../cli", "howto.md", "docs/howto.md", "commands.md"),
        ("https://example.org/a.py", "model.md", "docs/model.md", "https://example.org/a.py"),
        ("#here", "model.md", "docs/model.md", "#here"),
    ],
)
def test_links_lead_to_pages_of_the_site(site_pages, link, page, source, found):
    assert site_pages.relinked(f"[it]({link})", page, source) == f"[it]({found})"


def test_a_link_to_a_file_that_the_site_does_not_show_is_text(site_pages):
    assert site_pages.relinked("[the bounds](../constraints.txt)", "x.md", "docs/x.md") == "the bounds"
    assert site_pages.relinked("[gone](../gone.txt)", "x.md", "docs/x.md") == "[gone](../gone.txt)"


def test_every_page_of_the_reference_is_in_the_menu(site_pages):
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [name for name, _ in site_pages.api_pages() if f": {name}\n" not in menu] == []


def test_docstrings_are_read_from_the_package_alone(site_pages, tmp_path):
    folder = site_pages.linked(tmp_path) / "xtrimogene"
    read = [Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names]
    names = {path.relative_to(folder).as_posix() for path in read}
    assert {"tl.py", "training/data/corpus.py", "__init__.py"} <= names
    assert not [name for name in names if name.startswith((".venv", "tests", "docs"))]


@pytest.mark.slow
def test_the_site_builds_without_warnings(site_pages, tmp_path):
    environment = {**os.environ, "EXECUTE": "no", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "-f", ROOT / "mkdocs.yml", "-d", tmp_path / "site"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    text = (tmp_path / "site/api/tl.html").read_text(encoding="utf-8")
    assert "adata.obsm" in text
    assert "batch_size" in text
