"""Train the checkpoints that come with the package, score them, and write their cards.

    python -m xtrimogene.recipes.checkpoints docs/checkpoints.yaml docs/embedding.yaml DATA      # or: make checkpoints

    cells of the data sets, less those that docs/embedding.yaml evaluates  ->  small, txfm-small
    labelled cells of one of them, unlabelled blood          + small       ->  blood-annotator
    evaluated cells, and cells of other experiments  ->  scores            ->  cards, docs/results/checkpoints.json

Weights are trained and calibrated in float32, and stored in half precision: what that changes is among the scores. A
stored folder has no code, since the package that it comes with has it.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from .. import families
from ..atomic import whole_folder
from ..hub_cards.card import CardContent, DataSource, Metric, write_model_card
from ..inference.calibration import FILE as CALIBRATION
from ..inference.familiarity import FILE as FAMILIARITY
from ..inference.familiarity import Familiarity
from ..options import build
from ..records import plain
from ..released import KNOWS
from ..tokenization.reading import annotated, cells_of
from .finetune import finetune_file
from .options import Finetuning, Pretraining
from .pretrain import pretrain_files
from .studies import released
from .studies.embedding import BATCH, cells_to_train_on, log

SIZES = {"small": "micro", "txfm-small": "txfm-micro"}  # name -> size of a new model
ANNOTATOR, BASE = "blood-annotator", "small"
STEPS, BATCH_SIZE, SEED = 50, 16, 0  # steps after the bag of genes is fitted
HELD_OUT = 0.02  # of the cells: they are looked at ten times, and tell what is far
RESULTS = Path("docs/results/checkpoints.json")
STORED = "float16"  # changes least of what halves the weights (docs/results/checkpoints.json)
SHIPPED = (
    "config.json", "model.safetensors", "tokenizer_config.json", "genes.txt", "gene_table.tsv.gz",
    "trained_on.safetensors", CALIBRATION, FAMILIARITY,
)  # fmt: skip
TITLES = {"small": "xtrimogene-small", "txfm-small": "txfm-small", ANNOTATOR: "xtrimogene-blood-annotator"}
FIRST = "For other tissues or protocols, let it learn from your cells first: xtrimogene adapt."  # said on the screen
SUBTYPES = "For cells of another laboratory or chemistry take names of subtypes of T cells for T cells."
ADAPT = (
    "`xtrimogene adapt` lets it learn from cells of other tissues and protocols without labels, in half a minute. "
    "`embed` says how many of your cells lie far from those that it was trained on, and marks them in `obs`."
)
LABELS = (
    "It gives each cell one of its labels with a calibrated probability, and says which cells are of no type that it "
    "knows. Cells of another laboratory or chemistry are called unknown more often than those like its own. For other "
    "types or tissues, `xtrimogene finetune` makes an annotator of labelled cells, which also learns unlabelled ones "
    "of other laboratories (`--unlabelled`)."
)


@dataclass(frozen=True)
class DataSet:
    """A data set that is trained on.

    Attributes:
        name: Its name; its file is `NAME/NAME.h5ad`.
        cells: What cells they are.
        protocol: How they were measured.
        licence: Licence of the cells.
        source: Where they were published.
    """

    name: str
    cells: str
    protocol: str
    licence: str
    source: str

    def for_card(self, number: int) -> DataSource:
        """Return the line of a card, with the number of cells that are trained on."""
        return DataSource(f"{self.cells}, {self.protocol} ({self.name})", self.licence, self.source, number)


@dataclass(frozen=True)
class Plan:
    """What is trained on, and what is tried.

    Attributes:
        sets: Data sets that are trained on.
        files: Name of each of them -> file with the cells to train on.
        labelled: Name of the data set whose labels the annotator learns, their column, a label that it does not learn,
            and names of data sets that it learns from without labels.
        tried: Other data sets, of which is asked whether they are familiar.
        entries: Evaluated cells, which are not trained on.
        data: Folder of the data sets.
        output: Folder of the checkpoints.
    """

    sets: list[DataSet]
    files: dict[str, Path]
    labelled: dict[str, Any]
    tried: list[dict[str, str]]
    entries: list[dict[str, Any]]
    data: Path
    output: Path

    @classmethod
    def read(cls, plan: Path, evaluated: Path, data: Path, output: Path, folder: Path) -> "Plan":
        """Read both plans, and write the cells to train on of evaluated data sets into a folder.

        Raises:
            FileNotFoundError: If a data set is not there.
        """
        wanted = yaml.safe_load(plan.read_text(encoding="utf-8"))
        sets, entries = [DataSet(**each) for each in wanted["trained_on"]], released.evaluated(evaluated, data)
        files = {each.name: released.file_of(data, each.name) for each in sets}
        if absent := [str(path) for path in files.values() if not path.is_file()]:
            raise FileNotFoundError(f"{absent[0]} is not there: give the folder of the data sets, make ... DATA=FOLDER")
        folder.mkdir()
        files |= {path.stem: path for path in cells_to_train_on(entries, folder) if path.stem in files}
        return cls(sets, files, wanted["labelled"], wanted["tried_on"], entries, data, output)

    @property
    def labelled_file(self) -> Path:
        """File with the cells that the annotator learns from; it is written beside those that are trained on."""
        file = self.files[self.labelled["name"]]
        cells = annotated(file)
        kept = cells[(cells.obs[self.labelled["label_key"]] != self.labelled["left_out"]).to_numpy()]
        kept.to_memory().write_h5ad(written := file.with_name(f"{file.stem}_labelled.h5ad"))
        return written

    @property
    def labelled_entry(self) -> dict[str, Any]:
        """Evaluated cells of the data set whose labels the annotator learns."""
        return next(each for each in self.entries if Path(each["data"]).stem == self.labelled["name"])

    def known(self, number: int) -> str:
        """Return a sentence on what a checkpoint was pre-trained on, so many cells."""
        protocols: dict[str, list[str]] = {}
        for each in self.sets:
            protocols.setdefault(each.cells, []).append(each.protocol)
        cells = "; ".join(f"{name} ({', '.join(dict.fromkeys(how))})" for name, how in protocols.items())
        return f"It was trained on {number:,} cells: {cells}."


def pretrain(name: str, files: list[Path], folder: Path) -> None:
    """Pre-train a checkpoint in `folder`."""
    options = {
        "max_steps": STEPS, "batch_size": BATCH_SIZE, "batch_key": BATCH, "validation_share": HELD_OUT, "seed": SEED,
        "config": SIZES[name], "device": "cpu",
    }  # fmt: skip
    pretrain_files(files, folder, build(Pretraining, options), say=log)


def train_base(plan: Plan, name: str, folder: Path) -> dict[str, Any]:
    """Pre-train a checkpoint in `folder`, unless it is there, store it, and return what was measured."""
    if not (folder / "config.json").exists():
        pretrain(name, list(plan.files.values()), folder)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    number = metrics["cells"]["train"]
    familiarity = Familiarity.load(folder)
    assert familiarity is not None  # enough cells are held out
    source = f"{number:,} cells: {', '.join(dict.fromkeys(each.cells for each in plan.sets))}"
    replace(familiarity, source=source).save(folder)
    store(folder, plan.output / name, metrics | {KNOWS: f"{plan.known(number)} {FIRST}"})
    return {
        "run": metrics,
        "rounding": released.rounding(folder, plan.labelled_entry),
        "familiar": released.familiar(plan.output / name, plan.entries, plan.tried, plan.data),
        "embedding": released.embedding_scores(plan.entries, name, plan.output / name, folder),
    }


def train_annotator(plan: Plan, name: str, folder: Path) -> dict[str, Any]:
    """Fine-tune the annotator in `folder`, unless it is there, store it, and return what was measured.

    It is a regression on genes and embedding: a network upon it named no more cells right. Another one that
    learns without unlabelled cells is fine-tuned to be compared with it.
    """
    file, unlabelled = plan.labelled_file, plan.labelled["unlabelled"]
    tune(plan, file, unlabelled, folder)
    tune(plan, file, [], without := folder.with_name(f"{name}-without-unlabelled"))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    of_blood = next(each for each in plan.sets if each.name == plan.labelled["name"])
    types = list(AutoConfig.from_pretrained(folder).id2label.values())
    knows = (
        f"It was trained on {metrics['cells']['train']:,} {of_blood.cells} ({of_blood.protocol}) with labels and on "
        f"{metrics['unlabelled cells']['learned from']:,} of other laboratories and chemistries without, and knows "
        f"{len(types)} types: {', '.join(types)}. {plan.labelled['left_out']} is not among them. {SUBTYPES}"
    )
    store(folder, plan.output / name, metrics | {KNOWS: knows})
    tests = {Path(each["data"]).stem: cells_of(Path(each["data"]), {}, each.get("max_cells")) for each in plan.entries}
    return {
        "run": metrics,
        "rounding": released.rounding(folder, plan.labelled_entry, "classify"),
        "annotation": released.on_other_experiments(plan.output / name, without, file, tests, plan.data),
    }


def tune(plan: Plan, file: Path, unlabelled: list[str], folder: Path) -> None:
    """Fine-tune an annotator in `folder`, unless it is there, on labelled cells and unlabelled ones of data sets."""
    if (folder / "config.json").exists():
        return
    options = {
        "label_key": plan.labelled["label_key"], "trainable_layers": 0, "epochs": 0, "seed": SEED, "device": "cpu",
        "unlabelled": [str(plan.files[name]) for name in unlabelled],
    }  # fmt: skip
    finetune_file(file, str(plan.output / BASE), folder, build(Finetuning, options), say=log)


def store(folder: Path, output: Path, metrics: dict[str, Any]) -> None:
    """Write what of a checkpoint comes with the package, with its weights in half precision.

    The configuration says float32, so that a loaded model computes in it.

    Args:
        folder: The checkpoint with weights in float32.
        output: Folder to write; what it holds is replaced.
        metrics: Figures of its training, and what it knows.
    """
    with whole_folder(output) as unfinished:
        unfinished.mkdir(parents=True)
        for name in SHIPPED:
            if (folder / name).exists():
                shutil.copyfile(folder / name, unfinished / name)
        weights = unfinished / "model.safetensors"
        halved = {
            name: part.to(getattr(torch, STORED)) if part.is_floating_point() else part
            for name, part in load_file(folder / "model.safetensors").items()
        }
        save_file(halved, weights, metadata={"format": "pt"})
        for path in unfinished.glob("*.safetensors"):
            path.chmod(0o644)  # safetensors writes files that their owner alone can read
        for path in unfinished.glob("*config.json"):
            told = json.loads(path.read_text(encoding="utf-8"))
            told.pop("auto_map", None)  # names files of code, which the package has
            path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        text = json.dumps(plain(metrics), indent=1, allow_nan=False)
        (unfinished / "metrics.json").write_text(text + "\n", encoding="utf-8")


def embedding_metrics(name: str, scores: dict[str, Any]) -> list[Metric]:
    """Return the results of a pre-trained checkpoint for its card."""
    return [
        Metric(
            "zero-shot embedding", data, metric, value,
            {method: row[metric] for method, row in rows.items() if method != name},
        )
        for data, rows in scores.items()
        for metric, value in rows[name].items()
        if metric != "seen"
    ]  # fmt: skip


def annotation_metrics(scores: dict[str, Any]) -> list[Metric]:
    """Return the results of the annotator for its card."""
    return [
        Metric(
            "cell type annotation, coarse types", title, metric, rows[ANNOTATOR][metric],
            {method: row[metric] for method, row in rows.items() if method != ANNOTATOR and metric in row},
            higher_is_better=metric == "accuracy" or "accuracy" not in rows[ANNOTATOR],  # unknown types
        )
        for title, rows in scores.items()
        for metric in ("accuracy", "calibration error", "called unknown")
        if metric in rows[ANNOTATOR]
    ]  # fmt: skip


def write_card(plan: Plan, name: str, found: dict[str, Any]) -> None:
    """Write the card of a stored checkpoint from what was measured."""
    output, run = plan.output / name, found["run"]
    of_annotator = plan.labelled["name"], *plan.labelled["unlabelled"]
    sets = [each for each in plan.sets if name != ANNOTATOR or each.name in of_annotator]
    trained_on = run["cells"].get("trained on", {}) | run.get("unlabelled cells", {}).get("by file", {})
    numbers = [trained_on.get(plan.files[each.name].name, run["cells"]["train"]) for each in sets]
    data = [each.for_card(number) for each, number in zip(sets, numbers, strict=True)]
    if name == ANNOTATOR:
        metrics, more = annotation_metrics(found["annotation"]), LABELS
    else:
        metrics, more = embedding_metrics(name, found["embedding"]), ADAPT
    config = AutoConfig.from_pretrained(output)
    about = families.family_of(config).about
    knows = json.loads((output / "metrics.json").read_text(encoding="utf-8"))[KNOWS].removesuffix(f" {FIRST}")
    shown = ("hidden_size", "num_hidden_layers", "embedding_size", "num_genes", "pooling")
    call = f"Commands take it as `--model {name}`."
    training = run | {f"calibration: {key}": value for key, value in run.get("calibration", {}).items()}
    content = CardContent(
        model_name=TITLES[name],
        summary=f"{about.a_model} that comes with the package `xtrimogene`. {call}\n\n{knows} {more}",
        config={key: getattr(config, key) for key in shown} | {"weights stored in": STORED},
        metrics=metrics,
        training={key: value for key, value in training.items() if isinstance(value, (int, float, str))},
        data=data,
        command="make checkpoints DATA=data",
        comes_as=name,
        is_classifier=name == ANNOTATOR,
        origin=TITLES[BASE] if name == ANNOTATOR else None,
        about=about,
    )
    write_model_card(output, content)


def main(
    plan: Annotated[Path, typer.Argument(help="What is trained on, and what is tried.")],
    evaluated: Annotated[Path, typer.Argument(help="Plan with embedding tasks, whose cells are not trained on.")],
    data: Annotated[Path, typer.Argument(help="Folder of the data sets.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the checkpoints.")] = Path("checkpoints"),
    results: Annotated[Path, typer.Option(help="The .json file; what others came to stays in it.")] = RESULTS,
    only: Annotated[
        str, typer.Option(help="Checkpoints to train, with commas; with none, the cards alone are written.")
    ] = ",".join((*SIZES, ANNOTATOR)),
    work: Annotated[
        Path | None, typer.Option(help="Folder in which they stay in float32; what is there is not trained again.")
    ] = None,
) -> None:
    """Train and score checkpoints, and write all cards from what was measured."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        planned = Plan.read(plan, evaluated, data, output, Path(temporary) / "cells")
        found = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
        for name in filter(None, only.split(",")):
            train = train_annotator if name == ANNOTATOR else train_base
            found[name] = train(planned, name, folder / name)
            write_measured(results, found)
        for name, measured in found.items():
            write_card(planned, name, measured)
            measured["bytes"] = sum(path.stat().st_size for path in (output / name).iterdir())
        write_measured(results, found)


def write_measured(path: Path, found: dict[str, Any]) -> None:
    """Write what was measured."""
    path.write_text(json.dumps(plain(found), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    log(f"written: {path}, of {', '.join(found)}")


if __name__ == "__main__":
    typer.run(main)
