"""Tutorials: which blocks run, what they show, and that a block that fails stops the build."""

import base64
import importlib.util
import json
from pathlib import Path

import pytest

import xtrimogene

ROOT = Path(xtrimogene.__file__).parent
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))
TEXT = """---
needs: first
---

# Sums

```python
import matplotlib.pyplot as plt
print("so:")
plt.plot([1, 2])
1 + 1
```

```bash
echo "from bash" >&2
```

```text
not run
```
"""


@pytest.fixture(scope="module")
def notebooks():
    specification = importlib.util.spec_from_file_location("notebooks", ROOT / "docs/notebooks.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cells(notebooks):
    cells = notebooks.read_cells(TEXT)
    notebooks.execute(cells)
    return cells


def test_blocks_run_and_show_what_they_give(cells):
    assert [cell.kind for cell in cells] == ["text", "python", "bash", "text"]
    assert [kind for kind, _ in cells[1].outputs] == ["text", "text", "png"]
    assert [content for _, content in cells[1].outputs[:2]] == ["so:\n", "2\n"]
    assert base64.b64decode(cells[1].outputs[2][1]).startswith(b"\x89PNG")
    assert cells[2].outputs == [("text", "from bash\n")]


def test_a_page_has_code_outputs_and_pictures_under_their_headings(notebooks, cells):
    page, pictures = notebooks.as_page(cells, "sums")
    assert list(pictures) == ["sums-1.png"]
    assert "![Sums](sums-1.png)" in page
    assert page.index("1 + 1") < page.index("\nso:\n") < page.index("\nfrom bash\n") < page.index("not run")


def test_a_notebook_can_be_read(notebooks, cells):
    read = json.loads(notebooks.as_notebook(cells))
    assert [cell["cell_type"] for cell in read["cells"]] == ["markdown", "code", "code", "markdown"]
    assert read["cells"][2]["source"].startswith("%%bash\n")
    assert "image/png" in read["cells"][1]["outputs"][2]["data"]


@pytest.mark.parametrize("block", ["```python\n1 / 0\n```\n", "```bash\nexit 3\n```\n"])
def test_a_block_that_fails_is_named(notebooks, block, capsys):
    with pytest.raises(SystemExit, match="in this block"):
        notebooks.execute(notebooks.read_cells(block))
    assert "Error" in capsys.readouterr().err


def test_what_a_tutorial_needs_is_told(notebooks):
    assert notebooks.needed(TEXT) == "first"
    assert notebooks.needed("# None\n") is None


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_python_and_needs_one_that_is_there(notebooks, path):
    text = path.read_text(encoding="utf-8")
    sources = [cell.source for cell in notebooks.read_cells(text) if cell.kind == "python"]
    for source in sources:
        compile(source, path.name, "exec")
    needed = notebooks.needed(text)
    assert needed is None or (path.parent / f"{needed}.md").is_file()
