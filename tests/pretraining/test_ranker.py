"""The rewards that ranker and priors are fitted to."""

import dataclasses
import pathlib
import types
from typing import Any

import numpy as np
import pytest

from sea_jax import tasks
from sea_jax.config.checks import Checks
from sea_jax.config.posterior import Backbone
from sea_jax.experiment.base_config import base_config
from sea_jax.pretraining import backbone, prepared
from sea_jax.pretraining.ranker import Ranker
from sea_jax.runtime.mesh import make_mesh


def ranker(name: str, family: str) -> Ranker:
    config = base_config()
    config.task.name, config.backbone.family = name, family
    config.backbone.update(num_prompts=2, num_responses=1, num_rewards=3)
    task: Any = types.SimpleNamespace(fingerprint="posts")
    absent: Any = None  # model, parameters and mesh, which rewards do not depend on
    return Ranker(config, pathlib.Path(), task, absent, absent, absent, "sft-1")


@pytest.mark.parametrize("name", ["mini_tldr_v2", "mini_tldr_v2_register"])
def test_a_family_of_another_task_gives_that_tasks_ranker_and_prior(name):
    """The experiments share the cached parts: the fields do not depend on who asks."""
    other = ranker("mini_tldr_v2_register", "mini_tldr_v2")
    own = ranker(name, "")
    same = own.recipe == other.recipe
    assert same == (name == "mini_tldr_v2")
    priors = [prepared.prior_recipe(made.config, "linear", made.recipe) for made in (own, other)]
    assert (priors[0] == priors[1]) == same


def test_a_family_of_another_task_gives_its_rewards():
    linear, asked = tasks.find("mini_tldr_v2").reward_family, ranker("mini_tldr_v2_register", "mini_tldr_v2")
    assert linear is not None
    np.testing.assert_array_equal(
        prepared.reward_family(asked.config).draw(1_000_000), linear.draw(1_000_000)
    )


def test_a_ranker_learns_in_all_layers(tiny, tmp_path, monkeypatch):
    """Also where only the policy's last ones learn: the experiments share the cached ranker."""
    whole, params = tiny
    model = whole.clone(config=dataclasses.replace(whole.config, trained_layers=1))
    made = ranker("mini_tldr_v2", "")
    made = Ranker(made.config, tmp_path, made.task, model, params, make_mesh(), "sft-1")
    made.__dict__.update(samples=(), rewards=np.zeros(0))
    trained: list[Any] = []
    options: dict[str, Any] = {}

    def train(config: Any, model: Any, *rest: Any, **given: Any) -> Any:
        trained.append(model)
        options.update(given)
        return types.SimpleNamespace(params={"mean": np.zeros(3)})

    monkeypatch.setattr(backbone, "train", train)
    assert made.backbone.model == whole and trained == [whole]
    assert options["saved"] is not None  # its checkpoints


@pytest.mark.parametrize(
    ("name", "family", "valid"),
    [
        ("mini_tldr_v2_register", "mini_tldr_v2", True),
        ("mini_tldr_v2", "", True),
        ("mini_tldr_v2", "mini_tldr", False),
        ("mini_tldr", "tldr", False),
    ],
)
def test_a_family_is_one_of_the_same_posts(name, family, valid):
    config = base_config()
    config.task.name, config.backbone.family = name, family
    checks = Checks(config)
    Backbone.check(checks)
    assert (checks.problems == []) == valid
    assert valid or f"config.backbone.family={family!r}" in checks.problems[0]
