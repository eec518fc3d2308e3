"""Training for drug synergy: tables of scores, drugs and cell lines -> a predictor for pairs of drugs.

    scores      drug_a, drug_b, cell_line, score, fold     read_scores       one row for each pair in each cell line
    drugs       SMILES -> F features                       drug_features     one row for each drug
    cell lines  TPM -> U numbers                           embed_cell_lines  one row for each cell line
        |  splits: by pair, drug or cell line; no test unit occurs in training
        v
    synergy_model, fit_synergy -> XTrimoGeneForDrugSynergy

Source: DeepSynergy (Preuer et al. 2018, Bioinformatics 34:1538).
"""

import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import BatchEncoding, PrinterCallback, Trainer, TrainingArguments

from ..modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from ..modeling_xtrimogene.modeling_xtrimogene import XTrimoGeneModel
from ..modeling_xtrimogene.synergy_xtrimogene import XTrimoGeneForDrugSynergy
from ..tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
from .messages import some
from .trainer import training_arguments

if TYPE_CHECKING:
    import pandas as pd

SplitBy = Literal["pair", "drug", "cell_line"]
Problem = Literal["regression", "single_label_classification"]

MORGAN_RADIUS = 2
FRAGMENT = "morgan2_"  # and the fragment's number, not folded: no two fragments share a column
# Of whole molecules; none fails for the metals and boron of real drugs, as those of partial charges do.
DESCRIPTORS = (
    "MolWt", "MolLogP", "MolMR", "TPSA", "LabuteASA", "FractionCSP3", "BertzCT", "HallKierAlpha", "qed",
    "HeavyAtomCount", "NumValenceElectrons", "NumHeteroatoms", "NumHAcceptors", "NumHDonors", "NHOHCount", "NOCount",
    "NumRotatableBonds", "RingCount", "NumAromaticRings", "NumAliphaticRings", "NumSaturatedRings",
    "NumAromaticHeterocycles", "NumAromaticCarbocycles", "NumAliphaticHeterocycles", "NumSaturatedHeterocycles",
    "Kappa1", "Kappa2", "Kappa3", "Chi0v", "Chi1v",
)  # fmt: skip
TPM_TOTAL = 1e6  # by definition, over all genes: of a part of the genes the sum says nothing of the scale


# -- drugs ------------------------------------------------------------------------------------------------------------


def read_drugs(path: str | os.PathLike, drug_column: str = "drug", smiles_column: str = "smiles") -> dict[str, str]:
    """Return the SMILES of each drug of a CSV or TSV file.

    Raises:
        ValueError: If a column is missing, a drug has no SMILES, or two different ones.
    """
    table = read_table(path, [drug_column, smiles_column])[[drug_column, smiles_column]]
    names = table[drug_column].astype(str)
    without = names[table[smiles_column].isna() | table[drug_column].isna()]
    if len(without):
        raise ValueError(f"{path}: {len(without)} of {len(table)} rows have no name or no SMILES: {some(without)}")
    table = table.drop_duplicates()
    repeated = names[table.index][table[drug_column].duplicated()]
    if len(repeated):
        raise ValueError(f"{path}: {len(repeated)} drugs have more than one SMILES: {some(repeated)}; keep one of each")
    return dict(zip(names[table.index], table[smiles_column], strict=True))


