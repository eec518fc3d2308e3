"""Write the model card of a checkpoint folder: what it is, how to use it, and its results beside baselines.

facts about a run  ->  template.md  ->  folder/README.md, with the results also in its metadata
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .. import families
from ..eval.measures.results import Score
from ..modeling_xtrimogene.card_xtrimogene import METADATA

TEMPLATE = Path(__file__).with_name("template.md")
TAGS = ("single-cell", "biology", "gene-expression", "scRNA-seq")


@dataclass(frozen=True)
class Metric:
    """A metric of the model, beside that of the baselines.

    Attributes:
        task: Name of the task, such as "cell type annotation".
        dataset: Name of the data set.
        name: Name of the metric, such as "macro F1".
        value: Value of the model.
        baselines: Name of a baseline -> its value on the same cells.
        higher_is_better: False for errors.

    Example:
        >>> Metric("annotation", "blood", "accuracy", 0.8, {"logistic regression": 0.9, "k-NN": 0.7}).winners
        ['logistic regression']
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
    """Cells that the model was trained on.

    Attributes:
        name: Name of the data set or file.
        licence: Its licence.
        source: Where it comes from.
        cells: Number of its cells that were trained on.
        sha256: Hash of the file; empty if it is not known.

    Example:
        >>> DataSource("PBMC", licence="CC BY 4.0", source="10x Genomics", cells=700).cells
        700
    """

    name: str
    licence: str
    source: str
    cells: int
    sha256: str = ""


@dataclass(frozen=True)
class Conversion:
    """Origin and licence of weights that were trained elsewhere and converted.

    Attributes:
        source: What was converted, such as "entry cell of models.ckpt of scFoundation".
        licence_name: Name of the licence of the weights, as the Hub writes it: lower case, with hyphens.
        licence_link: Address of the text of the licence.
        licence_note: A few sentences on what the licence means for the user.
        citation: BibTeX of the publication.

    Example:
        >>> origin = Conversion("models.ckpt", "my-license", "https://example.org", "Non-commercial.", "@article{}")
        >>> origin.licence_name
        'my-license'
    """

    source: str
    licence_name: str
    licence_link: str
    licence_note: str
    citation: str


@dataclass(frozen=True, kw_only=True)
class CardContent:
    """Content of a model card.

    Attributes:
        model_name: Repository on the Hub, or the folder, from which the examples load.
        summary: A sentence or two on what this checkpoint is.
        config: Facts about the architecture, such as sizes and number of parameters.
        metrics: Results; they go into the table and into the metadata.
        training: Facts about the training run, such as steps, batch size, hardware and time.
        data: What it was trained on.
        command: The command that repeats the training; empty if it is not known.
        pictures: Caption -> file name within the folder.
        is_classifier: Whether the model names cell types; else it is a pre-trained model.
        origin: Checkpoint that training began from; None for a model trained from scratch.
        conversion: Origin of converted weights; its licence replaces `license`.
        license: Licence of the weights, as the Hub names it.
        tags: More tags than the usual ones.
        comes_as: Name under which the checkpoint comes with the package, from which the examples then load; its folder
            has no code.
        about: What is said of the model's family.

    Example:
        >>> content = CardContent(model_name="me/blood", summary="A small model.", command="xtrimogene pretrain ...")
        >>> content.license
        'apache-2.0'
    """

    model_name: str
    summary: str
    command: str = ""
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
    comes_as: str | None = None
    about: families.About = families.DEFAULT.about


def write_model_card(folder: str | os.PathLike, content: CardContent) -> Path:
    """Write `README.md` into a checkpoint folder, and return its path.

    Args:
        folder: Checkpoint folder.
        content: Content of the card.

    Example:
        >>> content = CardContent(model_name="me/blood", summary="A small model.", command="xtrimogene pretrain ...")
        >>> Path("blood").mkdir()
        >>> write_model_card("blood", content).name
        'README.md'
    """
    terms: dict[str, Any] = {"license": content.license}
    if content.conversion is not None:
        link, name = content.conversion.licence_link, content.conversion.licence_name
        terms = {"license": "other", "license_name": name, "license_link": link}
    card_data = ModelCardData(
        **terms,
        **METADATA,
        tags=[*TAGS, *content.tags],
        model_name=content.model_name,
        eval_results=[_eval_result(metric) for metric in content.metrics] or None,
    )
    told = {each.name: getattr(content, each.name) for each in fields(content) if each.name != "tags"}
    told["address"] = f'xtrimogene.checkpoint("{content.comes_as}")' if content.comes_as else f'"{content.model_name}"'
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
    """Add scores of a method to the metadata of a card; they replace older ones of the same task, data and metric.

    Args:
        folder: Checkpoint folder with a card.
        scores: Scores of an evaluation, of all its methods.
        method: Name of the checkpoint in these scores.

    Returns:
        The path of the card.

    Raises:
        ValueError: If the folder has no card, or no score is of this method.

    Example:
        >>> content = CardContent(model_name="me/blood", summary="A small model.", command="xtrimogene pretrain ...")
        >>> Path("scored").mkdir()
        >>> _ = write_model_card("scored", content)
        >>> found = Score("annotation", "blood", "scored", "accuracy", 0.8, 0.7, 0.9, spread=0.0, seeds=1, units=100)
        >>> _ = add_results("scored", [found], "scored")
        >>> ModelCard.load("scored/README.md").data.eval_results[0].metric_value
        0.8
    """
    path = Path(folder) / "README.md"
    if not path.is_file():
        raise ValueError(f"{folder} has no README.md to write results into: only checkpoint folders on this machine do")
    of_method = [each for each in scores if each.method == method]
    if not of_method:
        raise ValueError(
            f"none of {len(scores)} scores is of {method!r}: give the name of the checkpoint in the report"
        )
    card = ModelCard.load(path)
    new = [_eval_result(Metric(each.task, each.data, each.metric, each.value)) for each in of_method]
    kept = [old for old in card.data.eval_results or [] if not any(_same(old, each) for each in new)]
    card.data.model_name = card.data.model_name or Path(folder).name
    card.data.eval_results = [*kept, *new]
    card.save(path)
    return path


def count_parameters(folder: str | os.PathLike) -> int:
    """Return the number of weights in the files of a checkpoint, without buffers.

    >>> count_parameters("checkpoint") > 1_000_000
    True
    """
    from safetensors import safe_open

    buffers = (
        "projection", "running_mean", "running_var", "num_batches_tracked", "bag.components", "bag.bias",
        "is_expressed", "anchor.weight", "anchor.bias", "anchor.embedding_weight", "norm.mean", "norm.std", "proteins",
    )  # fmt: skip
    number = 0
    for path in sorted(Path(folder).glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if not name.endswith(buffers)]
            number += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return number


def _same(one: EvalResult, other: EvalResult) -> bool:
    names = ("task_type", "dataset_type", "metric_type")
    return all(_slug(getattr(one, name)) == _slug(getattr(other, name)) for name in names)


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
    return re.sub(r"[^\w.]+", "-", text.lower()).strip("-")
