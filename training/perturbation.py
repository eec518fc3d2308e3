"""Learn what perturbing genes does: a screen of perturbed cells -> profiles, splits, graphs -> a trained model.

    cells, obs["perturbation"]  ->  read_screen        mean profile of each perturbation, and of control cells
    perturbations               ->  gene_split, doubles_split
    pairs or sets of genes      ->  read_relations     genes x sets
    screen, relations, checkpoint  ->  gene_graphs     co-expression graph, relation graph, features of the genes
    screen, graphs, perturbations to train on  ->  fit_perturbation

Letters: C cells, P perturbations, R measured genes (columns of the screen that are on the panel), G genes of the panel,
N genes of the graphs, F features of a gene, S sets of related genes.
"""

import gzip
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy import sparse
from transformers import PrinterCallback, Trainer, TrainingArguments, default_data_collator, set_seed

from ..modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from ..modeling_xtrimogene.modeling_xtrimogene import XTrimoGeneModel
from ..modeling_xtrimogene.perturbation_xtrimogene import XTrimoGeneForPerturbationPrediction
from ..tokenization.panel_xtrimogene import WHOLE_TRANSCRIPTOME
from ..tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
from .messages import some
from .trainer import training_arguments

CONTROL = "control"
CONTROL_NAMES = {CONTROL, "ctrl", "non-targeting"}  # by themselves, or beside a gene as GEARS writes: GENE+ctrl
# GEARS: genes whose expression correlates by at least 0.4 in control cells, and at most 20 neighbours in both graphs.
MIN_CORRELATION = 0.4
MAX_NEIGHBOURS = 20
MAX_CONTROL_CELLS = 300  # whose context embeddings are averaged
CELLS_AT_A_TIME, GENES_AT_A_TIME = 8, 1000  # all correlations of a whole transcriptome would fill the memory


# -- screens ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PerturbationScreen:
    """A screen on a panel: cells by perturbation, and mean profiles.

    Attributes:
        tokenizer: Of the panel.
        gene_ids: Panel ids of the measured genes, ascending. Shape `(R,)`.
        sets: Perturbed genes by the name of the perturbation: panel names in alphabetical order, joined by `+`.
        values: `log1p` of counts per 10,000. CSR of shape `(C, R)`.
        labels: Perturbation of each cell, `control` for control cells. Shape `(C,)`.
        control_counts: Raw counts of the control cells on the panel, CSR `(cells, G)`, and their totals `(cells,)`.
    """

    tokenizer: XTrimoGeneTokenizer
    gene_ids: np.ndarray
    sets: dict[str, tuple[int, ...]]
    values: sparse.csr_matrix
    labels: np.ndarray
    control_counts: tuple[sparse.csr_matrix, np.ndarray]

    @property
    def genes(self) -> list[str]:
        """Names of the measured genes."""
        return [self.tokenizer.genes[index] for index in self.gene_ids]

    def cells(self, name: str) -> sparse.csr_matrix:
        """Return the cells of a perturbation, or of `control`, `(cells, R)`.

        Raises:
            ValueError: If there is no such perturbation.
        """
        if name != CONTROL and name not in self.sets:
            raise ValueError(
                f"the screen has no perturbation {name!r} among its {len(self.sets)} ({some(self.sets)}): "
                f"names are panel genes in alphabetical order, joined by +"
            )
        return self.values[self.labels == name]

    def profiles(self, names: Sequence[str]) -> np.ndarray:
        """Return mean profiles of perturbations (or of `control`), float32 `(len(names), R)`."""
        means = [np.asarray(self.cells(name).mean(axis=0, dtype=np.float64)).ravel() for name in names]
        return np.array(means, np.float32).reshape(len(means), len(self.gene_ids))

    def top_genes(self, name: str, number: int = 20) -> np.ndarray:
        """Return the columns of the genes that differ most from control, by Welch's |t| over cells, largest first.

        Source: GEARS, which takes scanpy's `rank_genes_groups` with `rankby_abs`.
        """
        means, errors = [], []
        for cells in (self.cells(name), self.cells(CONTROL)):
            mean = np.asarray(cells.mean(axis=0, dtype=np.float64)).ravel()
            squares = np.asarray(cells.multiply(cells).mean(axis=0, dtype=np.float64)).ravel()
            number_of_cells = cells.shape[0]
            means.append(mean)
            errors.append(np.maximum(squares - mean**2, 0) / max(number_of_cells - 1, 1))
        error = np.sqrt(errors[0] + errors[1])
        t = np.divide(np.abs(means[0] - means[1]), error, out=np.zeros_like(error), where=error > 1e-12)
        return np.argsort(-t, kind="stable")[:number]