def drug_features(smiles: Mapping[str, str], columns: Sequence[str] | None = None) -> "pd.DataFrame":
    """Return features of drugs: counts of Morgan fragments of radius 2, and descriptors of the whole molecule.

    Args:
        smiles: SMILES of each drug.
        columns: Features to return, such as `config.synergy_drug_features` of a trained model. Unless given,
            `DESCRIPTORS` and the fragments of at least two of these drugs: what one drug alone has says nothing of
            another, and its descriptors tell it apart.

    Returns:
        Float32, one row for each drug and one column for each feature, not standardised.

    Raises:
        ImportError: If rdkit is not installed.
        ValueError: If a SMILES is invalid, or a column is no feature that is known here.
    """
    pandas = importlib.import_module("pandas")
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import Descriptors, rdFingerprintGenerator
    except ImportError as error:
        raise ImportError("features of drugs need rdkit, which is not installed: pip install rdkit") from error

    with rdBase.BlockLogs():
        molecules = {name: Chem.MolFromSmiles(text) if text else None for name, text in smiles.items()}
    invalid = [f"{name} ({smiles[name]!r})" for name, molecule in molecules.items() if molecule is None]
    if invalid or not smiles:
        raise ValueError(f"{len(invalid)} of {len(smiles)} drugs have no valid SMILES: {some(invalid)}")
    morgan = rdFingerprintGenerator.GetMorganGenerator(radius=MORGAN_RADIUS)
    counts = {
        name: {FRAGMENT + str(key): n for key, n in morgan.GetSparseCountFingerprint(it).GetNonzeroElements().items()}
        for name, it in molecules.items()
    }
    if columns is None:
        fragments, num_drugs = np.unique([key for found in counts.values() for key in found], return_counts=True)
        columns = [*DESCRIPTORS, *(str(fragment) for fragment in fragments[num_drugs > 1])]
    unknown = [name for name in columns if not name.startswith(FRAGMENT) and not hasattr(Descriptors, name)]
    if unknown:
        raise ValueError(f"{len(unknown)} of {len(columns)} drug features are not known: {some(unknown)}")
    rows = [
        [
            counts[drug].get(name, 0) if name.startswith(FRAGMENT) else getattr(Descriptors, name)(molecule)
            for name in columns
        ]
        for drug, molecule in molecules.items()
    ]
    features = pandas.DataFrame(np.asarray(rows, np.float32), index=list(smiles), columns=list(columns))
    failed = features.index[~np.isfinite(features).all(axis=1)]
    if len(failed):
        raise ValueError(f"{len(failed)} of {len(features)} drugs have descriptors that are no numbers: {some(failed)}")
    return features


# -- cell lines -------------------------------------------------------------------------------------------------------


def read_expression(path: str | os.PathLike) -> "pd.DataFrame":
    """Return expression in TPM from a CSV or TSV file: one row for each cell line, its name first, a gene a column.

    Raises:
        ValueError: If a value is missing, negative or no number, or a cell line occurs twice.
    """
    table = read_table(path, [])
    table = table.set_index(table.columns[0])
    table.index = table.index.astype(str)
    repeated = table.index[table.index.duplicated()]
    if len(repeated):
        raise ValueError(f"{path}: {len(repeated)} cell lines occur more than once: {some(repeated)}; keep one of each")
    not_numbers = table.columns[[column.dtype.kind not in "iuf" for _, column in table.items()]]
    if len(not_numbers):
        raise ValueError(f"{path}: {len(not_numbers)} of {table.shape[1]} columns hold no numbers: {some(not_numbers)}")
    wrong = table.index[~((table >= 0) & np.isfinite(table)).all(axis=1)]
    if len(wrong):
        raise ValueError(
            f"{path}: {len(wrong)} of {len(table)} cell lines have missing or negative values: {some(wrong)}; give "
            f"TPM, neither logarithms nor z-scores"
        )
    return table


def tokenize_expression(tokenizer: XTrimoGeneTokenizer, expression: "pd.DataFrame") -> BatchEncoding:
    """Return a batch of cell lines: `log1p` of TPM per 10,000 of the genes that are on the panel.

    Args:
        tokenizer: Of the model.
        expression: TPM, from `read_expression`; columns are matched to the panel by any of their names.
    """
    sparse = importlib.import_module("scipy.sparse")
    rows = tokenizer.matcher.match([str(name) for name in expression.columns]).rows
    is_matched = rows >= 0
    panel = np.zeros((len(expression), tokenizer.num_genes), np.float32)
    np.add.at(panel.T, rows[is_matched], expression.to_numpy(np.float32).T[is_matched])
    # Spread over a part of the genes, TPM keep their scale: their total is that of all genes.
    return tokenizer.tokenize_counts(sparse.csr_matrix(panel), np.full(len(panel), TPM_TOTAL))


@torch.inference_mode()
def embed_cell_lines(
    model: XTrimoGeneModel, tokenizer: XTrimoGeneTokenizer, expression: "pd.DataFrame"
) -> "pd.DataFrame":
    """Return the cell embedding of each cell line, one row each; arguments as of `tokenize_expression`.

    Raises:
        ValueError: If a cell line expresses no gene of the panel.
    """
    pandas = importlib.import_module("pandas")
    batch = tokenize_expression(tokenizer, expression)
    empty = expression.index[~batch["attention_mask"].bool().any(1).numpy()]
    if len(empty):
        raise ValueError(
            f"{len(empty)} of {len(expression)} cell lines express no gene of the panel: {some(empty)}; leave them out"
        )
    was_training = model.training
    model.eval()
    # One at a time: there are few, and memory is bounded by the longest.
    parts = [
        model(**{name: part[row : row + 1].to(model.device) for name, part in batch.items()}).pooler_output
        for row in range(len(expression))
    ]
    model.train(was_training)
    return pandas.DataFrame(torch.cat(parts).float().cpu().numpy(), index=expression.index)


