"""What a run leaves beside its model: `metrics.json` and the card."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..records import plain

if TYPE_CHECKING:
    from ..hub_cards.card import DataSource, Metric


def figures(scores: Mapping[str, Mapping[str, float]], key: str) -> tuple[float, dict[str, float]]:
    """Return the figure of the model and those of the baselines."""
    rest = {name: row[key] for name, row in scores.items() if name != "xTrimoGene"}
    return scores["xTrimoGene"][key], rest


def write_results(
    folder: Path,
    metrics: Mapping[str, Any],
    results: Sequence["Metric"],
    *,
    name: str,
    summary: str,
    data: Sequence["DataSource"],
    pictures: Mapping[str, str],
    command: str,
    is_classifier: bool = False,
    origin: str | None = None,
) -> None:
    """Write `metrics.json` and the card into a checkpoint folder."""
    from ..hub_cards.card import write_model_card
    from ..modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig

    text = json.dumps(plain(metrics), indent=2, allow_nan=False)
    (folder / "metrics.json").write_text(text, encoding="utf-8")
    config = XTrimoGeneConfig.from_pretrained(folder)
    shown = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_genes", "depth_tokens", "pooling")
    write_model_card(
        folder,
        model_name=name,
        summary=summary,
        config={key: getattr(config, key) for key in shown},
        metrics=[result for result in results if math.isfinite(result.value)],
        training={key: value for key, value in metrics.items() if isinstance(value, (int, float, str))},
        data=data,
        command=command,
        pictures=pictures,
        is_classifier=is_classifier,
        origin=origin,
        license="unknown",  # theirs to choose: it depends on the cells
    )
