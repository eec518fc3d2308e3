"""Adapt a checkpoint to unlabelled cells, and write the adapted checkpoint with its card.

cells  ->  checkpoint, card, metrics.json with what was gained
"""

import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from ..atomic import final_model
from ..inference.cell_model import check_checkpoint
from ..inference.saved import Saved
from ..released import chosen
from ..tokenization.labels import numbered_labels
from ..tokenization.reading import TrainingInput, say_empty
from ..training.options import Batched, Seeded

if TYPE_CHECKING:
    from anndata import AnnData

    from ..hub_cards.card import CardContent
    from ..inference.familiarity import Familiarity
    from ..training.data.corpus import Corpus

MIXED_CELLS = 1_000  # of which the mixing of batches is measured


def adapt(
    adata: "AnnData | Corpus",
    model: str | os.PathLike | None,
    output: str | os.PathLike,
    cells: TrainingInput,
    batches: Batched,
    run: Seeded,
    *,
    name: str = "adata",
    say: Callable[[str], None] = print,
    tell: Callable[[float], object] = lambda share: None,
) -> dict[str, Any]:
    """Adapt a checkpoint to unlabelled cells, and return what it gained, which is also in `output/metrics.json`.

    It takes half a minute for 2,000 cells on a laptop. At most 20,000 cells are used, drawn at random, so a backed
    AnnData or a corpus takes no more memory than these. The result has the keys of
    `xtrimogene.training.adapting.adapt_model`, `seconds` and, with several batches, `mixing of batches before` and
    `after`.

    Args:
        adata: Cells with counts, in memory or backed; or a corpus from `read_corpus`.
        model: Anchored checkpoint: a folder, a name on the Hub, or one of `xtrimogene.checkpoint`. The checkpoint
            `small`, which comes with the package, if None.
        output: Folder for the adapted checkpoint.
        cells: Where the counts are.
        batches: Which cells were measured together.
        run: Seed and device.
        name: Name of the cells, for the card.
        say: Called with one line of text for each step.
        tell: Called with the share of the steps that is done; the last are left out if nothing is gained any more.

    Raises:
        ValueError: If `output` is the checkpoint, this is not anchored or is a classifier, the column of the batches
            is missing, cells without counts are there and `drop_empty` is not set, or there are fewer than 20 cells.

    Example:
        >>> gained = xtrimogene.tl.adapt(adata, "checkpoint", "adapted", batch_key="donor")  # doctest: +SKIP
        >>> gained = xtrimogene.tl.adapt(adata, output="adapted")  # begins with `small`    # doctest: +SKIP
    """
    # `xtrimogene.tl` imports this file, so what is heavy is imported here.
    from transformers import set_seed

    from ..eval.measures.trained_on import save_trained_on
    from ..inference.devices import pick_device
    from ..training.adapting import adapt_model, check_anchored
    from ..training.starting import continued
    from .results import write_results

    began, output = perf_counter(), Path(output)
    path = str(Saved.of(chosen(model, "embed", say)))  # the Hub is asked once for the commit, of which all files are
    if output.resolve() == Path(path).resolve():
        raise ValueError(f"{output} is the checkpoint that is adapted, and would be replaced: give another output")
    check_checkpoint(path)
    loaded, tokenizer = continued(path)
    check_anchored(loaded, path)
    set_seed(run.seed)
    loaded.to(pick_device(run.device))
    dataset = drawn_cells(adata, tokenizer, cells, batches, run.seed, name, say)
    numbers = np.asarray(dataset["batch"][:])
    few = np.sort(np.random.default_rng(run.seed).permutation(len(dataset))[:MIXED_CELLS])
    several = len(np.unique(numbers[few])) > 1
    say(f"{name}: adapting to {len(dataset):,} cells of {len(np.unique(numbers))} batches")
    before = mixing(loaded, tokenizer, dataset.select(few), numbers[few]) if several else None
    gained = adapt_model(loaded, tokenizer, dataset, run.seed, tell)
    if several:
        after = mixing(loaded, tokenizer, dataset.select(few), numbers[few])
        gained |= {"mixing of batches before": before, "mixing of batches after": after}
    familiarity = familiarity_of(loaded, tokenizer, dataset, run.seed, name, say)
    gained |= {"seconds": round(perf_counter() - began, 1), "seed": run.seed}
    with final_model(output) as folder:
        loaded.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if familiarity is not None:
            familiarity.save(folder)
        write_results(folder, gained, card_of(output.name, Path(path).name, name, gained))
        save_trained_on(folder, dataset, tokenizer, path)
    return gained


