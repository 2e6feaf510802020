"""The host loop: what is bought, who labels, what is written, and that a seed decides everything."""

import json

import jax
import numpy as np
import pytest
from small_run import small_run

from sea_jax.runtime.metrics import MetricWriter


def train(folder, method, **overrides):
    run = small_run(folder, method, **overrides)
    asked = []
    label = run.labeller.label
    run.labeller.label = lambda prompts, *rest, **kw: asked.append(len(prompts)) or label(prompts, *rest, **kw)
    with MetricWriter(folder) as writer:
        run.loop(writer)
    read = lambda name: [json.loads(line) for line in (folder / name).read_text().splitlines()]  # noqa: E731
    return run, asked, read("metrics.jsonl"), read("samples.jsonl")


def test_queries_are_bought_by_gamma_after_burn_in_and_end_at_the_budget(tmp_path):
    """B = 4: four a step until 8 are bought, then round(0.5 · 4) = 2 a step, and the last one alone."""
    run, asked, metrics, samples = train(
        tmp_path, "sea", **{"train.query_budget": 13, "sea.burn_in": 8, "sea.gamma": 0.5}
    )
    assert asked == [4, 4, 2, 2, 1]
    assert run.labeller.num_queries == int(run.state.num_queries) == int(run.state.experience.size) == 13
    shares = [row["duel/from_oracle"] for row in metrics if "duel/from_oracle" in row]
    assert shares == [1, 1, 0.5, 0.5, 0.25]
    assert {row["labelled_by"] for row in samples} == {"oracle", "ensemble"}
    assert all(0 <= row["ensemble_probability"] <= 1 for row in samples)
    assert [row["queries"] for row in metrics if "eval/win_rate_sft" in row] == [0, 13]


@pytest.mark.parametrize("method", ["passive", "ceiling", "sea_oracle_only"])
def test_methods_without_synthetic_pairs_buy_every_duel(tmp_path, method):
    run, asked, metrics, _ = train(tmp_path, method, **{"sea.burn_in": 0})
    assert asked == [4, 4, 4, 4]
    learned = method == "sea_oracle_only"
    assert int(run.state.experience.size) == 16 * learned
    assert ("ensemble/accuracy_heldout" in metrics[0]) == learned


def test_a_cold_ensemble_leaves_the_choice_to_chance(tmp_path):
    run = small_run(tmp_path, "sea", **{"sea.passive_queries": 8})
    assert [run._strategy(done) for done in (0, 7, 8)] == ["passive", "passive", "bai_ts"]
    assert small_run(tmp_path, "passive")._strategy(100) == "passive"


def test_one_seed_gives_one_run_to_the_bit_and_another_seed_another(tmp_path):
    first, second, other = (
        train(tmp_path / name, "sea", seed=seed)[0].state.policy.params
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert not np.array_equal(first["head"]["kernel"], other["head"]["kernel"])
