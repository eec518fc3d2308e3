"""Recall of known relations between genes: do related genes have similar vectors in the model?

    gene vectors  ->  standardised columns, principal components, cosine of every known pair
                  ->  share of known pairs outside the 5th and 95th percentile of random pairs; chance is 10 %

Vectors: the tables of a checkpoint (of genes in the encoder, and the rows by which a TxFM or an anchored model predicts
them), the same before training, tables from files, loadings of genes on principal components, and random vectors.
Source: TxFM, recall of gene relations from parameters; EFAAR benchmarking (Recursion) for the measure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from ... import families
from ...inference.cell_model import CellModel
from ...inference.gene_vectors import COMPONENTS, gene_tables, task_of
from ...inference.options import Running
from ...options import Option, group
from ...records import first_names
from ...tokenization.expression_xtrimogene import ExpressionTokenizer
from ...training.perturbation.gene_graphs import read_relations
from ..measures.baselines import log_normalise
from ..measures.corpus_pca import CORPUS_PCA_NAME, CorpusPCA
from ..measures.relations import is_recalled, random_cosines, recall_of, reduced
from ..measures.results import Statistic, TaskResult, score
from .run import DrawnCells, Run

if TYPE_CHECKING:
    from anndata import AnnData
    from pandas import DataFrame


RUN = Run(seeds=(0, 1, 2))
FEW, MANY = COMPONENTS["encoder"], COMPONENTS["decoder"]
TASK, LEAST_PAIRS = "gene relations", 50
ALL_FILES = "all files"
LOADINGS, MANY_LOADINGS, RANDOM = "PCA loadings", f"PCA loadings, {MANY} components", "random vectors"
PROTOCOL = (
    "Gene vectors, standardised by column and reduced to principal components, are compared by cosine: 32 components "
    "of the table of an encoder and of the loadings, 256 of the rows of a decoder, of tables from files and of "
    "further loadings, or as many as a table has columns. Recall: the share of known pairs whose cosine lies below "
    "the 5th or above the 95th percentile of 2,000,000 random pairs of the same genes; chance is 0.1. Genes are those "
    "expressed in at least 1 % of the cells, so that no vector is judged that had nothing to learn from, and named in "
    "every table from a file. PCA loadings are fitted to those cells, those of a corpus to training cells of the "
    "checkpoint. Intervals: 95 %, bootstrap over genes, since pairs share them: a pair counts as often as both of its "
    "genes were drawn."
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
    tables: Annotated[
        Sequence[str | Path],
        Option(
            "Tables of genes x components (.csv, .tsv, also .gz, or .parquet), the first column the names of genes."
        ),
    ] = ()


@dataclass
class Judged:
    """The genes and pairs that vectors on one panel are judged by.

    Attributes:
        genes: Panel ids of the genes, ascending, `(G,)`.
        pairs: Name of a file, or `all files` -> known pairs as indices in `genes`, `(pairs, 2)`.
        values: `log1p` of counts per 10,000 of these genes in the cells, CSR `(cells, G)`.
        tokenizer: Tokenizer of the panel.
        recalls: (method, name of pairs) -> for each seed, the recall.
    """

    genes: np.ndarray
    pairs: dict[str, np.ndarray]
    values: Any
    tokenizer: ExpressionTokenizer
    recalls: dict[tuple[str, str], list[Statistic]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        adata: "AnnData",
        tokenizer: ExpressionTokenizer,
        tables: Sequence["DataFrame"],
        files: Sequence[str | Path],
    ) -> "Judged":
        """Return the genes that at least 1 % of the cells express and all tables have, with their known pairs.

        Raises:
            ValueError: If a file holds fewer than 50 pairs of these genes.
        """
        counts, _ = tokenizer.read_counts(adata).read()
        share = np.bincount(counts.indices, minlength=tokenizer.num_genes) / counts.shape[0]
        genes = reduce(np.intersect1d, [ids_in(table, tokenizer) for table in tables], np.flatnonzero(share >= 0.01))
        pairs = {file_name(file): known_pairs(file, tokenizer, genes) for file in files}
        if len(pairs) > 1:
            pairs[ALL_FILES] = np.unique(np.sort(np.concatenate([*pairs.values()]), axis=1), axis=0)
        return cls(genes, pairs, log_normalise(counts)[:, genes], tokenizer)

    def judge(self, method: str, vectors: np.ndarray, num_components: int, seed: int, is_learned: bool = False) -> None:
        """Add the recall of vectors `(G, D)`; of learned ones, also that of the same genes paired anew."""
        unit = reduced(vectors, num_components, seed)
        null = random_cosines(unit, seed)
        rng = np.random.default_rng(seed)
        for name, pairs in self.pairs.items():
            asked = {method: pairs}
            if is_learned:
                asked[f"{method}, genes paired anew"] = np.column_stack([pairs[:, 0], rng.permutation(pairs[:, 1])])
            for title, each in asked.items():
                recall = recall_of(is_recalled(unit, each, null), each, len(self.genes))
                self.recalls.setdefault((title, name), []).append(recall)


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
        checkpoints: Name -> folder or Hub name; may be empty if there are tables.
        options: Options of the task.
        run: Seeds of random pairs, untrained models and random vectors. The device is not used: only weights are read.

    Raises:
        ValueError: If a file holds fewer than 50 pairs of these genes, or a table is no table of genes.

    Example:
        >>> options = RelationsOptions(relations=["pairs.csv"])
        >>> result = evaluate_relations(adata, "blood", {"small": "checkpoint"}, options)  # doctest: +SKIP
    """
    tables = {f"table {file_name(file)}": read_table(file) for file in options.tables}
    every: list[Judged] = []
    for name, path in run.parts(checkpoints.items()):
        loaded = CellModel.load(path, Running(device="cpu"), task=task_of(path))
        found = Judged.of(adata, loaded.tokenizer, [*tables.values()], options.relations)
        run.say(f"relations of {len(found.genes):,} genes in {name}")
        judge_checkpoint(found, name, path, loaded, run.seeds)
        every.append(found)
    if not every:
        every = [Judged.of(adata, families.DEFAULT.tokenizer.default(), [*tables.values()], options.relations)]
    first = every[0]
    for seed in run.seeds:
        run.say(f"seed {seed}: relations of {len(first.genes):,} genes in tables, loadings and random vectors")
        for name, table in tables.items():
            first.judge(name, rows_of(table, first.tokenizer, first.genes), MANY, seed, is_learned=True)
        first.judge(LOADINGS, loadings(first.values, FEW, seed), FEW, seed)
        first.judge(MANY_LOADINGS, loadings(first.values, MANY, seed), MANY, seed)
        first.judge(RANDOM, np.random.default_rng(seed).normal(size=(len(first.genes), FEW)), FEW, seed)
    scores = [
        score(TASK, data, method, f"recall, {file}", recalls, [len(found.genes)] * len(recalls), draws=200)
        for found in every
        for (method, file), recalls in found.recalls.items()
    ]
    pairs = {name: len(known) for name, known in first.pairs.items()}
    settings = {"seeds": list(run.seeds), "genes": len(first.genes), "pairs": pairs}
    return TaskResult(TASK, data, PROTOCOL, scores, {}, settings)


