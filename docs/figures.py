"""Write the figures of README.md and docs/*.md from the files of results: no measured number is typed by hand.

    docs/results/*.json, docs/benchmarks/results.json  ->  measured/*.py    tables and sentences, each a block
    measured.*.BLOCKS  ->  from `<!-- results: NAME -->` to `<!-- end -->` in README.md and docs/*.md

    python docs/figures.py            # writes the blocks anew, and names figures that stand outside of them

Files of results are what commands write, unchanged: `metrics.json` of `xtrimogene pretrain`, `finetune`, `evaluate` and
`demo`, `corpus.json` and `results.json` of the benchmarks, and what `xtrimogene plan --json` prints. Files that were
transcribed from older tables say so, with the commit and the command: the command writes them anew.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from measured import ROOT, checkpoints, embedding, evaluation, speed, training, txfm

BLOCK = re.compile(r"(<!-- results: ([\w, .-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
CODE = re.compile(r"^```.*?^```|^ {4,}\S.*?$|`[^`]*`|\]\([^)]*\)|<!--.*?-->", re.DOTALL | re.MULTILINE)
UNIT = r" ?(?:x|%|ms|s|seconds?|minutes?|hours?|days?|times|[KMG]i?B|[GT]FLOP(?:/s)?|cells/s|cells a second)(?!\w)"
# Decimals, powers of ten, and whole numbers of a unit that is measured.
FIGURE = re.compile(rf"(?<![\w.,/-])(?:\d[\d,]*(?:\.\d+(?:e-?\d+)?|e-?\d+)[a-zA-Z]?|\.\d+|\d[\d,]*(?={UNIT}))")
# Numbers that nothing measures: of the method, its sources, file formats, options, and tolerances that tests assert.
CONSTANTS = (
    "arXiv:2311.15156", "10x .h5", "10x Genomics", "Python 3.11 or later", "version 0.1 saved",
    "torch's format from before version 1.6",
    "30 % of expressed and 3 % of zero genes", "30 % of expressed, 3 % of zero genes",
    "from 30 % to all counts", "mask vector at 80 %", "same cell at 10 %", "true value at 10 %",
    "a probability of 0.9 or more", "with a warning from 40 % on",
    "AdamW, learning rate 1e-4", "has 2e-3", "min(0.999, (1 + t) / (10 + t))", "95 % intervals",
    "at 30 % of an H100's 989 TFLOP/s and 2.5 an hour", "19,264 x 512 numbers, 38 MiB a cell",
    "9.85e12, 1.05e12, 3.35e11 for Transformer, Performer, xTrimoGene",  # by formula, tests/eval/cost/test_flops.py
    "1e-5 in float32, 1e-10 in float64", "the same random features, 1e-10 in float64", "authors' code to 1e-5",
    "within 1e-12 and gradients within 1e-10 in float64, outputs within 1e-5 in float32",  # test_favor_backend.py
    "cell embeddings to 1e-5", "to 1e-5 of the same run", "to 5e-5 of the files", "99.8 % of the values to 1e-5",
    "in 8 MB.", "lie farther than 95 % of these", "so 5 % of cells like the training cells",  # checkpoints.md
    "within 5e-5 of each other", "99.8 % of the values within 1e-5", "within 1e-5 of the same run",
)  # fmt: skip
NOT_MEASURED = "*Not measured yet.*"
BLOCKS: dict[str, Callable[[], str]] = (
    training.BLOCKS | speed.BLOCKS | evaluation.BLOCKS | embedding.BLOCKS | txfm.BLOCKS | checkpoints.BLOCKS
)


def documents() -> list[Path]:
    """Return the files whose figures are written here."""
    return [ROOT / "README.md", *sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/tutorials").glob("*.md")])]


def rendered(text: str) -> str:
    """Return a document with every block written anew.

    Raises:
        ValueError: If a block has a name that nothing writes.
    """

    def block(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in BLOCKS:
            raise ValueError(f"there are no results called {name!r}, only {', '.join(BLOCKS)}: correct the marker")
        try:
            inside = BLOCKS[name]()
        except FileNotFoundError:
            inside = NOT_MEASURED
        return f"{begin}{inside.strip()}\n{end}"

    return BLOCK.sub(block, text)


def uncovered(text: str) -> list[str]:
    """Return the measured-looking numbers of a document that stand outside of blocks and code, with what is around."""
    for pattern in (BLOCK, CODE):
        text = pattern.sub(" ", text)
    text = " ".join(text.split())
    for constant in CONSTANTS:
        text = text.replace(constant, " ")
    return [text[max(found.start() - 30, 0) : found.end() + 20] for found in FIGURE.finditer(text)]


def main() -> int:
    """Write all documents; return 1 if figures stand outside of blocks."""
    loose = 0
    for path in documents():
        before = path.read_text(encoding="utf-8")
        after = rendered(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: figures written anew")
        for figure in uncovered(after):
            loose += 1
            print(f"{path.relative_to(ROOT)}: not from a file of results: ... {figure} ...", file=sys.stderr)
    return int(loose > 0)


if __name__ == "__main__":
    sys.exit(main())