def read_screen(
    adata: Any,
    tokenizer: XTrimoGeneTokenizer,
    perturbation_key: str = "perturbation",
    total_key: str | None = None,
    min_cells: int = 10,
    **where: Any,
) -> PerturbationScreen:
    """Read a screen.

    Args:
        adata: Cells of one kind; others have other control cells, and are screens of their own.
        tokenizer: Of the panel.
        perturbation_key: Column of `obs` with `GENE`, `A+B`, `control`; also `GENE+ctrl` and `ctrl+GENE` as GEARS
            writes. Genes by any of their names.
        total_key: Column of `obs` with the total counts of each cell over all genes, where `adata` has lost some; the
            sum over its columns unless given.
        min_cells: Fewest cells whose mean is taken for a profile.
        **where: `layer`, `gene_names`, `gene_column` of `XTrimoGeneTokenizer.read_counts`.

    Raises:
        ValueError: If the column is missing or has empty names, perturbed genes are not on the panel, a gene stands
            twice in a name, there are no control cells or no perturbed ones, perturbations have too few cells, or
            cells have no counts.

    Warns:
        If there are fewer than 8,000 columns and no `total_key`.
    """
    if perturbation_key not in adata.obs:
        raise ValueError(
            f"obs has no column {perturbation_key!r}, only {', '.join(map(str, adata.obs.columns)) or 'none at all'}: "
            f"pass perturbation_key="
        )
    named, inverse = np.unique(
        adata.obs[perturbation_key].astype(object).where(adata.obs[perturbation_key].notna(), "").astype(str),
        return_inverse=True,
    )
    sets = perturbed_genes(named.tolist(), tokenizer, perturbation_key)
    canonical = {name: "+".join(sorted(tokenizer.genes[gene] for gene in genes)) or CONTROL for name, genes in sets}
    labels = np.array([canonical[name] for name in named])[inverse]
    by_name = dict(sorted((canonical[name], genes) for name, genes in sets if genes))
    names, sizes = np.unique(labels, return_counts=True)
    if CONTROL not in names or len(names) == 1:
        what = "control cells" if CONTROL not in names else "perturbed cells"
        raise ValueError(
            f"obs[{perturbation_key!r}] names no {what} among {len(labels):,} cells ({', '.join(names[:5])}): "
            f"control cells are called {', '.join(sorted(CONTROL_NAMES))}; both kinds are needed"
        )
    if few := [f"{name} ({size})" for name, size in zip(names, sizes, strict=True) if size < min_cells]:
        raise ValueError(
            f"{len(few)} of {len(names)} perturbations have fewer than {min_cells} cells: {some(few)}; their means "
            f"say little: leave these cells out, or pass a smaller min_cells"
        )

    cells = tokenizer.read_counts(adata, **where)
    counts, totals = cells.read()
    if total_key is not None:
        if total_key not in adata.obs:
            raise ValueError(f"obs has no column {total_key!r}, only {', '.join(map(str, adata.obs.columns))}")
        whole = adata.obs[total_key].to_numpy(np.float64)
        if not (whole >= totals).all():  # also where it is missing
            raise ValueError(
                f"obs[{total_key!r}] is missing or smaller than the sum of the columns in "
                f"{(~(whole >= totals)).sum():,} of {len(totals):,} cells: it is no total over all genes"
            )
        totals = whole
    elif adata.n_vars < WHOLE_TRANSCRIPTOME:
        warnings.warn(
            f"the screen has {adata.n_vars:,} columns, and counts are taken per 10,000 of theirs: if genes were left "
            f"out, give total_key, the column of obs with the total over all genes",
            stacklevel=2,
        )
    if num_empty := int((np.diff(counts.indptr) == 0).sum()):
        raise ValueError(
            f"{num_empty:,} of {len(totals):,} cells have no counts on the panel, and would pull means to 0: remove "
            f"them, e.g. scanpy.pp.filter_cells(adata, min_counts=1)"
        )
    gene_ids = np.unique(cells.match.rows[cells.match.rows >= 0])
    values = counts[:, gene_ids]
    values.data = tokenizer.normalize(values.data, np.repeat(totals, np.diff(values.indptr)))
    is_control = labels == CONTROL
    return PerturbationScreen(tokenizer, gene_ids, by_name, values, labels, (counts[is_control], totals[is_control]))


