"""Run tutorials: Markdown whose Python and bash blocks are executed in order, and shown with what they give.

    tutorial.md  ->  cells (text, python, bash)  ->  executed in a process of their own  ->  page, pictures, .ipynb

    python docs/notebooks.py docs/tutorials/pretrain.md --folder tutorial     # runs one, and prints the page

A block of another language, such as `text`, is not run. The last expression of a Python block is shown as in a
notebook: a table as HTML, a path of a picture as that picture. Figures that are open at the end of a block are shown.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```(python|bash)\n(.*?)^```\n?", re.DOTALL | re.MULTILINE)
FRONT_MATTER = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)
WIDTH = 100  # columns of what commands print


@dataclass
class Cell:
    """A part of a tutorial.

    Attributes:
        kind: `text`, `python` or `bash`.
        source: The text or the code.
        outputs: What the code gave: pairs of `text`, `html` or `png` (base64) and the content.
    """

    kind: str
    source: str
    outputs: list[tuple[str, str]] = field(default_factory=list)


def read_cells(text: str) -> list[Cell]:
    r"""Return the cells of a tutorial; its front matter is left out.

    Example:
        >>> [cell.kind for cell in read_cells("Two:\n\n```python\n1 + 1\n```\n")]
        ['text', 'python']
    """
    text, cells, place = FRONT_MATTER.sub("", text), [], 0
    for match in FENCE.finditer(text):
        cells += [Cell("text", text[place : match.start()]), Cell(match[1], match[2])]
        place = match.end()
    return [cell for cell in [*cells, Cell("text", text[place:])] if cell.source.strip()]


def needed(text: str) -> str | None:
    """Return the tutorial in whose folder this one goes on, by the line `needs:` of the front matter; else None."""
    front = FRONT_MATTER.match(text)
    found = re.search(r"^needs: (\w+)$", front[1], re.MULTILINE) if front else None
    return found[1] if found else None


def run(path: Path, folder: Path) -> tuple[list[Cell], float]:
    """Run a tutorial in a folder, in a process of its own.

    Args:
        path: The tutorial.
        folder: Where its code runs, and where the files that it writes stay.

    Returns:
        The cells with their outputs, and the seconds of processor time that they took.

    Raises:
        RuntimeError: If a block fails. It holds the block and what it printed.
    """
    command = [sys.executable, str(Path(__file__).resolve()), str(path.resolve()), "--as-json"]
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {"COLUMNS": str(WIDTH), "TERM": "dumb", "NO_COLOR": "1", "PATH": scripts}
    before = os.times()
    found = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)
    after = os.times()
    if found.returncode:
        raise RuntimeError(f"{path.name} does not run:\n{found.stderr.strip()[-4000:]}")
    cells = [
        Cell(**{**cell, "outputs": [tuple(each) for each in cell["outputs"]]}) for cell in json.loads(found.stdout)
    ]
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return cells, seconds


def execute(cells: list[Cell]) -> None:
    """Execute the code of the cells in this process, in the current folder, and keep what it gives.

    Raises:
        SystemExit: If a block fails.
    """
    import matplotlib

    matplotlib.use("agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        try:
            if cell.kind == "python":
                cell.outputs = list(python_outputs(cell.source, names))
            elif cell.kind == "bash":
                cell.outputs = bash_outputs(cell.source)
        except Exception as error:
            import traceback

            traceback.print_exc()
            raise SystemExit(f"in this block:\n\n{cell.source}\n{error}") from error


def python_outputs(source: str, names: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Execute Python and yield what it prints, its last expression, and its figures."""
    import matplotlib.pyplot as plt

    tree, last, value = ast.parse(source), None, None
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";"):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, "<block>", "exec"), names)
        if last is not None:
            value = eval(compile(last, "<block>", "eval"), names)
    if printed.getvalue().strip():
        yield "text", printed.getvalue()
    if isinstance(value, Path) and value.suffix == ".png":
        yield "png", base64.b64encode(value.read_bytes()).decode()
    elif hasattr(value, "_repr_html_"):
        yield "html", re.sub(r"<style.*?</style>\n?", "", value._repr_html_(), flags=re.DOTALL)
    elif value is not None:
        yield "text", f"{value}\n"
    for number in plt.get_fignums():
        picture = io.BytesIO()
        plt.figure(number).savefig(picture, dpi=110, bbox_inches="tight")
        yield "png", base64.b64encode(picture.getvalue()).decode()
    plt.close("all")


