"""An option is declared once, and everything else follows from its declaration."""

import dataclasses
import inspect
import pickle
from typing import Annotated, Literal

import numpy as np
import pytest

import xtrimogene
from xtrimogene.inference.options import Running
from xtrimogene.options import Option, Options, build, flat, group, leaves, spelled_out
from xtrimogene.recipes.options import Finetuning, Pretraining
from xtrimogene.tokenization.masking import Masking
from xtrimogene.training.options import Batching, Converting, Descent, HeldOut, Seeded


@group
class Masks(Options):
    zero_ratio: Annotated[float, Option("Share of zero genes.", least=0, most=1)] = 0.03
    unmeasured: Annotated[Literal["ignore", "zero"], Option("What unmeasured genes are.")] = "ignore"


@group
class Recipe(Options):
    label: Annotated[str, Option("Column of labels.")]
    masks: Masks = Masks()
    batch_size: Annotated[int | Literal["auto"], Option("Cells of a step.", least=1)] = "auto"
    rate: Annotated[float | None, Option("Learning rate.", least=0, default="that of the size")] = None


def test_a_group_within_a_group_stands_flat_in_its_place_and_builds_back():
    recipe = Recipe(label="type", masks=Masks(zero_ratio=0.5), batch_size=8)
    values = {"label": "type", "zero_ratio": 0.5, "unmeasured": "ignore", "batch_size": 8, "rate": None}
    assert [leaf.name for leaf in leaves(Recipe)] == list(values)
    assert flat(recipe) == values
    assert build(Recipe, values) == recipe
    assert build(Recipe, {"label": "type"}) == Recipe(label="type")


def test_a_group_is_frozen_takes_keywords_only_and_tells_readers_of_dataclasses_its_help():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Masks().zero_ratio = 0.5
    with pytest.raises(TypeError):
        Masks(0.5)
    with pytest.raises(TypeError, match="label"):
        Recipe()
    assert [field.metadata["help"] for field in dataclasses.fields(Masks)] == [
        "Share of zero genes.",
        "What unmeasured genes are.",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zero_ratio": 2}, "zero_ratio is 2: give at least 0 and at most 1"),
        ({"zero_ratio": float("nan")}, "zero_ratio is nan"),
        ({"unmeasured": "nothing"}, "unmeasured is 'nothing': give 'ignore', 'zero'"),
        ({"unmeasured": True}, "unmeasured is True"),
        ({"batch_size": 0}, "batch_size is 0: give at least 1, or 'auto'"),
        ({"batch_size": "many"}, "batch_size is 'many': give a whole number or 'auto'"),
        ({"rate": -1}, "rate is -1: give at least 0"),
        ({"zero_ration": 0.1}, "unknown option 'zero_ration'; options are batch_size, label, rate,"),
    ],
)
def test_values_out_of_range_and_unknown_names_are_refused(values, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build(Recipe, {"label": "type", **values})


def test_a_function_has_the_options_of_its_groups_as_keywords():
    @spelled_out
    def learn(cells, recipe: Recipe, times=1):
        """Learn.

        Args:
            cells: To learn from.
            recipe: How.
            times: How often.
        """
        return cells, recipe, times

    names = ["cells", "times", "label", "zero_ratio", "unmeasured", "batch_size", "rate"]
    assert list(inspect.signature(learn).parameters) == names
    assert inspect.signature(learn).parameters["zero_ratio"].default == 0.03
    assert learn("cells", label="type", zero_ratio=0) == ("cells", Recipe(label="type", masks=Masks(zero_ratio=0)), 1)
    for wrong in ({}, {"label": "type", "recipe": 1}):
        with pytest.raises(TypeError):
            learn("cells", **wrong)
    lines = [line.strip() for line in learn.__doc__.splitlines()]
    assert "zero_ratio: Share of zero genes. Default: 0.03." in lines
    assert "rate: Learning rate. Default: that of the size." in lines
    assert not any(line.startswith("recipe:") for line in lines)


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