def perturbed_genes(
    names: Sequence[str], tokenizer: XTrimoGeneTokenizer, where: str = "perturbations"
) -> list[tuple[str, tuple[int, ...]]]:
    """Return each name with the ids of its genes, ascending; none for control.

    Raises:
        ValueError: If names are empty, genes are not on the panel, or a gene stands twice in a name.
    """
    parts = [[part.strip() for part in name.split("+")] for name in names]
    if broken := [repr(name) for name, split in zip(names, parts, strict=True) if not all(split)]:
        raise ValueError(
            f"{where}: {len(broken)} of {len(names)} names are empty or have an empty part: {some(broken)}; write "
            f"GENE, A+B or control, or leave these cells out"
        )
    parts = [[part for part in split if part.lower() not in CONTROL_NAMES] for split in parts]
    genes = sorted(set(chain.from_iterable(parts)))
    rows = dict(zip(genes, tokenizer.matcher.match(genes, min_share=0.0).rows.tolist(), strict=True)) if genes else {}
    if unknown := [gene for gene in genes if rows[gene] < 0]:
        raise ValueError(
            f"{where}: {len(unknown)} of {len(genes)} perturbed genes are not among the {tokenizer.num_genes:,} genes "
            f"of the panel: {some(unknown)}; leave their cells out, or correct the names"
        )
    sets = [tuple(sorted(rows[part] for part in split)) for split in parts]
    if twice := [name for name, genes in zip(names, sets, strict=True) if len(set(genes)) < len(genes)]:
        raise ValueError(f"{where}: {len(twice)} names have a gene twice: {some(twice)}; name each gene once")
    return list(zip(names, sets, strict=True))


# -- splits -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PerturbationSplit:
    """Perturbations to train on and to test on.

    Attributes:
        train: Perturbations to train on.
        test: Kind of each perturbation to test on: `single`, or of several genes `seen0`, `seen1`, `seen2`, ..., by how
            many of its genes any training perturbation has.

    Raises:
        ValueError: If a test perturbation is among the training ones, in whatever order its genes are named, or one of
            the sides is empty.
    """

    train: tuple[str, ...]
    test: dict[str, str]

    def __post_init__(self) -> None:
        trained = {frozenset(name.split("+")) for name in self.train}
        if leaked := [name for name in self.test if frozenset(name.split("+")) in trained]:
            raise ValueError(
                f"{len(leaked)} of {len(self.test)} test perturbations are among the {len(self.train)} training ones: "
                f"{some(leaked)}; a test on them would say nothing"
            )
        if not (self.train and self.test):
            raise ValueError(
                f"a split with {len(self.train)} training and {len(self.test)} test perturbations: both sides need one"
            )

    @classmethod
    def of(cls, train: Iterable[str], test: Iterable[str]) -> "PerturbationSplit":
        """Return the split with the kind of each test perturbation."""
        train = tuple(train)
        seen = set(chain.from_iterable(name.split("+") for name in train))
        genes = {name: name.split("+") for name in test}
        kinds = {name: "single" if len(own) == 1 else f"seen{len(seen & set(own))}" for name, own in genes.items()}
        return cls(train, kinds)


