"""Recovery of masked values at different sparsities: how sparse may a cell be for masked genes to be predicted?

    cells  ->  counts thinned to a share of zeros  ->  30 % of expressed and 3 % of zero genes masked  ->  correlation

Source: arXiv:2311.15156, figure on recovery by sparsity (its curve is not given as numbers).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from scipy import sparse

from ...inference.cell_model import CellModel
from ...inference.options import Running
from ...inference.saved import Saved
from ...modeling_xtrimogene.reconstruction_xtrimogene import per_10k
from ...options import Option, group
from ...tokenization.collators import IGNORED
from ...tokenization.masking import Masking
from ...tokenization.panel_xtrimogene import InMemory
from ...training.data.dataset import cells_dataset
from ...training.objectives import objective_of
from ..measures import baselines
from ..measures.recovery import correlation, within_genes
from ..measures.results import Score, TaskResult, score
from ..report.pictures import lines
from .run import DrawnCells, Run

if TYPE_CHECKING:
    from anndata import AnnData


RUN = Run(seeds=(0,))
SPARSITIES = (0.90, 0.92, 0.94, 0.96, 0.97, 0.98)
BATCH = 8
MOST_TO_FIT = 1_000  # largest number of cells that baselines are fitted to
DRAWS = 100  # bootstrap draws; each correlates hundreds of thousands of values
PROTOCOL = (
    "Half of the cells are held out. The counts of those that are rich enough for the lowest share of zeros asked for "
    "are thinned, each count kept with one probability a cell, until the share of zeros on the panel is the one asked "
    "for: the same cells at every level. 30 % of the expressed and 3 % of the zero genes that were measured are masked "
    "and predicted; scores are Pearson correlations over all masked values, over the expressed ones, and beyond gene "
    "means: truth and prediction each less their own mean over the test cells in which the gene is masked. The mean of "
    "each gene given that it is masked and PCA are fitted to cells of the other half, the same at every level and "
    "thinned alike. "
    "A checkpoint may have seen these cells without labels in pre-training, which favours it. Intervals: 95 %, "
    "bootstrap over cells."
)


@group
class RecoveryOptions(DrawnCells):
    """Options of the recovery task: how sparse cells are made before genes are masked.

    >>> RecoveryOptions(num_test=50).sparsities[0]
    0.9
    """

    sparsities: Annotated[Sequence[float], Option("Shares of zeros on the panel.")] = SPARSITIES
    num_test: Annotated[int, Option("Held-out cells of each level, at most.", least=2)] = 200


def evaluate_recovery(
    adata: "AnnData",
    data: str,
    checkpoints: Mapping[str, str],
    options: RecoveryOptions,
    run: Run = RUN,
) -> TaskResult:
    """Score the recovery of masked values at each sparsity.

    Args:
        adata: Cells with counts.
        data: Name of the data set.
        checkpoints: Name -> folder or Hub name of pre-trained models, all of one panel.
        options: Options of the task.
        run: Seeds of split, thinning and masks; the first is also the seed of untrained models.

    Raises:
        ValueError: If fewer than two cells have enough expressed genes, or checkpoints have different panels.

    Example:
        >>> options = RecoveryOptions(num_test=50)
        >>> result = evaluate_recovery(adata, "blood", {"small": "checkpoint"}, options)  # doctest: +SKIP
    """
    seeds, say = run.seeds, run.say
    first = next(iter(checkpoints))
    panels = {name: Saved.of(path).tokenizer().genes for name, path in checkpoints.items()}
    if other := [name for name, genes in panels.items() if genes != panels[first]]:
        raise ValueError(f"{', '.join(other)} and {first} have other genes: evaluate them one by one")
    models: dict[str, CellModel] = {}
    for name, path in checkpoints.items():
        models[name] = CellModel.load(path, Running(device=run.device), task="reconstruct")
        models[f"{name}, not trained"] = models[name].untrained(seeds[0])
    cells = models[first].read(adata)
    counts, _ = cells.read()
    found: dict[tuple[str, str, float], list[tuple[Callable[[np.ndarray], float], int]]] = {}
    for seed in run.parts(seeds):
        order = np.random.default_rng(seed).permutation(counts.shape[0])
        half = len(order) // 2
        for sparsity, train, test in at_sparsities(
            counts[order[half:]], counts[order[:half]], options.sparsities, options.num_test, seed
        ):
            num_seen, num_cells = train.shape[0], test.shape[0]
            say(f"seed {seed}: {num_cells} cells at {sparsity:.0%} zeros")
            of_methods = recovery_statistics(models, train, test, seed, cells.measured)
            for method, statistics in of_methods.items():
                for metric, statistic in statistics.items():
                    found.setdefault((method, metric, sparsity), []).append((statistic, num_cells))
    scores: list[Score] = []
    for (method, metric, sparsity), of_seeds in found.items():
        each, units = zip(*of_seeds, strict=True)
        scores.append(score("masked values", f"{data}, {sparsity:.0%} zeros", method, metric, each, units, draws=DRAWS))
    pictures = curves(scores, [sparsity for *_, sparsity in found])
    settings = {"seeds": list(seeds), "cells at every level": num_cells, "cells to fit baselines": num_seen}
    return TaskResult("masked values", data, PROTOCOL, scores, pictures, settings)


def at_sparsities(
    train: Any, test: Any, sparsities: Sequence[float], num_test: int, seed: int
) -> Iterator[tuple[float, Any, Any]]:
    """Yield each share of zeros with training cells, at most 1,000, and test cells, at most `num_test`, thinned to it.

    All shares have the same cells, drawn from those with enough expressed genes for the lowest share.

    Args:
        train: Counts of cells to fit baselines to, CSR `(cells, G)`.
        test: Counts of held-out cells, CSR `(cells, G)`.
        sparsities: Shares of zeros on the panel.
        num_test: Largest number of test cells.
        seed: Seed of the drawn cells and of thinning.

    Raises:
        ValueError: If fewer than two cells have enough expressed genes.
    """
    if not sparsities:
        return
    num_genes, rng = test.shape[1], np.random.default_rng(seed)
    wanted = (1 - min(sparsities)) * num_genes
    rich = [rng.permutation(np.flatnonzero(np.diff(counts.indptr) >= wanted)) for counts in (train, test)]
    if min(map(len, rich)) < 2:
        raise ValueError(
            f"{min(sparsities):.0%} zeros are {wanted:,.0f} expressed genes of {num_genes:,}, and {len(rich[0])} cells "
            f"to learn from and {len(rich[1])} to test on have as many, of which two each are needed: give higher "
            f"sparsities, or deeper cells"
        )
    train, test = train[np.sort(rich[0][:MOST_TO_FIT])], test[np.sort(rich[1][:num_test])]
    for sparsity in sorted(sparsities):
        wanted = (1 - sparsity) * num_genes
        yield sparsity, thin(train, wanted, rng), thin(test, wanted, rng)


def curves(scores: Sequence[Score], sparsities: Sequence[float]) -> dict[str, Any]:
    """Return pictures of each metric against sparsity; `sparsities` are those of `scores`."""
    pictures = {}
    for metric in dict.fromkeys(each.metric for each in scores):
        of_methods: dict[str, tuple[list[float], list[float]]] = {}
        for sparsity, each in zip(sparsities, scores, strict=True):
            if each.metric == metric:
                shares, values = of_methods.setdefault(each.method, ([], []))
                shares.append(100 * sparsity)
                values.append(each.value)
        pictures[f"{metric} against sparsity"] = lines(of_methods, "zeros of the panel, %", metric)
    return pictures


def thin(counts: Any, wanted: float, rng: np.random.Generator) -> Any:
    """Return cells thinned to about `wanted` expressed genes, at least one.

    All counts of a cell are kept with the same probability, as if the cell had been sequenced less deeply.

    Args:
        counts: Counts of cells with at least `wanted` expressed genes, CSR `(cells, G)`.
        wanted: Number of expressed genes of a thinned cell.
        rng: Generator of random numbers.

    Example:
        >>> counts = sparse.csr_matrix(np.full((1, 100), 5.0, np.float32))
        >>> 20 < thin(counts, wanted=40, rng=np.random.default_rng(0)).nnz < 60
        True
    """
    thinned = []
    for cell in range(counts.shape[0]):
        row = counts[[cell]]
        low, high = 0.0, 1.0
        for _ in range(30):  # the expected number of expressed genes grows with the probability
            middle = (low + high) / 2
            is_too_few = (1 - (1 - middle) ** row.data).sum() < wanted
            low, high = (middle, high) if is_too_few else (low, middle)
        kept = rng.binomial(row.data.astype(np.int64), high).astype(np.float32)
        kept[row.data.argmax()] += not kept.any()
        row.data = kept
        row.eliminate_zeros()
        thinned.append(row)
    return sparse.vstack(thinned, format="csr")


@torch.inference_mode()
def recovery_statistics(
    models: Mapping[str, CellModel], train: Any, test: Any, seed: int, measured: np.ndarray | None
) -> dict[str, dict[str, Callable[[np.ndarray], float]]]:
    """Return method -> metric -> function from indices of test cells to its value.

    Args:
        models: Name -> model.
        train: Counts that baselines are fitted to, CSR `(cells, G)`.
        test: Counts whose genes are masked and predicted, CSR `(cells, G)`.
        seed: Seed of the masks.
        measured: Whether each gene was measured, bool `(G,)`; other genes are not masked. None if all were measured.
    """
    examples: Any = cells_dataset(InMemory(test, measured))
    rows = [examples[row] for row in range(len(examples))]
    guesses: dict[str, np.ndarray] = {}
    true = masked_ids = np.empty((0, 0))
    for name, loaded in models.items():
        model, tokenizer = loaded.model.eval(), loaded.tokenizer
        collator = objective_of(model.config).recovery_collator(tokenizer, seed)
        parts = []
        for start in range(0, len(rows), BATCH):
            batch = collator(rows[start : start + BATCH])
            labels = batch.pop("labels")
            logits = model(**{key: part.to(model.device) for key, part in batch.items()}).logits.float().cpu()
            true_values, predicted = (per_10k(each, tokenizer.target_sum) for each in (labels, logits))
            true_values = labels.where(labels == IGNORED, true_values)
            parts.append((true_values.numpy(), predicted.numpy(), batch["masked_ids"].numpy()))
        true, guesses[name], masked_ids = (
            padded([part[index] for part in parts], fill)
            for index, fill in enumerate((IGNORED, 0, tokenizer.num_genes))
        )
    values, seen = baselines.log_normalise(test), baselines.log_normalise(train)
    ratios = (Masking().expressed_ratio, Masking().zero_ratio)
    guesses["PCA"] = baselines.pca_imputer(seen, baselines.hide(values, masked_ids), masked_ids, ratios, seed)
    guesses["gene mean"] = baselines.gene_mean(seen, masked_ids, ratios)
    found: dict[str, dict[str, Callable[[np.ndarray], float]]] = {}
    for name, guess in guesses.items():
        found[name] = {
            "Pearson": correlation(true, guess),
            "Pearson of expressed": correlation(np.where(true > 0, true, IGNORED), guess),
        }
        if name != "gene mean":
            found[name]["Pearson beyond gene means"] = within_genes(true, guess, masked_ids)
    return found


def padded(parts: Sequence[np.ndarray], fill: float) -> np.ndarray:
    """Concatenate the rows of batches, padded on the right to the longest row."""
    longest = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(part, ((0, 0), (0, longest - part.shape[1])), constant_values=fill) for part in parts]
    )