def bash_outputs(source: str) -> list[tuple[str, str]]:
    """Execute bash and return what it prints, to the screen and to the error stream.

    Raises:
        RuntimeError: If a command fails.
    """
    found = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", source], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = [line.rstrip().rpartition("\r")[2] for line in found.stdout.splitlines()]
    said = "\n".join(lines).strip("\n")
    if found.returncode:
        raise RuntimeError(f"exit code {found.returncode}:\n{said}")
    return [("text", said + "\n")] if said else []


def as_page(cells: list[Cell], name: str) -> tuple[str, dict[str, bytes]]:
    r"""Return the page of a tutorial as Markdown, and its pictures by the names of their files.

    Example:
        >>> page, pictures = as_page([Cell("python", "1 + 1\n", [("text", "2\n")])], "sums")
        >>> "``` { .text .output }" in page, pictures
        (True, {})
    """
    parts, pictures, heading = [], {}, name
    for cell in cells:
        if cell.kind == "text":
            heading = (re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) or [heading])[-1]
            parts.append(cell.source.strip("\n"))
            continue
        parts.append(f"```{cell.kind}\n{cell.source}```")
        for kind, content in cell.outputs:
            if kind == "png":
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(content)
                parts.append(f"![{heading}]({file})")
            elif kind == "html":
                parts.append(f'<div class="output">\n{content}\n</div>')
            else:
                parts.append(f"``` {{ .text .output }}\n{content}```")
    return "\n\n".join(parts) + "\n", pictures


def as_notebook(cells: list[Cell]) -> str:
    r"""Return a tutorial with its outputs as a Jupyter notebook, nbformat 4.5.

    Example:
        >>> json.loads(as_notebook([Cell("bash", "date\n")]))["cells"][0]["source"]
        '%%bash\ndate'
    """
    types = {"text": "text/plain", "html": "text/html", "png": "image/png"}
    shown: list[dict[str, Any]] = []
    for number, cell in enumerate(cells):
        source = ("%%bash\n" if cell.kind == "bash" else "") + cell.source.strip("\n")
        if cell.kind == "text":
            shown.append({"cell_type": "markdown", "id": f"cell-{number}", "metadata": {}, "source": source})
            continue
        outputs = [
            {"output_type": "display_data", "data": {types[kind]: content}, "metadata": {}}
            for kind, content in cell.outputs
        ]
        code = {"cell_type": "code", "execution_count": None, "outputs": outputs}
        shown.append({**code, "id": f"cell-{number}", "metadata": {}, "source": source})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": shown, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1)


def main() -> None:
    """Run a tutorial and print its page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("tutorial", type=Path, help="Markdown file")
    parser.add_argument("--folder", type=Path, default=Path(), help="where it runs, made if it is not there")
    parser.add_argument("--as-json", action="store_true", help="print the cells as JSON")
    given = parser.parse_args()
    if given.as_json:
        out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what compiled code prints is no JSON
        cells = read_cells(given.tutorial.read_text(encoding="utf-8"))
        execute(cells)
        out.write(json.dumps([asdict(cell) for cell in cells]))
        out.close()
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    cells, seconds = run(given.tutorial, given.folder)
    print(as_page(cells, given.tutorial.stem)[0])
    print(f"{seconds:.0f} s of processor time, {time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
