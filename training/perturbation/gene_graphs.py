"""Graphs and features of genes, known before any gene is perturbed: co-expression, relations, embeddings.

    pairs or sets of genes          ->  read_relations     genes x sets
    screen, relations, checkpoint   ->  gene_graphs        co-expression graph, relation graph, features of the genes

Letters: R measured genes of a screen, G genes of the panel, N genes of the graphs, F features of a gene, E width of the
decoder, S sets of related genes.
"""

import gzip
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from transformers import AutoModel

from ...inference.saved import Saved
from ...records import first_names
from ...tokenization.expression_xtrimogene import ExpressionTokenizer
from .screens import CONTROL, PerturbationScreen, perturbed_genes

# GEARS: genes whose expression correlates by at least 0.4 in control cells, and at most 20 neighbours in both graphs.
MIN_CORRELATION = 0.4
MAX_NEIGHBOURS = 20
MAX_CONTROL_CELLS = 300  # number of cells whose context embeddings are averaged
CELLS_AT_A_TIME, GENES_AT_A_TIME = 8, 1000  # the correlations of all genes at once would fill the memory


@dataclass(frozen=True)
class GeneGraphs:
    """Graphs and features of the genes of a screen.

    Attributes:
        gene_ids: Panel ids of the genes, `(N,)`: first the measured genes in the order of the screen, then perturbed
            genes that were not measured and genes related to perturbed ones.
        expression: Weights between genes that are co-expressed in control cells; rows sum to 1. CSR `(N, N)`.
        relations: Weights between related genes; rows sum to 1. CSR `(N, N)`.
        features: Features of the genes, `(N, F)`; None to learn features from scratch.
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
    """Return graphs and features of the genes of a screen, computed from its control cells only.

    Args:
        screen: Perturbed and control cells, from `read_screen`.
        checkpoint: Folder or Hub name of a pre-trained model with a decoder, whose gene embeddings become the features;
            unless given, features are learned.
        relations: Related genes, from `read_relations`; unless given, no genes are related.
        further_genes: Names of genes that the screen neither perturbs nor measures, but whose perturbation is to be
            predicted.
        device: Device on which the checkpoint computes.

    Raises:
        ValueError: If further genes are not on the panel, or the checkpoint has another panel or no decoder.

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
        >>> graphs = gene_graphs(screen)
        >>> graphs.gene_ids.tolist(), graphs.expression.shape
        ([0, 1, 2, 3], (4, 4))
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
    """Return the graph of co-expressed genes, CSR `(R, R)`, in which rows sum to 1.

    The neighbours of a gene are the genes with the largest absolute Pearson correlation, at least 0.4, at most 20.

    Args:
        values: `log1p` of counts per 10,000 of control cells, CSR `(cells, R)`.

    Source: GEARS.

    Example:
        >>> values = sparse.csr_matrix([[1.0, 1.0, 5.0], [2.0, 2.0, 4.0], [3.0, 3.0, 5.0]])
        >>> coexpression(values).toarray().tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
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
    """Return the 20 most similar of the genes `columns` for each of the genes `rows`, with weights that sum to 1.

    The similarity of two genes is the Jaccard index of the sets they are in. In an edge list each pair is a set, so a
    partner with few other partners is more similar than one with many.

    Args:
        relations: Whether each gene is in each set, CSR `(G, S)`.
        rows: Gene ids.
        columns: Gene ids.

    Source: GEARS, which compares gene-ontology terms in this way.
    """
    shared = sparse.coo_matrix(relations[rows] @ relations[columns].T)
    sizes = np.asarray(relations.sum(axis=1)).ravel()
    united = sizes[rows[shared.row]] + sizes[columns[shared.col]] - shared.data
    is_other = rows[shared.row] != columns[shared.col]
    index = (shared.row[is_other], shared.col[is_other])
    return closest(sparse.csr_matrix(((shared.data / united)[is_other], index), shape=shared.shape))


def closest(strength: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return the 20 largest entries of each row, divided by their sum, float32."""
    strength.eliminate_zeros()
    strength.sort_indices()
    rows, columns, weights = [], [], []
    for row in range(strength.shape[0]):
        entries = slice(strength.indptr[row], strength.indptr[row + 1])
        values = strength.data[entries]
        kept = np.argsort(-values, kind="stable")[:MAX_NEIGHBOURS]
        rows.append(np.full(len(kept), row))
        columns.append(strength.indices[entries][kept])
        weights.append(values[kept] / max(values[kept].sum(), 1e-12))
    parts = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_matrix(parts, shape=strength.shape, dtype=np.float32)


def read_relations(files: Sequence[str | os.PathLike], tokenizer: ExpressionTokenizer) -> sparse.csr_matrix:
    """Read pairs or sets of related genes from files.

    Args:
        files: Edge lists with a pair of genes a line, separated by a comma or tab; or gene sets in `.gmt` files. Files
            may be gzipped. Further columns, a header, and genes outside of the panel are ignored.
        tokenizer: Tokenizer of the panel.

    Returns:
        Whether each gene is in each pair or set, 0 or 1, CSR `(G, S)`.

    Raises:
        ValueError: If a file has no line with two genes of the panel.

    Example:
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> _ = Path("pairs.csv").write_text("CD3E,NKG7")
        >>> read_relations(["pairs.csv"], tokenizer).toarray().ravel().tolist()
        [1.0, 0.0, 1.0, 0.0]
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
        raise ValueError(f"{first_names(file for file, _ in bounds) or 'no file'}: no line names a gene")
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

    Each feature gets mean 0 and variance 1 over genes, because most of an embedding is the same for all genes. Then
    each gene gets the same length, because a few expressed genes would otherwise outweigh all others.

    Args:
        checkpoint: Folder or Hub name of a pre-trained model with a decoder.
        screen: Perturbed and control cells, from `read_screen`.
        gene_ids: Panel ids of the genes, `(N,)`.
        device: Device on which the model computes.

    Raises:
        ValueError: If the checkpoint has another panel than the screen.

    Source: arXiv:2311.15156, section 4, where context embeddings are the node features of GEARS.
    """
    model = Saved.of(checkpoint).load(AutoModel).eval().to(device)
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
