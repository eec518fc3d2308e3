"""Screens of perturbed cells, and how they are split.

    cells, obs["perturbation"]  ->  read_screen        mean profile of each perturbation, and of control cells
    perturbations               ->  gene_split, doubles_split

Letters: C cells, P perturbations, R measured genes (columns of the screen that are on the panel), G genes of the panel.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from scipy import sparse

from ...records import first_names
from ...tokenization.expression_xtrimogene import ExpressionTokenizer
from ...tokenization.panel_xtrimogene import WHOLE_TRANSCRIPTOME

CONTROL = "control"
CONTROL_NAMES = {CONTROL, "ctrl", "non-targeting"}  # by themselves, or beside a gene as GEARS writes: GENE+ctrl


@dataclass(frozen=True)
class PerturbationScreen:
    """Cells of a perturbation screen, on the genes of a panel.

    Attributes:
        tokenizer: Tokenizer of the panel.
        gene_ids: Panel ids of the measured genes, ascending. Shape `(R,)`.
        sets: Name of a perturbation -> ids of its genes. The name is panel names in alphabetical order, joined by `+`.
        values: `log1p` of counts per 10,000. CSR of shape `(C, R)`.
        labels: Perturbation of each cell, `control` for control cells. Shape `(C,)`.
        control_counts: Raw counts of the control cells on the panel, CSR `(cells, G)`, and their totals `(cells,)`.
    """

    tokenizer: ExpressionTokenizer
    gene_ids: np.ndarray
    sets: dict[str, tuple[int, ...]]
    values: sparse.csr_matrix
    labels: np.ndarray
    control_counts: tuple[sparse.csr_matrix, np.ndarray]

    @property
    def genes(self) -> list[str]:
        """Names of the measured genes, in the order of `gene_ids`."""
        return [self.tokenizer.genes[index] for index in self.gene_ids]

    def cells(self, name: str) -> sparse.csr_matrix:
        """Return the cells of a perturbation, or of `control`, `(cells, R)`.

        Raises:
            ValueError: If there is no such perturbation.
        """
        if name != CONTROL and name not in self.sets:
            raise ValueError(
                f"the screen has no perturbation {name!r} among its {len(self.sets)} ({first_names(self.sets)}): "
                f"names are panel genes in alphabetical order, joined by +"
            )
        return self.values[self.labels == name]

    def profiles(self, names: Sequence[str]) -> np.ndarray:
        """Return the mean profile of each perturbation, or of `control`, float32 `(len(names), R)`."""
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
    tokenizer: ExpressionTokenizer,
    perturbation_key: str = "perturbation",
    total_key: str | None = None,
    min_cells: int = 10,
    **where: Any,
) -> PerturbationScreen:
    """Read a perturbation screen from AnnData.

    Args:
        adata: Cells of one cell line or condition. Cells with other controls belong into another screen.
        tokenizer: Tokenizer of the panel.
        perturbation_key: Column of `obs` with `GENE`, `A+B` or `control`; GEARS's `GENE+ctrl` and `ctrl+GENE` work too.
            A gene may have any of its names.
        total_key: Column of `obs` with the total counts of each cell over all genes, for `adata` with a part of the
            genes; unless given, the total is the sum over the columns.
        min_cells: Smallest number of cells of a perturbation; rarer ones are left out, with a warning.
        **where: Arguments `layer`, `gene_names` and `gene_column` of `ExpressionTokenizer.read_counts`.

    Raises:
        ValueError: If the column is missing or has empty names, perturbed genes are not on the panel, a gene stands
            twice in a name, there are no control cells or no perturbed ones, the control or all perturbations have too
            few cells, or cells have no counts.

    Warns:
        UserWarning: If there are fewer than 8,000 columns and no `total_key`, or perturbations are left out.

    Example:
        >>> import pandas as pd
        >>> from anndata import AnnData
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [4, 1, 0, 1], [0, 3, 0, 2], [2, 2, 1, 0]], columns=tokenizer.genes)
        >>> cells = AnnData(counts.astype("float32"))
        >>> cells.obs["perturbation"] = ["control", "control", "CD3E", "LYZ"]
        >>> screen = read_screen(cells, tokenizer, min_cells=1)
        >>> screen.sets
        {'CD3E': (0,), 'LYZ': (3,)}
        >>> screen.profiles(["control", "CD3E"]).shape
        (2, 4)
    """
    labels, by_name, is_kept = screen_labels(adata, tokenizer, perturbation_key, min_cells)
    adata, labels = (adata, labels) if is_kept.all() else (adata[is_kept].copy(), labels[is_kept])
    cells = tokenizer.read_counts(adata, **where)
    counts, totals = cells.read()
    if total_key is not None:
        if total_key not in adata.obs:
            raise ValueError(f"obs has no column {total_key!r}, only {', '.join(map(str, adata.obs.columns))}")
        whole = adata.obs[total_key].to_numpy(np.float64)
        if not (whole >= totals).all():  # a comparison with a missing value is false
            raise ValueError(
                f"obs[{total_key!r}] is missing or smaller than the sum of the columns in "
                f"{(~(whole >= totals)).sum():,} of {len(totals):,} cells: it is no total over all genes"
            )
        totals = whole
    elif cells.source.n_columns < WHOLE_TRANSCRIPTOME:
        warnings.warn(
            f"the screen has {cells.source.n_columns:,} columns, and counts are taken per 10,000 of theirs: if genes "
            f"were left out, give total_key, the column of obs with the total over all genes",
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


def screen_labels(
    adata: Any, tokenizer: ExpressionTokenizer, perturbation_key: str, min_cells: int
) -> tuple[np.ndarray, dict[str, tuple[int, ...]], np.ndarray]:
    """Return the perturbation of each cell under one name, name -> ids of the perturbed genes, and which cells to keep.

    Raises:
        ValueError: If the column is missing or has empty names, there are no control cells or no perturbed ones, or
            the control or all perturbations have too few cells.
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
    kept = set(names[sizes >= min_cells].tolist())
    if few := [f"{name} ({size})" for name, size in zip(names, sizes, strict=True) if size < min_cells]:
        text = f"{len(few)} of {len(names)} perturbations have fewer than {min_cells} cells: {first_names(few)}"
        if CONTROL not in kept or len(kept) == 1:
            raise ValueError(f"{text}; their means say little, and too few are left: pass a smaller min_cells")
        warnings.warn(f"{text}; their means say little, and they are left out", stacklevel=3)
    by_name = {name: genes for name, genes in by_name.items() if name in kept}
    return labels, by_name, np.isin(labels, sorted(kept))


