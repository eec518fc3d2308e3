"""Training for drug synergy: tables of scores, drugs and cell lines -> a predictor for pairs of drugs.

    scores      drug_a, drug_b, cell_line, score, fold     read_scores       one row for each pair in each cell line
    drugs       SMILES -> F features                       drug_features     one row for each drug
    cell lines  TPM -> U numbers                           embed_cell_lines  one row for each cell line
        |  splits: by pair, drug or cell line; the tested pair, drug or cell line does not occur in training
        v
    synergy_model, fit_synergy -> a predictor for pairs of drugs

Source: DeepSynergy (Preuer et al. 2018, Bioinformatics 34:1538).
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PrinterCallback, Trainer
from transformers.trainer_utils import IntervalStrategy

from ...inference.saved import Saved
from ...modeling_xtrimogene.configuration_synergy import XTrimoGeneSynergyConfig as SynergyConfig
from ...modeling_xtrimogene.modeling_synergy import XTrimoGeneForDrugSynergy as SynergyModel
from ...records import first_names
from ..arguments import CellTrainingArguments, with_help

if TYPE_CHECKING:
    import pandas as pd


Problem = Literal["regression", "single_label_classification"]


class SynergyDataset(Dataset):
    """Scores with the features of their drugs and cell lines, as batches of `SynergyModel`.

    Args:
        scores: From `read_scores`, or any table with `drug_a`, `drug_b` and `cell_line`. Batches have labels if it has
            a column `score`.
        drugs: From `drug_features`.
        cell_lines: Embeddings or other features, one row for each cell line.
        problem: Whether scores are numbers, or classes 0 and 1.

    Raises:
        ValueError: If a drug or cell line has no features, a feature or score is not finite, or a class is not 0 or 1.

    Example:
        >>> import pandas as pd
        >>> scores = pd.DataFrame({"drug_a": ["A", "A", "B"], "drug_b": ["B", "C", "C"], "cell_line": ["X", "Y", "X"]})
        >>> scores["score"] = [3.0, -1.0, 2.0]
        >>> drugs = pd.DataFrame({"weight": [180.2, 194.2, 151.2], "rings": [1.0, 2.0, 1.0]}, index=["A", "B", "C"])
        >>> cell_lines = pd.DataFrame([[0.5, 1.0], [1.5, 0.0]], index=["X", "Y"])
        >>> dataset = SynergyDataset(scores, drugs, cell_lines, "regression")
        >>> {name: tuple(part.shape) for name, part in dataset.__getitems__([0, 2]).items()}
        {'drug_a': (2, 2), 'drug_b': (2, 2), 'cell_embeddings': (2, 2), 'labels': (2,)}
    """

    def __init__(self, scores: "pd.DataFrame", drugs: "pd.DataFrame", cell_lines: "pd.DataFrame", problem: Problem):
        used_drugs = [*scores.drug_a, *scores.drug_b]
        for kind, names, table, advice in (
            ("drugs", used_drugs, drugs, "add their SMILES"),
            ("cell lines", scores.cell_line, cell_lines, "add their expression"),
        ):
            unknown = sorted(set(names) - set(table.index))
            if unknown:
                raise ValueError(
                    f"{len(unknown)} of {len(set(names))} {kind} of the scores have no features: "
                    f"{first_names(unknown)}; {advice}, or leave these scores out, e.g. "
                    "scores[scores.cell_line.isin(cell_lines.index)]"
                )
            wrong = table.index[~np.isfinite(table.to_numpy(np.float32)).all(axis=1)]
            if len(wrong):
                raise ValueError(
                    f"features of {len(wrong)} of {len(table)} {kind} are no numbers: {first_names(wrong)}"
                )
        self.drug_rows = torch.from_numpy(drugs.to_numpy(np.float32))
        self.cell_rows = torch.from_numpy(cell_lines.to_numpy(np.float32))
        self.drug_a, self.drug_b = (torch.from_numpy(drugs.index.get_indexer(scores[d])) for d in ("drug_a", "drug_b"))
        self.cells = torch.from_numpy(cell_lines.index.get_indexer(scores.cell_line))
        self.labels = None
        if "score" in scores:
            values = scores.score.to_numpy(np.float64)
            wrong = values[~np.isfinite(values) if problem == "regression" else ~np.isin(values, (0, 1))]
            if len(wrong):
                wanted = "finite numbers" if problem == "regression" else "0 or 1"
                remedy = "leave them out"
                if "differs" in scores and scores.differs.any():
                    remedy = "leave out pairs that were measured as both classes, by scores[~scores.differs]"
                raise ValueError(f"{len(wrong)} of {len(values)} scores are not {wanted}, such as {wrong[0]}: {remedy}")
            self.labels = torch.from_numpy(values).to(torch.float32 if problem == "regression" else torch.int64)

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {name: part[0] for name, part in self.__getitems__([row]).items()}

    def __getitems__(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the batch of these rows; torch's DataLoader calls this."""
        chosen = torch.as_tensor(rows)
        batch = {
            "drug_a": self.drug_rows[self.drug_a[chosen]],
            "drug_b": self.drug_rows[self.drug_b[chosen]],
            "cell_embeddings": self.cell_rows[self.cells[chosen]],
        }
        return batch if self.labels is None else batch | {"labels": self.labels[chosen]}