def card_of(name: str, origin: str, data: str, gained: dict[str, Any]) -> "CardContent":
    """Return the card of a checkpoint that was adapted to cells; arguments are names, and what `adapt` returns."""
    from ..hub_cards.card import CardContent, DataSource

    number = gained["cells"]["train"]
    return CardContent(
        model_name=name,
        summary=f"{origin}, adapted to {number:,} unlabelled cells of {data}.",
        data=[DataSource(data, "not stated", "given by the user", number)],
        origin=origin,
        command=f"xtrimogene adapt {data} --model {origin} -o {name} --seed {gained['seed']}",
    )


def familiarity_of(
    model: Any, tokenizer: Any, dataset: Any, seed: int, name: str, say: Callable[[str], None]
) -> "Familiarity | None":
    """Return where the cells lie that a model was adapted to; None, and say so, if too few were held out to tell."""
    from ..inference.familiarity import LEAST_HELD_OUT, Familiarity
    from ..training.adapting import embeddings_of, split_cells

    held_out, train = split_cells(dataset, seed)
    embedded = embeddings_of(model, tokenizer, dataset).cpu().numpy()
    found = Familiarity.fit(embedded[train], embedded[held_out], f"{len(train):,} cells of {name}", seed)
    if found is None:
        say(
            f"{name}: {len(held_out)} cells were held out, and {LEAST_HELD_OUT} are needed to tell which cells are "
            f"unfamiliar, so `embed` will mark none: give more cells"
        )
    return found


def drawn_cells(
    adata: "AnnData | Corpus",
    tokenizer: Any,
    cells: TrainingInput,
    batches: Batched,
    seed: int,
    name: str,
    say: Callable[[str], None],
) -> Any:
    """Return at most 20,000 cells, drawn at random, with their batches.

    Raises:
        ValueError: If the column of the batches is missing, or cells without counts are drawn and may not be left out.
    """
    from ..training.adapting import MOST_CELLS
    from ..training.data.corpus import Corpus
    from ..training.data.dataset import SOURCE, cells_dataset

    rng = np.random.default_rng(seed)
    if isinstance(adata, Corpus):
        drawn = np.sort(rng.permutation(len(adata))[:MOST_CELLS])
        return adata.with_batches(batches.batch_key or SOURCE).select(drawn)
    of_cells = np.zeros(adata.n_obs, np.int64)
    if batches.batch_key is not None:
        if batches.batch_key not in adata.obs:
            raise ValueError(
                f"batch_key is {batches.batch_key!r}, and obs of {name} has the columns "
                f"{', '.join(map(str, adata.obs)) or 'none'}: name one of them, or leave it out"
            )
        of_cells, _ = numbered_labels(adata.obs[batches.batch_key], batches.batch_key)
    counts = tokenizer.read_counts(adata, layer=cells.layer, gene_column=cells.gene_column)
    say(f"{name}: {counts.description}; {counts.match.summary()}")
    keep = np.zeros(adata.n_obs, bool)
    keep[rng.permutation(adata.n_obs)[:MOST_CELLS]] = True
    dataset = cells_dataset(counts, batches=of_cells, keep=keep, empty="drop")
    say_empty(int(keep.sum()) - len(dataset), int(keep.sum()), name, cells.drop_empty, say)
    return dataset


def mixing(model: Any, tokenizer: Any, dataset: Any, batches: np.ndarray) -> float:
    """Return how well the batches are mixed among the neighbours of cells, 1 = fully."""
    from ..eval.measures.probes import embedding_statistics
    from ..training.adapting import embeddings_of

    embeddings = embeddings_of(model, tokenizer, dataset).cpu().numpy()
    mixed = embedding_statistics(embeddings, None, batches, seed=0, standardize=False)["mixing of batches"]
    return float(mixed(np.arange(len(batches))))