def gene_split(names: Iterable[str], seed: int, test_share: float = 0.25) -> PerturbationSplit:
    """Split by genes: a share of the genes is in no training perturbation.

    Tested on are all perturbations of these genes and, of those of several other genes, the same share (at least one).

    Args:
        names: Perturbations of a screen, `PerturbationScreen.sets`.
        seed: Seed.
        test_share: Share of genes, and of perturbations of several known genes.

    Source: GEARS, split `simulation`. There, genes are called seen that may be; here, those that are, since a screen
    need not have a single perturbation of every gene.
    """
    rng = np.random.default_rng(seed)
    names = sorted(names)
    genes = sorted(set(chain.from_iterable(name.split("+") for name in names)))
    unseen = set(rng.permutation(genes)[: max(round(test_share * len(genes)), 1)])
    known = [name for name in names if unseen.isdisjoint(name.split("+"))]
    several = [name for name in known if "+" in name]
    drawn = set(rng.permutation(several)[: max(round(test_share * len(several)), 1)]) if several else set()
    train = [name for name in known if name not in drawn]
    return PerturbationSplit.of(train, [name for name in names if name not in set(train)])


def doubles_split(names: Iterable[str]) -> PerturbationSplit:
    """Train on all perturbations of one gene and test on all of several."""
    names = sorted(names)
    return PerturbationSplit.of((name for name in names if "+" not in name), (name for name in names if "+" in name))


# -- graphs and features ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GeneGraphs:
    """What is known of the genes before any perturbation.

    Attributes:
        gene_ids: Panel ids: measured genes first, in the order of the screen, then perturbed ones and their partners.
            Shape `(N,)`.
        expression: Co-expression in control cells, among measured genes; rows sum to 1. CSR `(N, N)`.
        relations: Relations; rows sum to 1. CSR `(N, N)`.
        features: Features of the genes, `(N, F)`; None to learn them from scratch.
    """

    gene_ids: np.ndarray
    expression: sparse.csr_matrix
    relations: sparse.csr_matrix
    features: np.ndarray | None = None


def gene_graphs(
    screen: PerturbationScreen,
    checkpoint: str | os.PathLike | None = None,
    relations: sparse.csr_matrix | None = None,
    further_genes: Sequence[str] = (),
    device: str = "cpu",
) -> GeneGraphs:
    """Return graphs and features of the genes of a screen; nothing but control cells is looked at.

    Args:
        screen: The screen.
        checkpoint: Folder or Hub name of a pre-trained model with a decoder; without it features are learned.
        relations: Related genes, from `read_relations`; none unless given.
        further_genes: Genes to predict perturbations of, beside those that the screen perturbs or measures.
        device: Where the checkpoint runs.

    Raises:
        ValueError: If further genes are not on the panel, or the checkpoint has another panel or no decoder.
    """
    further = chain.from_iterable(
        ids for _, ids in perturbed_genes(list(further_genes), screen.tokenizer, "further_genes")
    )
    perturbed = np.unique([*chain.from_iterable(screen.sets.values()), *further])
    wanted = perturbed
    if relations is not None:
        every = np.arange(relations.shape[0])
        wanted = np.union1d(perturbed, every[related(relations, perturbed, every).indices])
    gene_ids = np.concatenate([screen.gene_ids, np.setdiff1d(wanted, screen.gene_ids)])
    expression = coexpression(screen.cells(CONTROL))
    expression.resize(len(gene_ids), len(gene_ids))
    empty = sparse.csr_matrix((len(gene_ids), len(gene_ids)), dtype=np.float32)
    return GeneGraphs(
        gene_ids,
        expression,
        empty if relations is None else related(relations, gene_ids, gene_ids),
        None if checkpoint is None else context_features(checkpoint, screen, gene_ids, device),
    )


