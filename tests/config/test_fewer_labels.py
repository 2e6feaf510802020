"""The config of the comparison on fresh rewards."""

import pytest

from configs import fewer_labels
from sea_jax.config.overrides import for_method
from sea_jax.errors import InputError
from sea_jax.experiment import validate

FRESH = range(110, 120)
KINDS = ("", "slower", *fewer_labels.ABLATIONS)


def seeds(config):
    return {config.task.oracle_seed + i for i in range(config.num_seeds)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_valid_and_only_the_comparison_reads_fresh_rewards(kind):
    config = fewer_labels.get_config(kind)
    assert validate.check(config).problems == []
    fresh = kind in ("", "slower")
    assert seeds(config) == set(FRESH if fresh else range(5))
    assert config.eval.split == ("heldout" if fresh else "tuning")


@pytest.mark.parametrize("kind", fewer_labels.ABLATIONS)
def test_an_ablation_differs_from_the_method_by_its_own_fields(kind):
    """But for the split, the budget and the fields that say which rewards are drawn."""
    method = for_method(fewer_labels.get_config(), "posterior_rl").to_dict()
    ablation = for_method(fewer_labels.get_config(kind), "posterior_rl").to_dict()
    flat = lambda fields: {  # noqa: E731
        f"{section}.{name}": value
        for section, values in fields.items() if isinstance(values, dict) and section != "overrides"
        for name, value in values.items()
    }  # fmt: skip
    before, after = flat(method), flat(ablation)
    changed = {name: value for name, value in after.items() if before[name] != value}
    assert {
        k: v for k, v in changed.items() if k not in ("task.oracle_seed", "eval.split", "train.query_budget")
    } == (fewer_labels.ABLATIONS[kind])


def test_an_unknown_kind_names_the_valid_ones():
    with pytest.raises(InputError, match=r"kind 'faster': valid is one of .*'slower', 'default'"):
        fewer_labels.get_config("faster")
