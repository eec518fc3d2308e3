"""Write the model card of a checkpoint folder: what it is, how to use it, what it is worth beside baselines.

facts about a run  ->  template.md  ->  folder/README.md, with the results also in its metadata
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..eval.measures.results import Score

TEMPLATE = Path(__file__).with_name("template.md")
TAGS = ("single-cell", "biology", "gene-expression", "scRNA-seq")


@dataclass(frozen=True)
class Metric:
    """A figure of the model beside those of the baselines.

    Attributes:
        task: What was done, such as "cell type annotation".
        dataset: What it was done on.
        name: What was measured, such as "macro F1".
        value: The model's figure.
        baselines: Name of a baseline -> its figure on the same cells.
        higher_is_better: False for errors.
    """

    task: str
    dataset: str
    name: str
    value: float
    baselines: Mapping[str, float] = field(default_factory=dict)
    higher_is_better: bool = True

    @property
    def winners(self) -> list[str]:
        """Baselines that are better than the model, the best first."""
        sign = 1 if self.higher_is_better else -1
        better = {name: sign * value for name, value in self.baselines.items() if sign * (value - self.value) > 0}
        return sorted(better, key=better.__getitem__, reverse=True)


@dataclass(frozen=True)
class DataSource:
    """Cells that the model was trained on."""

    name: str
    licence: str
    source: str
    cells: int


@dataclass(frozen=True)
class Conversion:
    """Where weights come from that were trained elsewhere and converted, and what binds who uses them.

    Attributes:
        source: What was converted, such as "entry cell of models.ckpt of scFoundation".
        licence_name: Name of the licence of the weights, as the Hub writes it: lower case, with hyphens.
        licence_link: Where it can be read.
        licence_note: What it means for the user, in a few sentences.
        citation: BibTeX of the publication.
    """

    source: str
    licence_name: str
    licence_link: str
    licence_note: str
    citation: str


@dataclass(frozen=True, kw_only=True)
class CardContent:
    """What a model card tells.

    Attributes:
        model_name: Repository on the Hub, or the folder, from which the examples load.
        summary: A sentence or two on what this checkpoint is.
        config: Facts about the architecture, such as sizes and number of parameters.
        metrics: Results; they go into the table and into the metadata.
        training: Facts about the training run, such as steps, batch size, hardware and time.
        data: What it was trained on.
        command: The command that repeats the training.
        pictures: Caption -> file name within the folder.
        is_classifier: Whether it names cell types; else it is a pre-trained model.
        origin: Checkpoint that training began from; from scratch unless given.
        conversion: For weights that were converted and not trained here; its licence is that of the card.
        license: Licence of the weights, as the Hub names it.
        tags: More tags than the usual ones.
    """

    model_name: str
    summary: str
    command: str
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Metric] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    data: Sequence[DataSource] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    is_classifier: bool = False
    origin: str | None = None
    conversion: Conversion | None = None
    license: str = "apache-2.0"
    tags: Sequence[str] = ()


def write_model_card(folder: str | os.PathLike, content: CardContent) -> Path:
    """Write `README.md` into a checkpoint folder, and return its path.

    >>> content = CardContent(model_name="me/blood", summary="Shows how cards look.", command="xtrimogene pretrain ...")
    >>> write_model_card("checkpoint", content).name  # doctest: +SKIP
    'README.md'
    """
    terms: dict[str, Any] = {"license": content.license}
    if content.conversion is not None:
        link, name = content.conversion.licence_link, content.conversion.licence_name
        terms = {"license": "other", "license_name": name, "license_link": link}
    card_data = ModelCardData(
        **terms,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=[*TAGS, *content.tags],
        model_name=content.model_name,
        eval_results=[_eval_result(metric) for metric in content.metrics] or None,
    )
    told = {each.name: getattr(content, each.name) for each in fields(content) if each.name != "tags"}
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        **told,
        baselines=list(dict.fromkeys(name for metric in content.metrics for name in metric.baselines)),
        auto_class="AutoModelForSequenceClassification" if content.is_classifier else "AutoModel",
    )
    path = Path(folder) / "README.md"
    card.save(path)
    return path


def add_results(folder: str | os.PathLike, scores: Sequence[Score], method: str) -> Path:
    """Add the scores of a method to the metadata of a card, in place of older ones of the same task, data and metric.

    Args:
        folder: Checkpoint folder with a card.
        scores: Scores of an evaluation, of any methods.
        method: The name that the checkpoint has among them.

    Returns:
        The path of the card.

    Raises:
        ValueError: If the folder has no card, or no score is of this method.
    """
    path = Path(folder) / "README.md"
    if not path.is_file():
        raise ValueError(f"{folder} has no README.md to write results into: only checkpoint folders on this machine do")
    own = [each for each in scores if each.method == method]
    if not own:
        raise ValueError(
            f"none of {len(scores)} scores is of {method!r}: give the name of the checkpoint in the report"
        )
    card = ModelCard.load(path)
    new = [_eval_result(Metric(each.task, each.data, each.metric, each.value)) for each in own]
    kept = [old for old in card.data.eval_results or [] if not any(_same(old, each) for each in new)]
    card.data.model_name = card.data.model_name or Path(folder).name
    card.data.eval_results = [*kept, *new]
    card.save(path)
    return path


def _same(one: EvalResult, other: EvalResult) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in ("task_type", "dataset_type", "metric_type"))


def _eval_result(metric: Metric) -> EvalResult:
    return EvalResult(
        task_type=_slug(metric.task),
        task_name=metric.task,
        dataset_type=_slug(metric.dataset),
        dataset_name=metric.dataset,
        metric_type=_slug(metric.name),
        metric_name=metric.name,
        metric_value=metric.value,
    )


def _slug(text: str) -> str:
    return "-".join(text.lower().split())
