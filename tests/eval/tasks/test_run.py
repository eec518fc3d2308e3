"""How a task runs, and which cells of a file it takes."""

import pytest

from xtrimogene.eval.tasks.ablation import AblationOptions
from xtrimogene.eval.tasks.annotation import AnnotationOptions
from xtrimogene.eval.tasks.embedding import EmbeddingOptions
from xtrimogene.eval.tasks.recovery import RecoveryOptions
from xtrimogene.eval.tasks.run import DrawnCells, Run
from xtrimogene.options import leaves


def test_a_run_has_one_seed_and_says_what_is_going_on(capsys):
    run = Run()
    run.say("on its way")
    assert (tuple(run.seeds), run.device, capsys.readouterr().out) == ((0,), "auto", "on its way\n")


def test_parts_tell_which_share_is_done():
    told = []
    assert list(Run(tell=told.append).parts({"a": 1, "b": 2}.items())) == [("a", 1), ("b", 2)]
    assert told == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("kind", [AblationOptions, AnnotationOptions, EmbeddingOptions, RecoveryOptions])
def test_tasks_on_cells_take_cells_in_the_same_way(kind):
    assert {leaf.name for leaf in leaves(DrawnCells)} == {"where", "max_cells"} <= {leaf.name for leaf in leaves(kind)}


def test_no_cells_at_all_are_refused():
    with pytest.raises(ValueError, match="max_cells is 0: give at least 1"):
        DrawnCells(max_cells=0)
