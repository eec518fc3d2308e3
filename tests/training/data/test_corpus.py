"""A corpus read in any order or as a stream gives the cells that went in, to the collators as they are."""

import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from xtrimogene.tokenization.collators import DataCollatorForMaskedExpression
from xtrimogene.training.data.corpus import read_corpus, stream_corpus
from xtrimogene.training.data.sampler import ShuffledCells


@pytest.fixture(autouse=True)
def without_a_pause(monkeypatch):
    """`datasets` waits for seconds at the end of each stream of several shards."""
    import datasets

    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)  # not in all versions


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for key in ("input_ids", "counts", "total", "cell_index", "length"):
            np.testing.assert_array_equal(one[key], other[key])


def test_every_cell_in_any_order(made, corpus):
    expected = made[1]
    assert len(corpus) == 560
    assert_same([corpus[row] for row in range(560)], list(expected))
    order = np.random.default_rng(0).permutation(560)
    assert_same(corpus.__getitems__(order.tolist()), expected.select(order))
    assert_same([corpus[-1]], [expected[559]])
    with pytest.raises(IndexError, match="index 560 of 560 cells"):
        corpus[560]
    np.testing.assert_array_equal(corpus["length"], expected["length"])
    assert corpus["source"].tolist() == ["a.h5ad"] * 200 + ["b.h5ad"] * 300 + ["c.h5ad"] * 60


def test_views_are_of_mapped_memory(corpus):
    cell = corpus[70]
    assert cell["input_ids"].dtype == cell["counts"].dtype == np.int32
    assert not cell["counts"].flags.owndata
    assert not cell["counts"].flags.writeable


def test_selected_cells_keep_their_index_and_travel_to_workers(made, corpus):
    part = corpus.select([9, 500, 3, 70]).select([3, 1, 1])
    assert [int(cell["cell_index"]) for cell in part] == [70, 500, 500]
    assert part["cell_index"].tolist() == [70, 500, 500]
    text = pickle.dumps(part)
    assert len(text) < 100_000
    assert_same(list(pickle.loads(text)), made[1].select([70, 500, 500]))
    assert len(part.dataset) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_both_views_feed_the_collators_unchanged(made, corpus, tokenizer, workers):
    folder, expected = made
    collator = DataCollatorForMaskedExpression(tokenizer, seed=3)
    order = ShuffledCells(len(corpus), seed=1)
    ours = DataLoader(corpus, 32, sampler=order, collate_fn=collator, num_workers=workers)
    theirs = DataLoader(expected, 32, sampler=ShuffledCells(len(expected), seed=1), collate_fn=collator)
    for batch, other in zip(ours, theirs, strict=True):
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[key], other[key]) for key in batch)
    stream = DataLoader(stream_corpus(folder, seed=None), 32, collate_fn=collator)
    plain = DataLoader(expected, 32, collate_fn=collator)
    for batch, other in zip(stream, plain, strict=True):
        assert all(torch.equal(batch[key], other[key]) for key in batch)


def indices(cells):
    return [int(cell["cell_index"]) for cell in cells]


def test_a_stream_holds_every_cell_once_over_processes_and_workers(made):
    folder = made[0]
    seen = []
    for rank in range(2):
        stream = stream_corpus(folder, rank=rank, world_size=2, buffer_size=50)
        seen.append(indices(stream))
    assert sorted(seen[0] + seen[1]) == list(range(560))
    assert min(map(len, seen)) > 0
    stream = stream_corpus(folder, buffer_size=50)
    loader = DataLoader(stream, batch_size=None, num_workers=2)
    assert sorted(indices(loader)) == list(range(560))


def test_the_order_of_a_stream_follows_from_seed_and_epoch(made):
    folder = made[0]
    stream = stream_corpus(folder, seed=4)
    first = indices(stream)
    assert first != sorted(first)
    assert indices(stream_corpus(folder, seed=4)) == first
    assert indices(stream_corpus(folder, seed=5)) != first
    stream.set_epoch(1)
    assert sorted(indices(stream)) == sorted(first)
    assert indices(stream) != first
    assert indices(stream_corpus(folder, seed=None)) == list(range(560))