# -- scores -----------------------------------------------------------------------------------------------------------


def read_scores(
    path: str | os.PathLike,
    score_column: str,
    fold_column: str | None = None,
    drug_columns: tuple[str, str] = ("drug_a", "drug_b"),
    cell_column: str = "cell_line",
) -> "pd.DataFrame":
    """Return one row for each pair of drugs in each cell line; the drugs of a pair in alphabetical order.

    Args:
        path: CSV or TSV file, one row for each measurement.
        score_column: Column with the score, or with the class as 0 or 1.
        fold_column: Column with the number of the fold, if folds are given.
        drug_columns: Columns with the two drugs, in any order.
        cell_column: Column with the cell line.

    Returns:
        Columns `drug_a`, `drug_b`, `cell_line`, `score`, the mean of repeated measurements, `measurements`, their
        number, `differs`, whether they have different values, and `fold` if there is one. The mean of different
        classes is no class: leave these rows out by `scores[~scores.differs]`.

    Raises:
        ValueError: If a column is missing, a score or a name is missing, a drug is paired with itself, or repeated
            measurements are in different folds.
    """
    columns = [*drug_columns, cell_column, score_column, *([fold_column] if fold_column else [])]
    table = read_table(path, columns)[columns]
    incomplete = table.index[table.isna().any(axis=1)]
    if len(incomplete):
        raise ValueError(
            f"{path}: {len(incomplete)} of {len(table)} measurements lack a name, a score or a fold, first in line "
            f"{incomplete[0] + 2}: remove them or fill them in"
        )
    if table[score_column].dtype.kind not in "iuf" or not np.isfinite(table[score_column]).all():
        raise ValueError(f"{path}: column {score_column!r} holds values that are no finite numbers; is it the score?")
    drugs = np.sort(table[list(drug_columns)].to_numpy(str), axis=1)
    same = drugs[drugs[:, 0] == drugs[:, 1], 0]
    if len(same):
        raise ValueError(f"{path}: {len(same)} measurements pair a drug with itself: {some(same)}; remove them")
    table = table.assign(drug_a=drugs[:, 0], drug_b=drugs[:, 1], cell_line=table[cell_column].astype(str))
    groups = table.groupby(["drug_a", "drug_b", "cell_line"], sort=True)
    scores = groups[score_column].agg(score="mean", measurements="size").reset_index()
    scores["differs"] = (groups[score_column].min() != groups[score_column].max()).to_numpy()
    if fold_column:
        folds = groups[fold_column].agg(["min", "max"])
        if (mixed := (folds["min"] != folds["max"])).any():
            raise ValueError(
                f"{path}: repeated measurements of {mixed.sum()} pairs are in different folds, first "
                f"{' + '.join(mixed.index[mixed][0][:2])} in {mixed.index[mixed][0][2]}: put each pair into one fold"
            )
        scores["fold"] = folds["min"].to_numpy()
    return scores


def describe_scores(scores: "pd.DataFrame") -> str:
    """Return in one line what `read_scores` found, and what it made of repeated measurements."""
    repeated = scores.measurements[scores.measurements > 1]
    different = scores.differs.sum()
    return (
        f"{scores.measurements.sum():,} measurements of {len(scores.groupby(['drug_a', 'drug_b'])):,} pairs of "
        f"{len(set(scores.drug_a) | set(scores.drug_b))} drugs in {scores.cell_line.nunique()} cell lines; "
        f"{repeated.sum():,} repeated ones became {len(repeated):,}, {len(repeated) - different:,} of equal values and "
        f"{different:,} the mean of different ones: {len(scores):,} scores"
    )


def named_scores(scores: "pd.DataFrame") -> list[str]:
    """Return what each row is of, as `drug_a + drug_b in cell_line`."""
    return [f"{a} + {b} in {cell}" for a, b, cell in zip(scores.drug_a, scores.drug_b, scores.cell_line, strict=True)]


# -- splits -----------------------------------------------------------------------------------------------------------