def synergy_model(
    checkpoint: str | os.PathLike | PreTrainedConfig | None,
    drug_columns: Sequence[str],
    problem: Problem = "regression",
    seed: int = 0,
    **changes: Any,
) -> SynergyModel:
    """Return a synergy model on top of a pre-trained checkpoint, or a new one.

    Args:
        checkpoint: Folder or Hub name of a pre-trained model; the configuration of a new encoder; or None for a model
            without encoder, which needs `cell_features`.
        drug_columns: Names of the drug features, the columns of `drug_features`.
        problem: Whether scores are numbers, or classes 0 and 1.
        seed: Seed of the new weights.
        **changes: Other fields of `SynergyConfig`, such as `hidden_size`, or `cell_features`, the number of
            features of a cell line.

    Raises:
        ValueError: If there is neither a checkpoint nor `cell_features`, or both.

    Example:
        >>> synergy_model(None, ["MolWt", "RingCount"], cell_features=2).config.drug_features
        ['MolWt', 'RingCount']
    """
    if checkpoint is None and changes.get("cell_features") is None:
        raise ValueError(
            "checkpoint is None and cell_features is not given: give a checkpoint whose encoder describes cell lines, "
            "or cell_features=cell_lines.shape[1] for a model without encoder"
        )
    changes |= {
        "drug_features": [str(name) for name in drug_columns],
        "problem_type": problem,
        "num_labels": 1 if problem == "regression" else 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if checkpoint is None or isinstance(checkpoint, PreTrainedConfig):
            return SynergyModel(SynergyConfig(encoder_config=checkpoint, **changes))
        return Saved.of(checkpoint).load(SynergyModel, **changes)


@with_help
@dataclass
class SynergyArguments(CellTrainingArguments):
    """Arguments of the Trainer for synergy: many small steps of a small network.

    30 epochs and the model's dropout of 0.1 were chosen on pairs held out of the training pairs of O'Neil's fold 0.
    Their squared error was 390; it was 409 with 20 epochs, and 400 with a dropout of 0.3.

    Example:
        >>> SynergyArguments("run", num_train_epochs=5).learning_rate
        0.001
    """

    per_device_train_batch_size: int = 256
    per_device_eval_batch_size: int = 4096
    num_train_epochs: float = 30
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    logging_strategy: IntervalStrategy | str = "epoch"


def fit_synergy(
    model: SynergyModel,
    scores: "pd.DataFrame",
    drugs: "pd.DataFrame",
    cell_lines: "pd.DataFrame",
    *,
    arguments: SynergyArguments,
    eval_scores: "pd.DataFrame | None" = None,
    callbacks: Iterable[Any] = (),
) -> Trainer:
    """Train `model` in place and return its Trainer. The same data and seed give the same weights.

    Inputs and scores are standardised by their mean and deviation in the training data. The encoder is not trained,
    since cell lines are embedded before.

    Args:
        model: From `synergy_model`.
        scores: Scores to train on, from `read_scores`.
        drugs: From `drug_features`.
        cell_lines: Embeddings from `embed_cell_lines` with the same checkpoint; for a model without encoder, any
            features.
        arguments: The Trainer's.
        eval_scores: Scores to evaluate on.
        callbacks: Further callbacks of the Trainer.

    Raises:
        ValueError: If the features are not those that the model takes, a drug or cell line has no features, or a
            feature or score is not finite.

    Example:
        >>> import pandas as pd
        >>> scores = pd.DataFrame({"drug_a": ["A", "A", "B"], "drug_b": ["B", "C", "C"], "cell_line": ["X", "Y", "X"]})
        >>> scores["score"] = [3.0, -1.0, 2.0]
        >>> drugs = pd.DataFrame({"weight": [180.2, 194.2, 151.2], "rings": [1.0, 2.0, 1.0]}, index=["A", "B", "C"])
        >>> cell_lines = pd.DataFrame([[0.5, 1.0], [1.5, 0.0]], index=["X", "Y"])
        >>> model = synergy_model(None, drugs.columns, cell_features=2)
        >>> arguments = SynergyArguments("run", max_steps=1, disable_tqdm=True)
        >>> trainer = fit_synergy(model, scores, drugs, cell_lines, arguments=arguments)
        >>> trainer.state.global_step
        1
    """
    problem = model.config.problem_type
    if list(drugs.columns) != model.config.drug_features:
        raise ValueError(
            f"drugs has {drugs.shape[1]} features and the model takes {model.synergy.drug_sum.in_features}, or others: "
            f"make them with drug_features(smiles, model.config.drug_features)"
        )
    if cell_lines.shape[1] != model.config.cell_size:
        raise ValueError(
            f"cell_lines has {cell_lines.shape[1]} columns and the model takes {model.config.cell_size}: make them "
            f"with embed_cell_lines and the checkpoint of the model, or make a model without encoder, with "
            f"synergy_model(None, drugs.columns, cell_features={cell_lines.shape[1]})"
        )
    train_dataset = SynergyDataset(scores, drugs, cell_lines, problem)
    used = drugs.index.isin([*scores.drug_a, *scores.drug_b])
    model.fit_inputs(
        train_dataset.drug_rows[torch.from_numpy(used)],
        train_dataset.cell_rows[torch.from_numpy(cell_lines.index.isin(scores.cell_line))],
        train_dataset.labels if problem == "regression" else None,
    )
    if model.model is not None:
        model.model.requires_grad_(False)
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=lambda batch: batch,  # SynergyDataset already returns whole batches
        train_dataset=train_dataset,
        eval_dataset=None if eval_scores is None else SynergyDataset(eval_scores, drugs, cell_lines, problem),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, among the user's results
    trainer.train()
    return trainer


PREDICTED_AT_ONCE = 4096


def predict_synergy(
    model: SynergyModel, scores: "pd.DataFrame", drugs: "pd.DataFrame", cell_lines: "pd.DataFrame"
) -> np.ndarray:
    """Return predicted scores, or probabilities of class 1, for each row, `(rows,)`.

    Args:
        model: Trained by `fit_synergy`.
        scores: Table with `drug_a`, `drug_b` and `cell_line`; a column `score` is ignored.
        drugs: From `drug_features(smiles, model.config.drug_features)`.
        cell_lines: Features of the kind that the model was trained with, one row for each cell line.

    Example:
        >>> import pandas as pd
        >>> scores = pd.DataFrame({"drug_a": ["A", "A", "B"], "drug_b": ["B", "C", "C"], "cell_line": ["X", "Y", "X"]})
        >>> scores["score"] = [3.0, -1.0, 2.0]
        >>> drugs = pd.DataFrame({"weight": [180.2, 194.2, 151.2], "rings": [1.0, 2.0, 1.0]}, index=["A", "B", "C"])
        >>> cell_lines = pd.DataFrame([[0.5, 1.0], [1.5, 0.0]], index=["X", "Y"])
        >>> model = synergy_model(None, drugs.columns, cell_features=2)
        >>> arguments = SynergyArguments("run", max_steps=1, disable_tqdm=True)
        >>> trainer = fit_synergy(model, scores, drugs, cell_lines, arguments=arguments)
        >>> predict_synergy(model, scores, drugs, cell_lines).shape
        (3,)
    """
    asked = SynergyDataset(scores[["drug_a", "drug_b", "cell_line"]], drugs, cell_lines, model.config.problem_type)
    was_training = model.training
    model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(asked), PREDICTED_AT_ONCE):
            batch = asked.__getitems__(range(start, min(start + PREDICTED_AT_ONCE, len(asked))))
            logits = model(**{name: part.to(model.device) for name, part in batch.items()}).logits.float()
            parts.append(logits[:, 0] if model.config.num_labels == 1 else logits.softmax(-1)[:, 1])
    model.train(was_training)
    return torch.cat(parts).cpu().numpy().astype(np.float64)