def coexpression(values: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return each gene's closest ones by |Pearson correlation| over cells `(cells, R)`, weighted by it; `(R, R)`.

    Source: GEARS.
    """
    dense = values.toarray().astype(np.float64)
    dense -= dense.mean(axis=0)
    norms = np.linalg.norm(dense, axis=0)
    dense = np.divide(dense, norms, out=np.zeros_like(dense), where=norms > 1e-9)
    blocks = []
    for start in range(0, dense.shape[1], GENES_AT_A_TIME):
        strength = np.abs(dense[:, start : start + GENES_AT_A_TIME].T @ dense)
        strength[np.arange(len(strength)), start + np.arange(len(strength))] = 0
        strength[strength < MIN_CORRELATION] = 0
        blocks.append(closest(sparse.csr_matrix(strength)))
    return sparse.csr_matrix(sparse.vstack(blocks))


def related(relations: sparse.csr_matrix, rows: np.ndarray, columns: np.ndarray) -> sparse.csr_matrix:
    """Return the closest of `columns` for each of `rows`, by the Jaccard index of the sets they are in.

    An edge list is a list of sets of two: partners with few others are then closest.

    Source: GEARS, which compares genes by their gene-ontology terms in this way.
    """
    shared = sparse.coo_matrix(relations[rows] @ relations[columns].T)
    sizes = np.asarray(relations.sum(axis=1)).ravel()
    united = sizes[rows[shared.row]] + sizes[columns[shared.col]] - shared.data
    is_other = rows[shared.row] != columns[shared.col]
    index = (shared.row[is_other], shared.col[is_other])
    return closest(sparse.csr_matrix(((shared.data / united)[is_other], index), shape=shared.shape))


def closest(strength: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return the `MAX_NEIGHBOURS` largest of each row, divided by their sum, as float32."""
    strength.eliminate_zeros()
    strength.sort_indices()
    rows, columns, weights = [], [], []
    for row in range(strength.shape[0]):
        own = slice(strength.indptr[row], strength.indptr[row + 1])
        kept = np.argsort(-strength.data[own], kind="stable")[:MAX_NEIGHBOURS]
        rows.append(np.full(len(kept), row))
        columns.append(strength.indices[own][kept])
        weights.append(strength.data[own][kept] / max(strength.data[own][kept].sum(), 1e-12))
    parts = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_matrix(parts, shape=strength.shape, dtype=np.float32)


def read_relations(files: Sequence[str | os.PathLike], tokenizer: XTrimoGeneTokenizer) -> sparse.csr_matrix:
    """Read related genes.

    Args:
        files: Edge lists, a pair of genes a line, separated by a comma or tab (further columns are not read; a header
            is no pair of genes); or gene sets, `.gmt`. Each may be gzipped. Genes outside of the panel are left out.
        tokenizer: Of the panel.

    Returns:
        Which gene is in which pair or set, 0/1, CSR `(G, S)`.

    Raises:
        ValueError: If a file is empty, no such list, or has no pair on the panel.
    """
    members: list[list[str]] = []
    bounds = []
    for file in map(Path, files):
        opener = gzip.open if file.suffix == ".gz" else open
        with opener(file, "rt", encoding="utf-8") as lines:
            rows = [line.rstrip("\r\n") for line in lines]
        if ".gmt" in file.suffixes:
            found = [row.split("\t")[2:] for row in rows]
        else:
            found = [re.split(r"[,\t]", row)[:2] for row in rows]
        members += [[name.strip() for name in names if name.strip()] for names in found]
        bounds.append((file, len(members)))
    names = sorted(set(chain.from_iterable(members)))
    if not names:
        raise ValueError(f"{some(file for file, _ in bounds) or 'no file'}: no line names a gene")
    ids = dict(zip(names, tokenizer.matcher.match(names, min_share=0.0).rows.tolist(), strict=True))
    sets = [sorted({ids[name] for name in group if ids[name] >= 0}) for group in members]
    begin = 0
    for file, end in bounds:
        if not any(len(group) > 1 for group in sets[begin:end]):
            raise ValueError(
                f"{file} has {end - begin} lines and none with two genes of the panel: a line is a pair of gene names "
                f"separated by a comma or tab, or a set as in .gmt"
            )
        begin = end
    sets = [group for group in sets if len(group) > 1]
    column = np.repeat(np.arange(len(sets)), [len(group) for group in sets])
    row = np.array([*chain.from_iterable(sets)])
    return sparse.csr_matrix((np.ones(len(row)), (row, column)), shape=(tokenizer.num_genes, len(sets)))


@torch.inference_mode()
def context_features(
    checkpoint: str | os.PathLike, screen: PerturbationScreen, gene_ids: np.ndarray, device: str = "cpu"
) -> np.ndarray:
    """Return the decoder's embedding of each gene, averaged over control cells, then standardised; float32 `(N, E)`.

    Features have mean 0 over genes, since what all genes share is large and says nothing about a gene, and each gene
    has the same length, since a few expressed genes would otherwise outweigh all others.

    Source: arXiv:2311.15156, section 4, where context embeddings are the node features of GEARS.
    """
    model = XTrimoGeneModel.from_pretrained(checkpoint).eval().to(device)
    tokenizer = screen.tokenizer
    theirs = (model.config.num_genes, model.config.depth_tokens)
    if theirs != (tokenizer.num_genes, tokenizer.depth_tokens):
        raise ValueError(
            f"{checkpoint} has {theirs[0]:,} genes and depth_tokens={theirs[1]}, the screen was read with "
            f"{tokenizer.num_genes:,} and {tokenizer.depth_tokens}: read it with the tokenizer of the checkpoint"
        )
    counts, totals = screen.control_counts
    chosen = np.random.default_rng(0).permutation(len(totals))[:MAX_CONTROL_CELLS]
    ids = torch.from_numpy(gene_ids).long().to(device)
    total = torch.zeros(len(gene_ids), model.config.decoder_hidden_size, dtype=torch.float64, device="cpu")
    for start in range(0, len(chosen), CELLS_AT_A_TIME):
        rows = chosen[start : start + CELLS_AT_A_TIME]
        batch = tokenizer.tokenize_counts(counts[rows], totals[rows]).to(device)
        total += model.contextual_gene_embeddings(**batch, gene_ids=ids).sum(0).double().cpu()
    features = (total / len(chosen)).numpy()
    features = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    lengths = np.sqrt(np.mean(features**2, axis=1, keepdims=True))
    return (features / np.maximum(lengths, 1e-6)).astype(np.float32)


# -- training ---------------------------------------------------------------------------------------------------------


def perturbation_model(
    screen: PerturbationScreen, train: Sequence[str], graphs: GeneGraphs, **changes: Any
) -> XTrimoGeneForPerturbationPrediction:
    """Return a new model for the genes of `graphs`, which predicts the mean change of the training perturbations.

    Args:
        screen: The screen.
        train: Perturbations to train on.
        graphs: From `gene_graphs`.
        **changes: Other fields of the configuration, such as `perturbation_hidden_size`.
    """
    expression, relations = sparse.coo_matrix(graphs.expression), sparse.coo_matrix(graphs.relations)
    sizes: dict[str, Any] = {
        "num_genes": screen.tokenizer.num_genes,
        "depth_tokens": screen.tokenizer.depth_tokens,
        "perturbation_num_nodes": len(graphs.gene_ids),
        "perturbation_num_measured": len(screen.gene_ids),
        "perturbation_num_expression_edges": expression.nnz,
        "perturbation_num_relation_edges": relations.nnz,
        "perturbation_features": "learned",
    }
    if graphs.features is not None:
        sizes |= {"perturbation_features": "pretrained", "perturbation_feature_size": graphs.features.shape[1]}
    model = XTrimoGeneForPerturbationPrediction(XTrimoGeneConfig(**{**sizes, **changes}))
    with torch.no_grad():
        model.gene_ids.copy_(torch.from_numpy(graphs.gene_ids))
        if graphs.features is not None:
            model.features.copy_(torch.from_numpy(graphs.features))
        for name, graph in (("expression", expression), ("relation", relations)):
            edges = np.stack([graph.row, graph.col]).astype(np.int64)
            getattr(model, f"{name}_edges").copy_(torch.from_numpy(edges))
            getattr(model, f"{name}_weights").copy_(torch.from_numpy(graph.data))
        changes_PR = screen.profiles(train) - screen.profiles([CONTROL])
        model.mean_change.copy_(torch.from_numpy(changes_PR.mean(axis=0)))
        model.change_scale.copy_(torch.from_numpy(changes_PR.std(axis=0)))
    return model


def padded_sets(sets: Sequence[Sequence[int]], pad_token_id: int) -> np.ndarray:
    """Return sets of gene ids as rows, padded to the largest; int64 `(B, K)`."""
    longest = max([1, *map(len, sets)])
    return np.array([[*genes, *[pad_token_id] * (longest - len(genes))] for genes in sets], np.int64)


def perturbation_pairs(
    screen: PerturbationScreen,
    names: Sequence[str],
    cells: int | None = None,
    repeats: int = 1,
    seed: int = 0,
) -> Dataset:
    """Return pairs of a control and a perturbed profile, columns `perturbation_ids`, `control_values`, `labels`.

    Args:
        screen: The screen.
        names: Perturbations.
        cells: Mean of so many cells of either side, drawn with replacement; mean of all cells unless given.
        repeats: Pairs for each perturbation; more than one is of use with `cells`.
        seed: Draws cells.
    """
    rng = np.random.default_rng(seed)

    def profile(name: str) -> np.ndarray:
        own = screen.cells(name)
        drawn = own if cells is None else own[rng.integers(own.shape[0], size=cells)]
        return np.asarray(drawn.mean(axis=0, dtype=np.float64), np.float32).ravel()

    ids = padded_sets([screen.sets[name] for name in names], screen.tokenizer.pad_token_id)
    # One after the other: the profiles of all cells would be made anew for each pair.
    controls = profile(CONTROL) if cells is None else None
    rows: dict[str, list[np.ndarray]] = {"perturbation_ids": [], "control_values": [], "labels": []}
    for _ in range(repeats):
        for name, genes in zip(names, ids, strict=True):
            rows["perturbation_ids"].append(genes)
            rows["control_values"].append(profile(CONTROL) if controls is None else controls)
            rows["labels"].append(profile(name))
    return Dataset.from_dict({name: np.array(values) for name, values in rows.items()}).with_format("torch")


def fit_perturbation(
    screen: PerturbationScreen,
    train: Sequence[str],
    graphs: GeneGraphs,
    *,
    arguments: TrainingArguments,
    pairs: Dataset | None = None,
    eval_names: Sequence[str] = (),
    callbacks: Sequence[Any] = (),
    **changes: Any,
) -> Trainer:
    """Train a new model and return its Trainer; the same for the same `arguments.seed`.

    Args:
        screen: The screen.
        train: Perturbations to train on, such as `gene_split(screen.sets, seed).train`.
        graphs: From `gene_graphs`.
        arguments: From `perturbation_arguments`.
        pairs: From `perturbation_pairs`, of training perturbations only; the mean profiles unless given.
        eval_names: Held-out perturbations, on which the loss is evaluated.
        callbacks: Of the Trainer.
        **changes: See `perturbation_model`.

    Raises:
        ValueError: If a held-out perturbation is among the training ones, or one is not in the screen.
    """
    if eval_names:
        PerturbationSplit.of(train, eval_names)  # refuses what leaks
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
    trainer.remove_callback(PrinterCallback)  # what it prints goes among the user's results
    trainer.train()
    return trainer


def perturbation_arguments(output_dir: str | os.PathLike, **changes: Any) -> TrainingArguments:
    """Return `training_arguments` with the defaults for perturbation models: few profiles, many epochs."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 32,
        "learning_rate": 5e-3,
        "weight_decay": 0.01,
        "num_train_epochs": 40,
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    return training_arguments(Path(output_dir), **{**defaults, **changes})


@torch.inference_mode()
def predict_profiles(
    model: XTrimoGeneForPerturbationPrediction, control: np.ndarray, sets: Sequence[Sequence[int]]
) -> np.ndarray:
    """Return predicted mean profiles `(B, R)` after perturbing sets of gene ids, from the control profile `(R,)`.

    `perturbed_genes` gives the ids for names such as `A+B`.
    """
    model.eval()
    pad_token_id: Any = model.config.pad_token_id  # never None: the configuration fills it in
    ids = torch.from_numpy(padded_sets(sets, pad_token_id)).to(model.device)
    values = torch.from_numpy(np.asarray(control, np.float32)).to(model.device).expand(len(ids), -1)
    return model(perturbation_ids=ids, control_values=values).logits.float().cpu().numpy()