def splits(
    scores: "pd.DataFrame", by: SplitBy, num_folds: int = 5, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each fold the rows to train on and those to test on.

    By `pair`, a test pair is in no cell line of training; by `drug`, each test pair has a drug that training has not;
    by `cell_line`, training has no test cell line.

    Args:
        scores: From `read_scores`. If it has folds and the split is by pair, they are taken.
        by: What is new in the test.
        num_folds: Number of folds, where none are given.
        seed: Seed of the folds.

    Raises:
        ValueError: If there are too few pairs, drugs or cell lines, or given folds leak (`check_split`).
    """
    units = units_of(scores, by)
    if by == "pair" and "fold" in scores:
        is_test_of = [(scores.fold == fold).to_numpy() for fold in sorted(set(scores.fold))]
    else:
        names = sorted(set().union(*units))
        if not 2 <= num_folds <= len(names):
            raise ValueError(f"num_folds is {num_folds}: there are {len(names)} to split by {by}; give 2 ... that many")
        order = np.random.default_rng(seed).permutation(len(names))
        groups = [{names[index] for index in part} for part in np.array_split(order, num_folds)]
        is_test_of = [np.array([not group.isdisjoint(unit) for unit in units]) for group in groups]
    found = [(np.flatnonzero(~is_test), np.flatnonzero(is_test)) for is_test in is_test_of]
    for train, test in found:
        check_split(scores.iloc[train], scores.iloc[test], by)
    return found


def units_of(scores: "pd.DataFrame", by: SplitBy) -> list[set[Any]]:
    """Return what each row has of what is split by: its pair (in no order), its two drugs, or its cell line."""
    pairs = list(zip(scores.drug_a, scores.drug_b, strict=True))
    kinds: dict[str, Callable[[], list[set[Any]]]] = {
        "pair": lambda: [{(min(pair), max(pair))} for pair in pairs],
        "drug": lambda: [set(pair) for pair in pairs],
        "cell_line": lambda: [{name} for name in scores.cell_line],
    }
    if by not in kinds:
        raise ValueError(f"by is {by!r}: give {', '.join(get_args(SplitBy))}")
    return kinds[by]()


def new_units(train: "pd.DataFrame", test: "pd.DataFrame", by: SplitBy) -> list[Any]:
    """Return for each test row what is new in it, the first of its two drugs that is; None where nothing is."""
    known = set().union(*units_of(train, by))
    return [min(unit - known, default=None) for unit in units_of(test, by)]


def check_split(train: "pd.DataFrame", test: "pd.DataFrame", by: SplitBy) -> None:
    """Refuse a split that leaks.

    Raises:
        ValueError: If one side is empty, or a test pair (in either order) or a test cell line occurs in training, or a
            test pair has no drug that training has not.
    """
    if train.empty or test.empty:
        raise ValueError(f"the split by {by} has {len(train)} scores to train on and {len(test)} to test on: give both")
    is_leaked = [new is None for new in new_units(train, test, by)]
    if any(is_leaked):
        leaked = test[is_leaked]
        what = {
            "pair": [f"{a} + {b}" for a, b in zip(leaked.drug_a, leaked.drug_b, strict=True)],
            "drug": [f"{a} + {b}, both known" for a, b in zip(leaked.drug_a, leaked.drug_b, strict=True)],
            "cell_line": list(leaked.cell_line),
        }[by]
        names = sorted(set(what))
        raise ValueError(
            f"the split by {by} leaks: of {len(test)} test scores {len(leaked)} have nothing that is new to the "
            f"{len(train)} training scores; {len(names)} {by.replace('_', ' ')}s, such as {some(names)}: "
            f"make the split with splits(scores, by={by!r})"
        )


# -- training ---------------------------------------------------------------------------------------------------------


class SynergyDataset(Dataset):
    """Scores with the features of their drugs and cell lines, as batches of `XTrimoGeneForDrugSynergy`.

    Args:
        scores: From `read_scores`, or any table with `drug_a`, `drug_b` and `cell_line`; without `score` there are no
            labels.
        drugs: From `drug_features`.
        cell_lines: Embeddings or other features, one row for each cell line.
        problem: Whether scores are numbers, or classes 0 and 1.

    Raises:
        ValueError: If drugs or cell lines have no features, or features or classes are no numbers they may be.
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
                    f"{len(unknown)} of {len(set(names))} {kind} of the scores have no features: {some(unknown)}; "
                    f"{advice}, or leave these scores out, e.g. scores[scores.cell_line.isin(cell_lines.index)]"
                )
            wrong = table.index[~np.isfinite(table.to_numpy(np.float32)).all(axis=1)]
            if len(wrong):
                raise ValueError(f"features of {len(wrong)} of {len(table)} {kind} are no numbers: {some(wrong)}")
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
        """Return the batch of these rows; the loader of torch asks for a whole batch where it can."""
        chosen = torch.as_tensor(rows)
        batch = {
            "drug_a": self.drug_rows[self.drug_a[chosen]],
            "drug_b": self.drug_rows[self.drug_b[chosen]],
            "cell_embeddings": self.cell_rows[self.cells[chosen]],
        }
        return batch if self.labels is None else batch | {"labels": self.labels[chosen]}


