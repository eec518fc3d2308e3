"""What the files of results say, as Markdown: a module for each kind of results, with the blocks that it writes."""

import json
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OF_TRAINING_MEANS = (
    "Beyond gene means here is beyond the means over training cells, as version 0.1 computed it; runs now give it "
    "beyond the means over the test cells."
)


def results(name: str) -> Any:
    """Return a file of results.

    Raises:
        FileNotFoundError: If it is not there.
    """
    return json.loads((ROOT / "docs" / name).with_suffix(".json").read_text(encoding="utf-8"))


def runs(pattern: str) -> list[Any]:
    """Return the files of results whose names match a pattern, in order."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "docs/results").glob(pattern))]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["|".join(["", *(f" {cell} " if cell else " " for cell in line), ""]) for line in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def paragraph(text: str) -> str:
    """Return text in lines of the width of these documents."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def share(value: float | None) -> str:
    """Return a share in percent, `-` where it is not known."""
    return "-" if value is None else f"{100 * value:.1f} %"


def with_range(values: Sequence[float]) -> str:
    """Return the mean of values and their range, as `0.790 (0.782 to 0.794)`."""
    return f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