def perturbed_genes(
    names: Sequence[str], tokenizer: ExpressionTokenizer, where: str = "perturbations"
) -> list[tuple[str, tuple[int, ...]]]:
    """Return each name with the ids of its genes, ascending; control has no genes.

    Args:
        names: Names of perturbations, such as `A+B`.
        tokenizer: Tokenizer of the panel.
        where: Where the names come from, for errors.

    Raises:
        ValueError: If names are empty, genes are not on the panel, or a gene stands twice in a name.

    Example:
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> perturbed_genes(["LYZ+CD3E", "control"], tokenizer)
        [('LYZ+CD3E', (0, 3)), ('control', ())]
    """
    parts = [[part.strip() for part in name.split("+")] for name in names]
    if broken := [repr(name) for name, split in zip(names, parts, strict=True) if not all(split)]:
        raise ValueError(
            f"{where}: {len(broken)} of {len(names)} names are empty or have an empty part: {first_names(broken)}; "
            f"write GENE, A+B or control, or leave these cells out"
        )
    parts = [[part for part in split if part.lower() not in CONTROL_NAMES] for split in parts]
    genes = sorted(set(chain.from_iterable(parts)))
    rows = dict(zip(genes, tokenizer.matcher.match(genes, min_share=0.0).rows.tolist(), strict=True)) if genes else {}
    if unknown := [gene for gene in genes if rows[gene] < 0]:
        raise ValueError(
            f"{where}: {len(unknown)} of {len(genes)} perturbed genes are not among the {tokenizer.num_genes:,} genes "
            f"of the panel: {first_names(unknown)}; leave their cells out, or correct the names"
        )
    sets = [tuple(sorted(rows[part] for part in split)) for split in parts]
    if twice := [name for name, genes in zip(names, sets, strict=True) if len(set(genes)) < len(genes)]:
        raise ValueError(f"{where}: {len(twice)} names have a gene twice: {first_names(twice)}; name each gene once")
    return list(zip(names, sets, strict=True))


