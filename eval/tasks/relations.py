"""Recall of known relations between genes: do related genes have similar vectors in the model?

    gene vectors  ->  standardised columns, 32 principal components, cosine of every known pair
                  ->  share of known pairs outside the 5th and 95th percentile of random pairs; chance is 10 %

Vectors: the gene table of a checkpoint, the same before training, PCA loadings of the genes, and random vectors.
Source: TxFM, recall of gene relations from parameters; EFAAR benchmarking (Recursion) for the measure.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from ...inference.cell_model import CellModel
from ...inference.options import Running
from ...options import Option, group
from ...tokenization.expression_xtrimogene import ExpressionTokenizer
from ...training.perturbation.gene_graphs import read_relations
from ..measures.baselines import log_normalise
from ..measures.results import TaskResult, score
from .run import DrawnCells, Run

if TYPE_CHECKING:
    from anndata import AnnData


RUN = Run(seeds=(0, 1, 2))
COMPONENTS = 32
NULL_PAIRS = 2_000_000
TAILS = (5, 95)
LEAST_PAIRS = 50
PROTOCOL = (
    "Gene vectors, standardised by column and reduced to 32 principal components, are compared by cosine. Recall: "
    "the share of known pairs whose cosine lies below the 5th or above the 95th percentile of 2,000,000 random "
    "pairs of the same genes; chance is 0.1. Genes are those expressed in at least 1 % of the cells, so that no "
    "vector is judged that had nothing to learn from. PCA loadings are fitted to those cells. Intervals: 95 %, "
    "bootstrap over genes, since pairs share them: a pair counts as often as both of its genes were drawn."
)


@group
class RelationsOptions(DrawnCells):
    """Options of the relations task.

    >>> RelationsOptions(relations=["pairs.csv"]).relations
    ['pairs.csv']
    """

    relations: Annotated[
        Sequence[str | Path],
        Option("Files of pairs with a header, `a,b` a line (.txt, .csv, .tsv, also .gz), by symbols."),
    ]


def evaluate_relations(
    adata: "AnnData",
    data: str,
    checkpoints: Mapping[str, str],
    options: RelationsOptions,
    run: Run = RUN,
) -> TaskResult:
    """Score how many known pairs of genes have unusually similar or dissimilar vectors.

    Args:
        adata: Cells with counts. Genes expressed in at least 1 % of them are scored, and PCA is fitted to them.
        data: Name of the data set.
        checkpoints: Name -> folder or Hub name.
        options: Options of the task.
        run: Seeds of random pairs, untrained models and random vectors. The device is not used: only weights are read.

    Raises:
        ValueError: If a file holds fewer than 50 pairs of these genes.

    Example:
        >>> options = RelationsOptions(relations=["pairs.csv"])
        >>> result = evaluate_relations(adata, "blood", {"small": "checkpoint"}, options)  # doctest: +SKIP
    """
    seeds = run.seeds
    scores = []
    numbers: dict[str, int] = {}
    statistics: dict[tuple[str, str], list[tuple[Callable[[np.ndarray], float], int]]] = {}
    for name, path in checkpoints.items():
        loaded = CellModel.load(path, Running(device="cpu"))
        tokenizer = loaded.tokenizer
        counts, _ = loaded.read(adata).read()
        share = np.bincount(counts.indices, minlength=tokenizer.num_genes) / counts.shape[0]
        genes = np.flatnonzero(share >= 0.01)
        pairs = {file_name(file): known_pairs(file, tokenizer, genes) for file in options.relations}
        numbers |= {file: len(each) for file, each in pairs.items()}
        is_first = name == next(iter(checkpoints))
        for seed in seeds:
            run.say(f"seed {seed}: relations of {len(genes):,} genes in {name}")
            vectors = {
                name: loaded.gene_table()[genes],
                f"{name}, not trained": loaded.untrained(seed).gene_table()[genes],
            }
            if is_first:
                rng = np.random.default_rng(seed)
                vectors["PCA loadings"] = loadings(log_normalise(counts)[:, genes], seed)
                vectors["random vectors"] = rng.normal(size=(len(genes), COMPONENTS))
            rng = np.random.default_rng(seed)
            anew = {file: np.column_stack([each[:, 0], rng.permutation(each[:, 1])]) for file, each in pairs.items()}
            for method, table in vectors.items():
                unit = reduced(table, seed)
                low, high = np.percentile(random_cosines(unit, seed), TAILS)
                asked = [(method, *item) for item in pairs.items()]
                if method == name:
                    asked += [(f"{name}, genes paired anew", *item) for item in anew.items()]
                for title, file, each in asked:
                    cosines = (unit[each[:, 0]] * unit[each[:, 1]]).sum(1)
                    is_found = (cosines <= low) | (cosines >= high)
                    statistics.setdefault((title, file), []).append((recall_of(is_found, each, len(genes)), len(genes)))
    for (method, file), of_seeds in statistics.items():
        recalls, units = zip(*of_seeds, strict=True)
        scores.append(score("gene relations", data, method, f"recall, {file}", recalls, units, draws=200))
    settings = {"seeds": list(seeds), "pairs": numbers}
    return TaskResult("gene relations", data, PROTOCOL, scores, {}, settings)


def recall_of(is_found: np.ndarray, pairs: np.ndarray, num_genes: int) -> Callable[[np.ndarray], float]:
    """Return a function from indices of genes to the share of their pairs `(pairs, 2)` that are found, or NaN.

    Source: bootstrap of a graph by its nodes (Snijders and Borgatti 1999).

    Example:
        >>> is_found, pairs = np.array([True, False]), np.array([[0, 1], [1, 2]])
        >>> recall_of(is_found, pairs, num_genes=3)(np.arange(3))
        0.5
    """

    def statistic(genes: np.ndarray) -> float:
        times = np.bincount(genes, minlength=num_genes)
        weights = times[pairs[:, 0]] * times[pairs[:, 1]]
        total = weights.sum()
        return float(weights @ is_found / total) if total else float("nan")

    return statistic


def file_name(file: str | Path) -> str:
    """Return the name of a file without its endings."""
    return Path(file).name.split(".")[0]


def known_pairs(file: str | Path, tokenizer: ExpressionTokenizer, genes: np.ndarray) -> np.ndarray:
    """Return the known pairs among `genes` as indices in `genes`, `(pairs, 2)`, each pair once in any order.

    Args:
        file: Edge list with a pair of genes a line.
        tokenizer: Tokenizer of the panel.
        genes: Panel ids of the genes, ascending.

    Raises:
        ValueError: If the file has fewer than 50 pairs of these genes.
    """
    sets = read_relations([file], tokenizer).tocsc()
    sets.sort_indices()
    starts = sets.indptr[:-1][np.diff(sets.indptr) == 2]
    pairs = np.unique(np.column_stack([sets.indices[starts], sets.indices[starts + 1]]), axis=0)
    place = np.full(tokenizer.num_genes, -1)
    place[genes] = np.arange(len(genes))
    known = place[pairs[np.isin(pairs, genes).all(axis=1)]]
    if len(known) < LEAST_PAIRS:
        raise ValueError(
            f"{Path(file).name} has {len(pairs):,} pairs of the panel's genes and {len(known):,} of the {len(genes):,} "
            f"genes expressed in the cells, fewer than {LEAST_PAIRS}: a line is two gene names with a comma between"
        )
    return known


def loadings(values: Any, seed: int) -> np.ndarray:
    """Return the loadings of genes on the principal components of cells, `(genes, 32)`."""
    from sklearn.decomposition import PCA

    number = min(COMPONENTS, *(size - 1 for size in values.shape))
    return PCA(number, svd_solver="arpack", random_state=seed).fit(values).components_.T


def reduced(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Return unit vectors after standardising columns and PCA to 32 components."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(vectors)
    if scaled.shape[1] > COMPONENTS:
        scaled = PCA(COMPONENTS, random_state=seed).fit_transform(scaled)
    return scaled / np.linalg.norm(scaled, axis=1, keepdims=True)


def random_cosines(unit: np.ndarray, seed: int) -> np.ndarray:
    """Return cosines of random pairs of different genes."""
    rng = np.random.default_rng(seed)
    one, other = rng.integers(0, len(unit), (2, NULL_PAIRS))
    one, other = one[one != other], other[one != other]
    return np.concatenate(
        [(unit[a] * unit[b]).sum(1) for a, b in zip(np.array_split(one, 20), np.array_split(other, 20), strict=True)]
    )
