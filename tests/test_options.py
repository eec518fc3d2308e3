"""Groups of options: what they refuse, and how they are spelled out as keywords."""

import pickle

import numpy as np
import pytest

import xtrimogene
from xtrimogene.inference.options import Running
from xtrimogene.options import build, flat
from xtrimogene.recipes.options import Finetuning, Pretraining
from xtrimogene.tokenization.masking import Masking
from xtrimogene.training.options import Batching, Converting, Descent, HeldOut, Seeded


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Masking(zero_ratio="0.1"), "zero_ratio is '0.1': give a number"),
        (lambda: Masking(zero_ratio=None), "zero_ratio is None: give a number"),
        (lambda: Masking(zero_ratio=True), "zero_ratio is True: give a number"),
        (lambda: Masking(zero_ratio=float("nan")), "zero_ratio is nan: give at least 0 and at most 1"),
        (lambda: Masking(zero_ratio=np.float32(3)), "zero_ratio is 3.0: give at least 0 and at most 1"),
        (lambda: Masking(hidden_ratio=-1), "hidden_ratio is -1: give at least 0"),
        (lambda: Pretraining(epochs=2.5), "epochs is 2.5: give a whole number or None"),
        (lambda: Pretraining(epochs="3"), "epochs is '3': give a whole number or None"),
        (lambda: Pretraining(epochs=0), "epochs is 0: give at least 1"),
        (lambda: Pretraining(masking={"zero_ratio": 0.1}), "masking is {'zero_ratio': 0.1}: give a group of options"),
        (lambda: Pretraining(masking=HeldOut()), r"masking is HeldOut\(.*Masking\(\.\.\.\)"),
        (lambda: Running(batch_size=0), "batch_size is 0: give at least 1, or 'auto'"),
        (lambda: Running(batch_size=8.5), "batch_size is 8.5: give a whole number or 'auto'"),
        (lambda: Running(batch_size=True), "batch_size is True: give a whole number or 'auto'"),
        (lambda: Batching(bf16="false"), "bf16 is 'false': give True or False"),
        (lambda: Descent(schedule="fast"), "schedule is 'fast': give 'cosine', 'linear', 'constant_with_warmup'"),
        (lambda: Seeded(seed=-1), "seed is -1: give at least 0"),
        (lambda: Converting(obs="batch"), "obs is 'batch': give a list of names or None"),
        (lambda: Finetuning(label_key=None), "label_key is None: give text"),
    ],
)
def test_an_option_of_another_type_or_outside_of_its_range_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_of_numpy_become_those_of_python():
    batching = Batching(batch_size=np.int64(8), accumulate=np.int32(2), bf16=np.bool_(True))
    assert [type(value) for value in (batching.batch_size, batching.accumulate, batching.bf16)] == [int, int, bool]


def test_a_recipe_taken_apart_and_pickled_is_the_same():
    recipe = Pretraining(epochs=3, masking=Masking(zero_ratio=0.05))
    assert build(Pretraining, flat(recipe)) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_an_unknown_keyword_of_a_tool_is_refused_with_those_there_are():
    with pytest.raises(
        TypeError, match=r"embed: got an unexpected keyword argument 'layr'; it takes adata, model, .*layer"
    ):
        xtrimogene.tl.embed(None, "checkpoint", layr="counts")


def test_a_tool_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(xtrimogene.tl.embed)) is xtrimogene.tl.embed
