"""What can be chosen of a training."""

import pytest

from xtrimogene.options import Options, build, flat, leaves
from xtrimogene.training import options

GROUPS = [
    kind for kind in vars(options).values()
    if isinstance(kind, type) and issubclass(kind, Options) and kind.__module__ == options.__name__
]  # fmt: skip
NEEDED = {options.LabelledSplit: {"label_key": "cell_type"}}


@pytest.mark.parametrize("kind", GROUPS, ids=lambda kind: kind.__name__)
def test_every_group_builds_from_its_flat_form_and_each_option_has_a_sentence(kind):
    made = kind(**NEEDED.get(kind, {}))
    assert build(kind, flat(made)) == made
    assert all(leaf.option.help.endswith((".", ";")) for leaf in leaves(kind))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (options.Optimization, {"ema": 1.5}),
        (options.Optimization, {"schedule": "square"}),
        (options.Batching, {"batch_size": 0}),
        (options.Batching, {"max_tokens": 0}),
        (options.HeldOut, {"validation_share": 0}),
        (options.Converting, {"max_mt_percent": 101}),
    ],
)
def test_what_no_training_can_do_is_refused(kind, values):
    (name,) = values
    with pytest.raises(ValueError, match=f"^{name} is "):
        kind(**values)


def test_defaults_are_those_of_the_released_model():
    chosen = options.Optimization()
    assert (chosen.schedule, chosen.weight_decay, chosen.max_grad_norm) == ("cosine", 0, 1)
