"""What can be chosen of a whole run."""

import pytest

from xtrimogene.options import build, flat, leaves
from xtrimogene.recipes.options import Demonstration, Finetuning, Pretraining
from xtrimogene.training.options import NewModel

NEEDED = {Finetuning: {"label_key": "cell_type"}}


@pytest.mark.parametrize("kind", [NewModel, Pretraining, Finetuning, Demonstration], ids=lambda kind: kind.__name__)
def test_every_group_builds_from_its_flat_form_and_says_each_name_once(kind):
    made = build(kind, NEEDED.get(kind, {}))
    names = [leaf.name for leaf in leaves(kind)]
    assert len(set(names)) == len(names)
    assert set(flat(made)) == set(names)
    assert build(kind, flat(made)) == made


def test_a_flat_option_reaches_the_group_it_belongs_to():
    recipe = build(
        Pretraining, {"zero_ratio": 0.1, "learning_rate": 1e-3, "seed": 5, "layer": "counts", "dropout": 0.2}
    )
    assert recipe.masking.zero_ratio == 0.1
    assert recipe.optimization.learning_rate == 1e-3
    assert (recipe.run.seed, recipe.cells.layer, recipe.new.dropout) == (5, "counts", 0.2)


@pytest.mark.parametrize(
    "values", [{"epochs": 0}, {"dropout": 0.95}, {"decoder_context": "some"}, {"report_to": "mail"}]
)
def test_what_no_run_can_do_is_refused(values):
    (name,) = values
    with pytest.raises(ValueError, match=f"^{name} is "):
        build(Pretraining, values)
