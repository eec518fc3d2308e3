"""Variants that are trained beside each other."""

import pytest

from xtrimogene.eval.tasks.ablation import BASE, LEARNING_RATE, PERFORMER, VARIANTS, AblationOptions, plans_of


def test_each_variant_differs_from_the_first_in_what_it_is_called():
    plans = plans_of(AblationOptions(variants=list(VARIANTS)))
    base = plans[BASE].config.to_dict()
    for name, (changes, zero_ratio) in VARIANTS.items():
        config = plans[name].config.to_dict()
        assert {key for key in config if config[key] != base[key]} == set(changes), name
        assert plans[name].zero_ratio == zero_ratio


def test_the_performer_is_trained_only_if_asked_for_and_sizes_only_beside_each_other():
    assert set(plans_of(AblationOptions())) == set(VARIANTS) - {PERFORMER}
    plans = plans_of(AblationOptions(variants=[BASE], sizes=["3M", "10M"]))
    assert {name: plan.size for name, plan in plans.items()} == {BASE: "3M", "size 3M": "3M", "size 10M": "10M"}
    assert plans["size 10M"].config.hidden_size > plans["size 3M"].config.hidden_size


@pytest.mark.parametrize("asked", [{"variants": ["wider"]}, {"sizes": ["1B"]}])
def test_unknown_variants_and_sizes_are_named_with_those_there_are(asked):
    (((name,),),) = [tuple(asked.values())]
    with pytest.raises(ValueError, match=f"no such variant: '{name}'; there are {BASE}") as refused:
        plans_of(AblationOptions(**asked))
    assert all(each in str(refused.value) for each in [*VARIANTS, *LEARNING_RATE])