def synergy_model(
    checkpoint: str | os.PathLike | XTrimoGeneConfig,
    drug_columns: Sequence[str],
    problem: Problem = "regression",
    seed: int = 0,
    **changes: Any,
) -> XTrimoGeneForDrugSynergy:
    """Return a synergy model on top of a pre-trained checkpoint, or a new one for a configuration.

    Args:
        checkpoint: Folder or Hub name of a pre-trained model; or a configuration.
        drug_columns: Names of the drug features, the columns of `drug_features`.
        problem: Numbers, or two classes.
        seed: Seed of the new weights.
        **changes: Other fields of the configuration, such as `synergy_cell_features` for a model without encoder.
    """
    changes |= {
        "synergy_drug_features": [str(name) for name in drug_columns],
        "problem_type": problem,
        "num_labels": 1 if problem == "regression" else 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if isinstance(checkpoint, XTrimoGeneConfig):
            kept = {k: v for k, v in checkpoint.to_dict().items() if k not in ("id2label", "label2id")}
            return XTrimoGeneForDrugSynergy(XTrimoGeneConfig(**{**kept, **changes}))
        return XTrimoGeneForDrugSynergy.from_pretrained(checkpoint, **changes)


def synergy_arguments(output_dir: str | Path, **changes: Any) -> TrainingArguments:
    """Return the Trainer's arguments for synergy: many small steps of a small network.

    Epochs and dropout (0.1) were chosen on pairs held out of the training pairs of O'Neil's fold 0: the squared error
    was 390, with 20 epochs 409, with dropout 0.3 400.
    """
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 256,
        "per_device_eval_batch_size": 4096,
        "num_train_epochs": 30,
        "learning_rate": 1e-3,
        "weight_decay": 1e-2,
        "logging_strategy": "epoch",
    }
    return training_arguments(output_dir, **{**defaults, **changes})


def fit_synergy(
    model: XTrimoGeneForDrugSynergy,
    scores: "pd.DataFrame",
    drugs: "pd.DataFrame",
    cell_lines: "pd.DataFrame",
    *,
    arguments: TrainingArguments,
    eval_scores: "pd.DataFrame | None" = None,
    callbacks: Iterable[Any] = (),
) -> Trainer:
    """Train `model` in place and return its Trainer; the same data and seed give the same weights.

    Inputs and scores are standardised on what is trained on. The encoder stays as it is: each cell line is embedded
    once, before.

    Args:
        model: From `synergy_model`.
        scores: From `read_scores`, to train on.
        drugs: From `drug_features`.
        cell_lines: From `embed_cell_lines` with the same checkpoint, or the features of `synergy_cell_features`.
        arguments: From `synergy_arguments`.
        eval_scores: Scores to evaluate on.
        callbacks: Further callbacks of the Trainer.

    Raises:
        ValueError: See `SynergyDataset`; or if the features are not those that the model takes.
    """
    problem = model.config.problem_type
    if list(drugs.columns) != model.config.synergy_drug_features:
        raise ValueError(
            f"drugs has {drugs.shape[1]} features and the model takes {model.synergy.drug_sum.in_features}, or others: "
            f"make them with drug_features(smiles, model.config.synergy_drug_features)"
        )
    num_cell_features = model.config.synergy_cell_features or model.config.pooled_size
    if cell_lines.shape[1] != num_cell_features:
        raise ValueError(
            f"cell_lines has {cell_lines.shape[1]} columns and the model takes {num_cell_features}: make them with "
            f"embed_cell_lines and the checkpoint of the model, or set synergy_cell_features={cell_lines.shape[1]}"
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
        data_collator=lambda batch: batch,  # the data set gives whole batches
        train_dataset=train_dataset,
        eval_dataset=None if eval_scores is None else SynergyDataset(eval_scores, drugs, cell_lines, problem),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # stdout is for the user's results
    trainer.train()
    return trainer


# -- files ------------------------------------------------------------------------------------------------------------


def read_table(path: str | os.PathLike, columns: Sequence[str]) -> "pd.DataFrame":
    """Return a CSV or TSV file that has the given columns.

    Raises:
        ValueError: If columns are missing, or there are no rows.
    """
    pandas = importlib.import_module("pandas")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist: give a .csv or .tsv file")
    table = pandas.read_csv(path, sep="\t" if ".tsv" in Path(path).suffixes else ",")
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(f"{path} has no column {some(missing)}; there are {some(table.columns)}: name the right one")
    if table.empty:
        raise ValueError(f"{path} has no rows")
    return table