# -- splits -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PerturbationSplit:
    """Perturbations to train on and to test on.

    Attributes:
        train: Perturbations to train on.
        test: Perturbation to test on -> its kind. The kind of a perturbation of one gene is `single`. A perturbation of
            several genes is `seen0`, `seen1`, `seen2`, ..., by the number of its genes in training perturbations.

    Raises:
        ValueError: If a test perturbation is among the training ones, also with its genes in another order, or if a
            side is empty.

    Example:
        >>> PerturbationSplit.of(["A", "B"], ["C", "A+B", "A+C"]).test
        {'C': 'single', 'A+B': 'seen2', 'A+C': 'seen1'}
    """

    train: tuple[str, ...]
    test: dict[str, str]

    def __post_init__(self) -> None:
        trained = {frozenset(name.split("+")) for name in self.train}
        if leaked := [name for name in self.test if frozenset(name.split("+")) in trained]:
            raise ValueError(
                f"{len(leaked)} of {len(self.test)} test perturbations are among the {len(self.train)} training ones: "
                f"{first_names(leaked)}; a test on them would say nothing"
            )
        if not (self.train and self.test):
            raise ValueError(
                f"a split with {len(self.train)} training and {len(self.test)} test perturbations: both sides need one"
            )

    @classmethod
    def of(cls, train: Iterable[str], test: Iterable[str]) -> "PerturbationSplit":
        """Return the split into given perturbations, with the kind of each test perturbation."""
        train = tuple(train)
        seen = set(chain.from_iterable(name.split("+") for name in train))
        genes = {name: name.split("+") for name in test}
        kinds = {name: "single" if len(each) == 1 else f"seen{len(seen & set(each))}" for name, each in genes.items()}
        return cls(train, kinds)


def gene_split(names: Iterable[str], seed: int, test_share: float = 0.25) -> PerturbationSplit:
    """Split by genes: a share of the genes occurs in no training perturbation.

    All perturbations of these unseen genes are tested. Of the perturbations of several seen genes, the same share is
    tested too, at least one.

    Args:
        names: Perturbations of a screen, such as `PerturbationScreen.sets`.
        seed: Seed of the split.
        test_share: Share of unseen genes, and share of the perturbations of several seen genes to test on.

    Source: GEARS, split `simulation`. GEARS calls every gene outside of its unseen ones seen. Here a gene is seen if a
    training perturbation has it, because a screen need not perturb every gene alone.

    Example:
        >>> split = gene_split(["A", "B", "C", "D", "A+B", "C+D"], seed=0)
        >>> sorted([*split.train, *split.test]) == sorted(["A", "B", "C", "D", "A+B", "C+D"])
        True
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
    """Split by number of genes: train on perturbations of one gene, test on those of several.

    Example:
        >>> split = doubles_split(["A", "B", "A+B"])
        >>> split.train, split.test
        (('A', 'B'), {'A+B': 'seen2'})
    """
    names = sorted(names)
    return PerturbationSplit.of((name for name in names if "+" not in name), (name for name in names if "+" in name))
