"""Methods that are combinations of parts: what each changes against the one it is made from."""

import sqlite3
from itertools import pairwise

import jax
import numpy as np
import pytest
from small_run import FEW_UPDATES, go_on, loop, small_run, watched

from configs import quickstart
from sea_jax import train
from sea_jax.config.checks import Checks
from sea_jax.experiment.validate import check
from sea_jax.methods import METHODS

ADAM = {"train.learning_rate": 0.05}


def params(run):
    return jax.tree.map(np.array, run.state.policy.params)


def ended(folder, method, **fields):
    run = small_run(folder, method, **fields)
    before = params(run)
    loop(run)
    return run, before


def differ(a, b):
    return not all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_one_policy_writes_the_responses_of_a_round(tmp_path, monkeypatch):
    """Rounds of two steps: θ_0, θ_0, θ_2, θ_2 write, and the journal says so."""
    run = small_run(tmp_path, "iterative", **ADAM, **{"iterative.labels_per_round": 8})
    learned, step, told = [params(run)], train.train_step, []

    def watched_step(run, t, observer):
        told.append(run.actor.policy_step(t))
        record = step(run, t, observer)
        learned.append(params(run))
        return record

    monkeypatch.setattr(train, "train_step", watched_step)
    seen = watched(run)
    go_on(run)
    assert told == [0, 0, 2, 2] and len(seen) == 4
    assert all(differ(a, b) for a, b in pairwise(learned))
    for t, of in enumerate(told):
        jax.tree.map(np.testing.assert_array_equal, seen[t][0].params, learned[of])
    with sqlite3.connect(tmp_path / "labels.sqlite") as db:
        written = db.execute("SELECT DISTINCT step, policy_step FROM duels ORDER BY step").fetchall()
    assert written == list(enumerate(told))


def test_an_ensemble_beside_passive_changes_nothing_of_the_policy(tmp_path):
    one, _ = ended(tmp_path / "one", "passive", **ADAM)
    both, _ = ended(tmp_path / "both", "passive_ensemble", **ADAM)
    assert one.state.ensemble is None and int(both.state.experience.size) == 16
    jax.tree.map(np.testing.assert_array_equal, one.state.policy.params, both.state.policy.params)


def test_a_frozen_policy_stays_and_its_ensemble_learns(tmp_path):
    run = small_run(tmp_path, "frozen", **ADAM)
    before, heads = params(run), jax.tree.map(np.array, run.state.ensemble.params)
    loop(run)
    jax.tree.map(np.testing.assert_array_equal, before, run.state.policy.params)
    assert differ(heads, run.state.ensemble.params) and int(run.state.num_queries) > 0


def test_selm_is_xpo_with_alpha_times_beta(tmp_path):
    selm, _ = ended(tmp_path / "selm", "selm", **ADAM, **{"selm.alpha": 0.5, "train.beta": 0.25})
    xpo, _ = ended(tmp_path / "xpo", "xpo", **ADAM, **{"xpo.alpha": 0.125, "train.beta": 0.25})
    jax.tree.map(np.testing.assert_array_equal, selm.state.policy.params, xpo.state.policy.params)


@pytest.mark.parametrize("method", ["rlhf", "rlhf_offline"])
def test_rlhf_learns_from_a_reward_model_alone(tmp_path, method):
    run, before = ended(tmp_path, method, **FEW_UPDATES)
    assert run.settings.learn_policy is False and differ(before, run.state.policy.params)
    assert "hidden_0" in run.state.ensemble.params  # a network, where posterior_rl has a linear posterior
    assert (run.method.reference_share(run.config) == 1) == (method == "rlhf_offline")


@pytest.mark.parametrize("method", ["infomax", "bald", "borda_ucb", "double_reverse_ts", "delta_ucb"])
def test_a_strategy_by_name_is_a_method_with_the_preference_loss(tmp_path, method):
    run, before = ended(tmp_path, method)
    assert train.strategy(run, run.actor.encode(run.actor.rows[0])) == method
    assert run.method.learns == ("policy", "ensemble") and not run.method.synthetic
    assert differ(before, run.state.policy.params)


def test_a_frozen_policy_needs_best_of_n():
    config = quickstart.get_config()
    config.methods = ("frozen",)
    said = "config.eval.best_of=1: valid is at least 2 with methods='frozen', whose policy never changes"
    assert check(config).problems == [said]
    config.eval.best_of = 2
    assert not check(config).problems


def test_rounds_are_whole_steps_of_a_policy_without_delay():
    config = quickstart.get_config()
    config.methods, config.iterative.labels_per_round, config.train.staleness = ("iterative",), 6, 1
    checks = Checks(config)
    METHODS["iterative"].section.check_on_task(checks, 1000)
    assert checks.problems == [
        "config.iterative.labels_per_round=6: valid is a multiple of train.batch_size=4",
        "config.train.staleness=1: valid is 0 with methods='iterative', whose rounds are a delay of their own",
    ]
