"""Write `metrics.json` and the card of a run."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from .. import families
from ..atomic import file_hash
from ..hub_cards.card import CardContent, write_model_card
from ..records import plain

SHOWN = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_genes", "depth_tokens", "pooling")


def figures(scores: Mapping[str, Mapping[str, float]], key: str) -> tuple[float, dict[str, float]]:
    """Return a score of the model, which has the first row, and baseline -> its score.

    >>> figures({"xTrimoGene": {"mse": 0.1}, "gene mean": {"mse": 0.3}}, "mse")
    (0.1, {'gene mean': 0.3})
    """
    of_model, *rest = ((name, row[key]) for name, row in scores.items())
    return of_model[1], dict(rest)


def known_hash(file: Path) -> str:
    """Return the sha256 of a file, for the card; empty for a folder.

    >>> known_hash(Path("."))
    ''
    """
    return file_hash(file) if file.is_file() else ""


def write_results(folder: Path, metrics: Mapping[str, Any], card: CardContent) -> None:
    """Write `metrics.json` and the card into a checkpoint folder.

    Args:
        folder: The checkpoint folder.
        metrics: Metrics and settings of the run; numbers and text among them are also shown in the card.
        card: Content of the card. Its licence is set to `unknown`, since it depends on the cells. `{a model}` in its
            summary becomes that of the family.
    """
    text = json.dumps(plain(metrics), indent=2, allow_nan=False)
    (folder / "metrics.json").write_text(text, encoding="utf-8")
    config = AutoConfig.from_pretrained(folder)
    fields, about = config.to_dict(), families.family_of(config).about
    told = replace(
        card,
        about=about,
        summary=card.summary.replace("{a model}", about.a_model),
        config={key: fields[key] for key in SHOWN if key in fields},
        metrics=[result for result in card.metrics if math.isfinite(result.value)],
        training={key: value for key, value in metrics.items() if isinstance(value, (int, float, str))},
        license="unknown",
    )
    write_model_card(folder, told)
