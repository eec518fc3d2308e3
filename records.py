"""What is written for people and programs: the version, names in a line, values as JSON."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

VERSION = "0.1.0"  # of this package, as in pyproject.toml


def first_names(names: Iterable[Any]) -> str:
    """Return the first ten names in a line, each once, and how many more there are."""
    names = [str(name) for name in dict.fromkeys(names)]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def plain(value: Any) -> Any:
    """Return values as JSON knows them: numpy's and paths too, and null for what is not a finite number."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
