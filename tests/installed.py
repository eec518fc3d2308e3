"""Try the package that is installed beside this interpreter, away from its sources: `make wheel` runs this.

python -I tests/installed.py
"""

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path

DATA = (
    "tokenization/genes.txt", "tokenization/gene_table.tsv.gz", "hub_cards/template.md", "eval/report/report.html",
    "training/accelerate/ddp.yaml", "eval/metric_modules", "py.typed",
)  # fmt: skip


def command(*arguments: str) -> str:
    """Run the program that was installed, in an empty folder, and return what it prints."""
    program = Path(sys.executable).parent / "xtrimogene"
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Fail with a word on what is missing or does not run."""
    import xtrimogene

    folder = Path(xtrimogene.__file__).parent
    assert Path(sys.prefix) in folder.parents, f"{folder} is not what was installed into {sys.prefix}"
    missing = [name for name in DATA if not (folder / name).exists()]
    assert not missing, f"not in the wheel: {missing}"
    held = [path.name for path in folder.iterdir() if path.name in ("tests", "docs", "site")]
    assert not held, f"in the wheel, and of no use there: {held}"
    version = importlib.metadata.version("xtrimogene")
    assert version in command("--version"), f"--version does not say {version}"

    import scanpy

    with tempfile.TemporaryDirectory() as place:
        cells = Path(place) / "cells.h5ad"
        scanpy.datasets.pbmc68k_reduced()[:50].write_h5ad(cells)
        seen = json.loads(command("inspect", str(cells), "--json"))
        assert seen["cells"] == 50, f"inspect sees {seen}"
    print(f"xtrimogene {version} in {folder} is whole and runs")


if __name__ == "__main__":
    main()
