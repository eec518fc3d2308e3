"""Masks have the ratios asked for, follow from seed, epoch and cell alone, and lose no gene."""

import numpy as np
import pytest

from xtrimogene.tokenization.collators import (
    CELLS_AT_A_TIME,
    DataCollatorForExpression,
    DataCollatorForMaskedExpression,
)
from xtrimogene.tokenization.masking import mask_cells, stream_keys, uniform

G = 997


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    lengths = np.array([1, 40, 300, G, 120, 75])
    ids = np.concatenate([np.sort(rng.choice(G, length, replace=False)) for length in lengths])
    return ids, rng.uniform(0.1, 6, len(ids)).astype(np.float32), lengths


def rows(packed, lengths):
    return np.split(packed, np.cumsum(lengths)[:-1])


def test_visible_and_masked_genes_are_disjoint_ascending_and_complete(cells):
    ids, values, lengths = cells
    masked = mask_cells(ids, values, lengths, np.arange(6), G, expressed_ratio=0.5, zero_ratio=0.2)
    for cell in range(6):
        expressed = dict(zip(rows(ids, lengths)[cell], rows(values, lengths)[cell], strict=True))
        visible, shown = rows(masked.ids, masked.lengths)[cell], rows(masked.values, masked.lengths)[cell]
        hidden, labels = (rows(x, masked.masked_lengths)[cell] for x in (masked.masked_ids, masked.labels))
        assert not set(visible) & set(hidden)
        assert set(expressed) <= set(visible) | set(hidden)
        for part in (visible, hidden):
            assert (np.diff(part) > 0).all()
        assert [expressed[gene] for gene in visible] == shown.tolist()
        assert [expressed.get(gene, 0.0) for gene in hidden] == labels.tolist()


def test_ratios_are_those_asked_for():
    rng = np.random.default_rng(1)
    lengths = np.full(400, 100)
    ids = np.concatenate([np.sort(rng.choice(G, 100, replace=False)) for _ in lengths])
    values = np.ones(len(ids), np.float32)
    masked = mask_cells(ids, values, lengths, np.arange(400), G)
    is_expressed = masked.labels > 0
    assert abs(is_expressed.sum() / len(ids) - 0.3) < 0.01
    assert abs((~is_expressed).sum() / (400 * (G - 100)) - 0.03) < 0.001
    assert abs(masked.is_hidden.mean() - 0.8) < 0.01
    unchanged = ~masked.is_hidden & (masked.masked_values == masked.labels)
    assert abs(unchanged[~is_expressed].mean() - 0.1) < 0.01  # a zero shown as zero; random ones are above it
    zero_genes = masked.masked_ids[~is_expressed]
    per_gene = np.bincount(zero_genes, minlength=G)
    assert abs(np.corrcoef(per_gene, np.arange(G))[0, 1]) < 0.1  # no part of the panel is preferred


