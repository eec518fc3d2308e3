"""What can be chosen where a model runs over cells."""

import pytest

from xtrimogene.inference import options
from xtrimogene.options import Options, build, flat

GROUPS = [
    kind for kind in vars(options).values()
    if isinstance(kind, type) and issubclass(kind, Options) and kind.__module__ == options.__name__
]  # fmt: skip


@pytest.mark.parametrize("kind", GROUPS, ids=lambda kind: kind.__name__)
def test_every_group_builds_from_its_flat_form(kind):
    assert build(kind, flat(kind())) == kind()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (options.Running, {"batch_size": 0}),
        (options.Running, {"dtype": "float16"}),
        (options.Embedding, {"pooling": "median"}),
        (options.Labelling, {"n_neighbors": 0}),
        (options.Labelling, {"unknown_threshold": 1.0}),
    ],
)
def test_what_no_run_can_do_is_refused(kind, values):
    (name,) = values
    with pytest.raises(ValueError, match=f"^{name} is "):
        kind(**values)
