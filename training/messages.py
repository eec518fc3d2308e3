"""Names in a line, for errors and cards."""

from collections.abc import Iterable
from typing import Any


def some(names: Iterable[Any]) -> str:
    """Return the first ten names in a line, each once, and how many more there are."""
    names = [str(name) for name in dict.fromkeys(names)]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