def judge_checkpoint(found: Judged, name: str, path: str, loaded: CellModel, seeds: Sequence[int]) -> None:
    """Add the recall of the tables of a checkpoint, of the same before training, and of loadings of its corpus."""
    for seed in seeds:
        fresh = learned_tables(loaded.untrained(seed))
        for part, (table, number) in learned_tables(loaded).items():
            found.judge(f"{name}{part}", table[found.genes], number, seed, is_learned=True)
            found.judge(f"{name}{part}, not trained", fresh[part][0][found.genes], number, seed)
    if (of_corpus := CorpusPCA.load(path, loaded.tokenizer)) is not None:
        for seed in seeds:
            found.judge(f"{CORPUS_PCA_NAME} of {name}, loadings", of_corpus.components.T[found.genes], MANY, seed)


def learned_tables(loaded: CellModel) -> dict[str, tuple[np.ndarray, int]]:
    """Return the end of the name of each table of genes of a model -> the table `(G, D)`, its number of components."""
    ends = {"encoder": "", "decoder": ", decoder"}
    return {ends[part]: (table, COMPONENTS[part]) for part, table in gene_tables(loaded).items()}


def read_table(file: str | Path) -> "DataFrame":
    r"""Read a table of genes x components; the index or first column names the genes.

    Args:
        file: `.csv`, `.tsv` or `.txt`, also `.gz`, or `.parquet`.

    Raises:
        ValueError: If it has no columns of numbers, or values are missing or not finite.

    Example:
        >>> _ = Path("vectors.csv").write_text("gene,0,1\nCD3D,0.5,1\nLYZ,-0.5,2\n")
        >>> read_table("vectors.csv").shape
        (2, 2)
    """
    import pandas as pd

    if ".parquet" in Path(file).suffixes:
        table = pd.read_parquet(file)
        table = table if table.index.dtype.kind not in "iu" else table.set_index(table.columns[0])
    else:
        table = pd.read_csv(file, sep="," if ".csv" in Path(file).suffixes else "\t", index_col=0)
    texts = [str(name) for name in table if table[name].dtype.kind not in "iuf"]
    if texts or table.shape[1] == 0:
        raise ValueError(
            f"{file} has {table.shape[1]} columns after the names of genes, {len(texts)} of them no numbers "
            f"({first_names(texts) or 'none'}): give genes x components, separated by commas (.csv) or tabs (.tsv)"
        )
    if num_bad := int((~np.isfinite(table.to_numpy(np.float64))).any(axis=1).sum()):
        raise ValueError(
            f"{file} has missing or infinite values in {num_bad:,} of {len(table):,} rows: drop these genes"
        )
    return table


def ids_in(table: "DataFrame", tokenizer: ExpressionTokenizer) -> np.ndarray:
    """Return the panel id of each row of a table, -1 for a gene that is not on the panel, `(rows,)`."""
    return tokenizer.matcher.match([str(name) for name in table.index]).rows


def rows_of(table: "DataFrame", tokenizer: ExpressionTokenizer, genes: np.ndarray) -> np.ndarray:
    """Return the rows of a table for panel ids `(G,)` which it has; where two rows are of one gene, the first."""
    known, first = np.unique(ids_in(table, tokenizer), return_index=True)
    return table.to_numpy(np.float64)[first[np.searchsorted(known, genes)]]


def file_name(file: str | Path) -> str:
    """Return the name of a file without its last ending, and without that of a compressed file."""
    return Path(Path(file).name.removesuffix(".gz")).stem


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
            f"genes that are judged, fewer than {LEAST_PAIRS}: a line is two gene names with a comma between"
        )
    return known


def loadings(values: Any, num_components: int, seed: int) -> np.ndarray:
    """Return loadings of genes on so many principal components of cells, or on all there are, `(genes, components)`."""
    from sklearn.decomposition import PCA

    number = min(num_components, *(size - 1 for size in values.shape))
    return PCA(number, svd_solver="arpack", random_state=seed).fit(values).components_.T
