"""Train a model that predicts how cells change when genes are perturbed.

    screen, perturbations                           ->  perturbation_pairs    control and perturbed profiles
    screen, graphs, perturbations to train on       ->  fit_perturbation      a Trainer with its model
                                                    ->  training_helps        whether an anchored model is trained
    model, control profile, sets of genes           ->  predict_profiles

Letters: B perturbations, R measured genes of the screen.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy import sparse
from transformers import PrinterCallback, Trainer, default_data_collator, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ...modeling_xtrimogene.configuration_perturbation import XTrimoGenePerturbationConfig as PerturbationConfig
from ...modeling_xtrimogene.modeling_perturbation import XTrimoGeneForPerturbationPrediction as PerturbationModel
from ...tokenization.expression_xtrimogene import pad_right
from ..arguments import CellTrainingArguments, with_help
from .anchoring import additive_weights, set_members
from .gene_graphs import GeneGraphs
from .screens import CONTROL, PerturbationScreen, PerturbationSplit

FOLDS = 3  # of the cross-validation that tells whether training helps an anchored model


def perturbation_model(
    screen: PerturbationScreen, train: Sequence[str], graphs: GeneGraphs, **changes: Any
) -> PerturbationModel:
    """Return a new model for the genes of `graphs`.

    It begins with the mean change of the training perturbations; an anchored one with the additive model of
    `additive_weights`.

    Args:
        screen: Perturbed and control cells, from `read_screen`.
        train: Perturbations to train on.
        graphs: From `gene_graphs`.
        **changes: Other fields of the configuration, such as `hidden_size` or `anchored`.

    Example:
        >>> import pandas as pd
        >>> from anndata import AnnData
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> from xtrimogene.training.perturbation.gene_graphs import gene_graphs
        >>> from xtrimogene.training.perturbation.screens import read_screen
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [4, 1, 0, 1], [0, 3, 0, 2], [2, 2, 1, 0]], columns=tokenizer.genes)
        >>> cells = AnnData(counts.astype("float32"))
        >>> cells.obs["perturbation"] = ["control", "control", "CD3E", "LYZ"]
        >>> screen = read_screen(cells, tokenizer, min_cells=1)
        >>> model = perturbation_model(screen, ["CD3E"], gene_graphs(screen), hidden_size=8)
        >>> model.config.num_measured
        4
    """
    expression, relations = sparse.coo_matrix(graphs.expression), sparse.coo_matrix(graphs.relations)
    sizes: dict[str, Any] = {
        "num_nodes": len(graphs.gene_ids),
        "num_measured": len(screen.gene_ids),
        "num_expression_edges": expression.nnz,
        "num_relation_edges": relations.nnz,
        "num_anchor_changes": len(train) if changes.get("anchored") else 0,
        "features": "learned",
        "pad_token_id": screen.tokenizer.pad_token_id,
    }
    if graphs.features is not None:
        sizes |= {"features": "pretrained", "feature_size": graphs.features.shape[1]}
    model = PerturbationModel(PerturbationConfig(**{**sizes, **changes}))
    with torch.no_grad():
        model.gene_ids.copy_(torch.from_numpy(graphs.gene_ids))
        if graphs.features is not None:
            model.features.copy_(torch.from_numpy(graphs.features))
        for name, graph in (("expression", expression), ("relation", relations)):
            edges = np.stack([graph.row, graph.col]).astype(np.int64)
            getattr(model, f"{name}_edges").copy_(torch.from_numpy(edges))
            getattr(model, f"{name}_weights").copy_(torch.from_numpy(graph.data))
        changes_PR = screen.profiles(train) - screen.profiles([CONTROL])
        if model.anchor is None:
            model.mean_change.copy_(torch.from_numpy(changes_PR.mean(axis=0)))
        else:
            members = set_members([screen.sets[name] for name in train], graphs.gene_ids)
            weights_NP = additive_weights(members, changes_PR, graphs.features)
            model.anchor.set_regression(torch.from_numpy(weights_NP), torch.from_numpy(changes_PR))
        model.change_scale.copy_(torch.from_numpy(changes_PR.std(axis=0)))
    return model


def perturbation_pairs(
    screen: PerturbationScreen,
    names: Sequence[str],
    cells: int | None = None,
    repeats: int = 1,
    seed: int = 0,
) -> Dataset:
    """Return pairs of a control and a perturbed profile, columns `perturbation_ids`, `control_values`, `labels`.

    Args:
        screen: Perturbed and control cells, from `read_screen`.
        names: Perturbations of the screen.
        cells: Number of cells, drawn with replacement, whose mean is a profile; the mean of all cells unless given.
        repeats: Number of pairs for each perturbation; more than one makes sense only with `cells`.
        seed: Seed of the drawn cells.

    Example:
        >>> import pandas as pd
        >>> from anndata import AnnData
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> from xtrimogene.training.perturbation.screens import read_screen
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [4, 1, 0, 1], [0, 3, 0, 2], [2, 2, 1, 0]], columns=tokenizer.genes)
        >>> cells = AnnData(counts.astype("float32"))
        >>> cells.obs["perturbation"] = ["control", "control", "CD3E", "LYZ"]
        >>> screen = read_screen(cells, tokenizer, min_cells=1)
        >>> pairs = perturbation_pairs(screen, ["CD3E", "LYZ"])
        >>> pairs["labels"][:].shape
        torch.Size([2, 4])
    """
    rng = np.random.default_rng(seed)

    def profile(name: str) -> np.ndarray:
        perturbed = screen.cells(name)
        drawn = perturbed if cells is None else perturbed[rng.integers(perturbed.shape[0], size=cells)]
        return np.asarray(drawn.mean(axis=0, dtype=np.float64), np.float32).ravel()

    ids = pad_right([screen.sets[name] for name in names], screen.tokenizer.pad_token_id, np.int64)
    # Without `cells` the control profile is the same in all pairs, so it is computed once.
    controls = profile(CONTROL) if cells is None else None
    rows: dict[str, list[np.ndarray]] = {"perturbation_ids": [], "control_values": [], "labels": []}
    for _ in range(repeats):
        for name, genes in zip(names, ids, strict=True):
            rows["perturbation_ids"].append(genes)
            rows["control_values"].append(profile(CONTROL) if controls is None else controls)
            rows["labels"].append(profile(name))
    return Dataset.from_dict({name: np.array(values) for name, values in rows.items()}).with_format("torch")


@with_help
@dataclass
class PerturbationArguments(CellTrainingArguments):
    """Arguments of the Trainer for perturbation models: few profiles, many epochs."""

    per_device_train_batch_size: int = 32
    learning_rate: float = 5e-3
    weight_decay: float = 0.01
    num_train_epochs: float = 40
    logging_strategy: IntervalStrategy | str = "no"
    disable_tqdm: bool | None = True


def fit_perturbation(
    screen: PerturbationScreen,
    train: Sequence[str],
    graphs: GeneGraphs,
    *,
    arguments: PerturbationArguments,
    pairs: Dataset | None = None,
    eval_names: Sequence[str] = (),
    callbacks: Sequence[Any] = (),
    **changes: Any,
) -> Trainer:
    """Train a new model and return its Trainer. The same `arguments.seed` gives the same model.

    The network of an anchored model is trained only if a cross-validation over the training perturbations tells that
    it predicts better than the anchor alone (`training_helps`). Otherwise the model stays as it begins, and the Trainer
    is at step 0.

    Args:
        screen: Perturbed and control cells, from `read_screen`.
        train: Perturbations to train on, such as `gene_split(screen.sets, seed).train`.
        graphs: From `gene_graphs`.
        arguments: The Trainer's.
        pairs: Pairs of profiles of the training perturbations, from `perturbation_pairs`; a pair of mean profiles for
            each perturbation unless given.
        eval_names: Held-out perturbations, on which the loss is evaluated.
        callbacks: Further callbacks of the Trainer.
        **changes: Fields of the configuration, such as `hidden_size` or `anchored`.

    Raises:
        ValueError: If a held-out perturbation is among the training ones, or one is not in the screen.

    Example:
        >>> import pandas as pd
        >>> from anndata import AnnData
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> from xtrimogene.training.perturbation.gene_graphs import gene_graphs
        >>> from xtrimogene.training.perturbation.screens import read_screen
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [4, 1, 0, 1], [0, 3, 0, 2], [2, 2, 1, 0]], columns=tokenizer.genes)
        >>> cells = AnnData(counts.astype("float32"))
        >>> cells.obs["perturbation"] = ["control", "control", "CD3E", "LYZ"]
        >>> screen = read_screen(cells, tokenizer, min_cells=1)
        >>> arguments = PerturbationArguments("run", num_train_epochs=1)
        >>> trainer = fit_perturbation(screen, ["CD3E"], gene_graphs(screen), arguments=arguments, hidden_size=8)
        >>> trainer.state.global_step
        1
    """
    if eval_names:
        PerturbationSplit.of(train, eval_names)  # raises an error if a perturbation is on both sides
    is_trained = not changes.get("anchored") or training_helps(screen, train, graphs, arguments, **changes)
    trainer = perturbation_trainer(screen, train, graphs, arguments, pairs, eval_names, callbacks, **changes)
    if is_trained:
        trainer.train()
    return trainer


def perturbation_trainer(
    screen: PerturbationScreen,
    train: Sequence[str],
    graphs: GeneGraphs,
    arguments: PerturbationArguments,
    pairs: Dataset | None = None,
    eval_names: Sequence[str] = (),
    callbacks: Sequence[Any] = (),
    **changes: Any,
) -> Trainer:
    """Return the Trainer of a new model, before its first step; the arguments are those of `fit_perturbation`."""
    set_seed(arguments.seed)
    trainer = Trainer(
        model=perturbation_model(screen, train, graphs, **changes),
        args=arguments,
        data_collator=default_data_collator,
        train_dataset=perturbation_pairs(screen, train) if pairs is None else pairs,
        eval_dataset=perturbation_pairs(screen, eval_names) if eval_names else None,
        processing_class=screen.tokenizer,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, among the user's results
    return trainer


def training_helps(
    screen: PerturbationScreen,
    train: Sequence[str],
    graphs: GeneGraphs,
    arguments: PerturbationArguments,
    **changes: Any,
) -> bool:
    """Return whether training makes an anchored model predict held-out perturbations better, beyond chance.

    Better is a mean squared error of changes that is lower by more than the standard error of the difference, in a
    cross-validation. With fewer than 3 perturbations it cannot be told.

    Args:
        screen: Perturbed and control cells, from `read_screen`.
        train: Perturbations to train on, some of which are held out in turn.
        graphs: From `gene_graphs`.
        arguments: The Trainer's.
        **changes: Fields of the configuration.

    Example:
        >>> import pandas as pd
        >>> from anndata import AnnData
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> from xtrimogene.training.perturbation.gene_graphs import gene_graphs
        >>> from xtrimogene.training.perturbation.screens import read_screen
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [4, 1, 0, 1], [0, 3, 0, 2], [2, 2, 1, 0]], columns=tokenizer.genes)
        >>> cells = AnnData(counts.astype("float32"))
        >>> cells.obs["perturbation"] = ["control", "control", "CD3E", "LYZ"]
        >>> screen = read_screen(cells, tokenizer, min_cells=1)
        >>> training_helps(screen, ["CD3E", "LYZ"], gene_graphs(screen), PerturbationArguments("run"), anchored=True)
        False
    """
    if len(train) < FOLDS:
        return False
    from sklearn.model_selection import KFold

    quiet = copy(arguments)
    quiet.eval_strategy, quiet.save_strategy, quiet.load_best_model_at_end = IntervalStrategy.NO, SaveStrategy.NO, False
    quiet.report_to = []
    control, gains = screen.profiles([CONTROL])[0], []
    for learned, held in KFold(FOLDS, shuffle=True, random_state=0).split(train):
        names, held_names = ([train[row] for row in rows] for rows in (learned, held))
        trainer = perturbation_trainer(screen, names, graphs, quiet, **changes)
        sets, truth = [screen.sets[name] for name in held_names], screen.profiles(held_names)
        before = predict_profiles(trainer.model, control, sets)
        trainer.train()
        after = predict_profiles(trainer.model, control, sets)
        gains.append(np.mean((before - truth) ** 2 - (after - truth) ** 2, axis=1))
    gain = np.concatenate(gains)
    return bool(gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)))


@torch.inference_mode()
def predict_profiles(model: PerturbationModel, control: np.ndarray, sets: Sequence[Sequence[int]]) -> np.ndarray:
    """Return predicted mean profiles `(B, R)` after perturbations, float32.

    Args:
        model: A trained model, from `fit_perturbation`.
        control: Mean profile of the control cells, `(R,)`.
        sets: Ids of the perturbed genes of each perturbation; `perturbed_genes` gives them for names such as `A+B`.

    Example:
        >>> import pandas as pd
        >>> from anndata import AnnData
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> from xtrimogene.training.perturbation.gene_graphs import gene_graphs
        >>> from xtrimogene.training.perturbation.screens import read_screen
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [4, 1, 0, 1], [0, 3, 0, 2], [2, 2, 1, 0]], columns=tokenizer.genes)
        >>> cells = AnnData(counts.astype("float32"))
        >>> cells.obs["perturbation"] = ["control", "control", "CD3E", "LYZ"]
        >>> screen = read_screen(cells, tokenizer, min_cells=1)
        >>> arguments = PerturbationArguments("run", num_train_epochs=1)
        >>> trainer = fit_perturbation(screen, ["CD3E"], gene_graphs(screen), arguments=arguments, hidden_size=8)
        >>> control = screen.profiles(["control"])[0]
        >>> predict_profiles(trainer.model, control, [screen.sets["LYZ"]]).shape
        (1, 4)
    """
    model.eval()
    ids = torch.from_numpy(pad_right(sets, model.config.pad_token_id, np.int64)).to(model.device)
    values = torch.from_numpy(np.asarray(control, np.float32)).to(model.device).expand(len(ids), -1)
    return model(perturbation_ids=ids, control_values=values).logits.float().cpu().numpy()