def test_a_stream_goes_on_where_it_stopped(made):
    folder = made[0]
    stream = stream_corpus(folder, seed=2, buffer_size=50)
    stream.set_epoch(3)
    whole = indices(stream)
    assert sorted(whole) == list(range(560))
    seen = []
    for count in (217, 100):  # stopped twice
        cells = iter(stream)
        seen += indices(next(cells) for _ in range(count))
        state, stream = stream.state_dict(), stream_corpus(folder, seed=2, buffer_size=50)
        stream.load_state_dict(state)
    assert seen + indices(stream) == whole
    assert indices(stream) == whole  # and what follows is whole again


def test_a_stream_of_some_sources(made):
    folder = made[0]
    assert sorted(indices(stream_corpus(folder, sources=["a.h5ad", "c.h5ad"]))) == [*range(200), *range(500, 560)]
    cell = next(iter(stream_corpus(folder, obs=["donor"], seed=None)))
    assert cell["donor"] == "donor0"
    with pytest.raises(ValueError, match=r"has no cells of 'd.h5ad'; its sources are a.h5ad, b.h5ad, c.h5ad"):
        stream_corpus(folder, sources=["d.h5ad"])


def test_a_corpus_may_lie_anywhere(made, tokenizer, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # it takes memory for a network
    files = fsspec.filesystem("memory")
    files.put(str(made[0]), "/corpora/one", recursive=True)
    try:
        stream = stream_corpus("memory://corpora/one", tokenizer)
        assert sorted(indices(stream)) == list(range(560))
        corpus = read_corpus("memory://corpora/one", tokenizer, cache_dir=str(tmp_path))
        assert_same([corpus[7]], [made[1][7]])
        files.rm("/corpora/one/data/cells-00002.parquet")
        with pytest.raises(FileNotFoundError, match=r"memory://corpora/one lacks 1 of 10 shards"):
            stream_corpus("memory://corpora/one")
    finally:
        files.rm("/corpora", recursive=True)


def test_datasets_reads_it_without_this_package(made, tmp_path):
    import datasets

    for arguments in ({"path": str(made[0])}, {"path": "parquet", "data_files": f"{made[0]}/data/*.parquet"}):
        cells = datasets.load_dataset(**arguments, split="train", cache_dir=str(tmp_path))
        assert_same([{key: np.asarray(value) for key, value in cells[210].items()}], [made[1][210]])
        assert cells[210]["source"] == "b.h5ad"
        assert cells[210]["source_row"] == 10
        assert cells[210]["donor"] == "donor0"


def test_the_adapter_of_the_documentation_gives_the_same_cells(made, pbmc, tokenizer):
    text = (Path(__file__).resolve().parents[3] / "docs" / "corpus.md").read_text()
    (code,) = (part.split("```")[0] for part in text.split("```python\n") if "class Blocks" in part)
    names: dict = {}
    exec(code, names)
    counts = tokenizer.read_counts(pbmc.raw.to_adata()).source.rows(0, 560)
    blocks = [counts[start : start + 100] for start in range(0, 560, 100)]
    cells = list(names["Blocks"](blocks, pbmc.raw.var_names, tokenizer))
    assert_same(cells, list(made[1]))
    batch = DataCollatorForMaskedExpression(tokenizer)(cells[:8])
    assert len(batch["input_ids"]) == 8


def test_pretraining_takes_a_corpus_as_it_is(corpus, made, tokenizer, tmp_path):
    from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining
    from xtrimogene.training.arguments import CellTrainingArguments
    from xtrimogene.training.pretraining import pretrain

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {f"decoder_{name}": value for name, value in sizes.items()} | {"decoder_head_dim": 8}
    losses = []
    for cells in (corpus, made[1]):
        torch.manual_seed(0)
        model = XTrimoGeneForPreTraining(XTrimoGeneConfig(**sizes, num_genes=tokenizer.num_genes))
        arguments = CellTrainingArguments(tmp_path, max_steps=2, per_device_train_batch_size=2, logging_steps=1)
        trainer = pretrain(model, tokenizer, cells.select(range(20)), cells.select(range(20, 24)), arguments=arguments)
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]
