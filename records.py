"""The version of the package, names in a line for people, and values as JSON."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

VERSION = "0.1.0"  # of this package, as in pyproject.toml


def first_names(names: Iterable[Any]) -> str:
    """Return the first ten names in a line, each once, and how many more there are.

    >>> first_names(["CD3D", "NKG7", "CD3D"])
    'CD3D, NKG7'
    """
    names = [str(name) for name in dict.fromkeys(names)]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def plain(value: Any) -> Any:
    """Return a value in the types of JSON; numbers that are not finite become null.

    >>> plain({"mean": np.float32(0.5), "ids": np.array([1, 2]), "share": float("nan")})
    {'mean': 0.5, 'ids': [1, 2], 'share': None}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