@pytest.mark.parametrize(("expressed", "zero"), [(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_ratios_of_nothing_and_everything(cells, expressed, zero):
    ids, values, lengths = cells
    masked = mask_cells(ids, values, lengths, np.arange(6), G, expressed_ratio=expressed, zero_ratio=zero)
    assert masked.lengths.tolist() == (lengths * (1 - expressed)).tolist()
    assert masked.masked_lengths.tolist() == (lengths * expressed + (G - lengths) * zero).tolist()


def test_a_mask_follows_from_seed_epoch_and_cell_alone(cells):
    ids, values, lengths = cells
    index = np.array([10, 11, 12, 13, 14, 15])

    def masks(order, **changes):
        parts = [(rows(ids, lengths)[i], rows(values, lengths)[i]) for i in order]
        packed = mask_cells(
            np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]),
            lengths[order], index[order], G, **changes,
        )  # fmt: skip
        columns = (packed.masked_ids, packed.labels, packed.masked_values, packed.is_hidden)
        split = [rows(column, packed.masked_lengths) for column in columns]
        return {i: [part[place].tolist() for part in split] for place, i in enumerate(order)}

    whole = masks([0, 1, 2, 3, 4, 5])
    assert masks([5, 2, 0, 4, 3, 1]) == whole
    assert masks([3, 1]) == {i: whole[i] for i in (3, 1)}
    assert masks([3, 1], seed=1)[3] != whole[3]
    assert masks([3, 1], epoch=1)[3] != whole[3]


def test_draws_are_uniform_and_independent():
    def draw(seed, stream):
        return uniform(stream_keys(seed, 0, stream, np.arange(300))[:, None], np.arange(400)[None, :])

    draws = draw(0, 0)
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(np.histogram(draws, bins=10, range=(0, 1))[0] / draws.size - 0.1).max() < 0.005
    for other in (draw(1, 0), draw(0, 1)):
        assert abs(np.corrcoef(draws.ravel(), other.ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < 0.01


@pytest.fixture
def examples(cells):
    ids, values, lengths = cells
    return [
        {"input_ids": i, "counts": np.ceil(v), "total": float(np.ceil(v).sum()), "cell_index": n, "labels": n % 2}
        for n, (i, v) in enumerate(zip(rows(ids, lengths), rows(values, lengths), strict=True))
    ]


def test_collators_pad_and_never_mask_depth_tokens(examples, depth_tokenizer):
    T, S = depth_tokenizer.num_genes, depth_tokenizer.num_genes + 1
    collator = DataCollatorForMaskedExpression(depth_tokenizer, expressed_ratio=1.0, zero_ratio=0.01)
    batch = collator(examples)
    assert batch["input_ids"].tolist() == [[T, S]] * 6  # all genes masked, both depth tokens there
    assert (batch["masked_ids"] < T).sum() == (batch["labels"] != -100).sum()
    assert ((batch["masked_ids"] == depth_tokenizer.pad_token_id) == (batch["labels"] == -100)).all()
    plain = DataCollatorForExpression(depth_tokenizer)(examples)
    assert plain["labels"].tolist() == [0, 1] * 3
    assert plain["attention_mask"].sum(1).tolist() == [len(e["input_ids"]) + 2 for e in examples]


def test_collator_masks_differ_between_epochs_only(examples, tokenizer):
    collator = DataCollatorForMaskedExpression(tokenizer, seed=3)
    first, again = collator(examples), collator(examples)
    collator.epoch = 1
    other = collator(examples)
    assert all((first[key] == again[key]).all() for key in first)
    assert first["masked_ids"].shape != other["masked_ids"].shape or (first["masked_ids"] != other["masked_ids"]).any()


def test_a_cell_is_masked_alike_in_every_batch(examples, tokenizer):
    cells = [example | {"cell_index": number} for number, example in enumerate(examples * 12)]
    assert len(cells) > 2 * CELLS_AT_A_TIME
    collator = DataCollatorForMaskedExpression(tokenizer, zero_ratio=0.2)
    batch, padding = collator(cells), {"input_ids": tokenizer.pad_token_id, "masked_ids": tokenizer.pad_token_id}
    for number in (0, CELLS_AT_A_TIME - 1, CELLS_AT_A_TIME, 2 * CELLS_AT_A_TIME + 3, len(cells) - 1):
        for key, alone in collator([cells[number]]).items():
            row, width = batch[key][number], alone.shape[1]
            assert (row[:width] == alone[0]).all()
            assert key not in padding or (row[width:] == padding[key]).all()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"expressed_ratio": 1.5}, "expressed_ratio is 1.5: it is a share"),
    ({"zero_ratio": -0.1}, "zero_ratio is -0.1: it is a share"),
    ({"hidden_ratio": 0.9, "random_ratio": 0.2}, "hidden_ratio 0.9 and random_ratio 0.2 must be shares whose sum"),
])  # fmt: skip
def test_impossible_ratios_are_refused(tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        DataCollatorForMaskedExpression(tokenizer, **arguments)


def test_empty_cells_are_refused_in_training(examples, tokenizer):
    examples[2] = examples[2] | {"input_ids": [], "counts": [], "cell_index": 77}
    with pytest.raises(ValueError, match=r"1 of 6 cells of a batch have no counts on the panel \(cell 77"):
        DataCollatorForExpression(tokenizer)(examples)


def test_a_gene_that_was_not_measured_is_never_masked_and_others_are_masked_as_before(cells):
    ids, values, lengths = cells
    is_measured = np.random.default_rng(2).random((6, G)) < 0.5
    for cell, expressed in enumerate(rows(ids, lengths)):
        is_measured[cell, expressed] = True

    def mask(**changes):
        return mask_cells(ids, values, lengths, np.arange(6), G, 0.5, 0.2, 0.5, 0.3, **changes)

    whole, part = mask(), mask(is_measured=is_measured)
    measured = is_measured[np.repeat(np.arange(6), whole.masked_lengths), whole.masked_ids]
    assert 0 < measured.sum() < len(measured)
    for column in ("masked_ids", "labels", "masked_values", "is_hidden"):
        np.testing.assert_array_equal(getattr(part, column), getattr(whole, column)[measured])
    for column in ("ids", "values", "lengths"):
        np.testing.assert_array_equal(getattr(part, column), getattr(whole, column))
    every = mask(is_measured=np.ones((6, G), bool))
    assert all((getattr(every, column) == getattr(whole, column)).all() for column in vars(whole))
