"""Regret of the duels that the oracle was shown: by hand, and in a whole run."""

import numpy as np
import pytest
from small_experiment import files, start

from sea_jax.experiment.online import OnlineMeter, immediate_regret
from sea_jax.oracles.bradley_terry import BradleyTerryOracle


def by_length(prompts, responses):
    return np.array([len(y) for y in responses], float)


def test_immediate_regret():
    """Rewards are lengths: the best of S_t has 4 and 2 characters, the best known 6 and 2."""
    pairs, proposals = [["a", "aaa"], ["", "aa"]], [["a", "aaa", "aaaa"], ["", "aa"]]
    found = immediate_regret(BradleyTerryOracle(by_length), ["p", "q"], pairs, proposals, [["aaaaaa"], ["a"]])
    np.testing.assert_allclose(found, [[4 - 2, 6 - 2], [2 - 1, 2 - 1]])
    without = immediate_regret(BradleyTerryOracle(by_length), ["p", "q"], pairs, proposals, [[], []])
    np.testing.assert_allclose(without, [[2, 2], [1, 1]])


@pytest.mark.parametrize("method", ["sea", "passive"])
def test_regret_and_kl_of_a_run(tmp_path, method, no_policy):
    start(tmp_path, method, **{"eval.regret": True, "eval.kl_samples": 2})()
    rows = files(tmp_path, method)[0]
    steps = [row for row in rows if "duel/regret" in row]
    assert steps
    for row in steps:
        assert row["duel/regret"] >= row["duel/regret_of_set"] >= 0
    bought = np.diff([0, *(row["queries"] for row in steps)])
    total = np.cumsum([row["duel/regret"] for row in steps] * bought)
    np.testing.assert_allclose([row["duel/regret_so_far"] for row in steps], total, rtol=1e-5)
    kl = [row["eval/kl"] for row in rows if "eval/kl" in row]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] != kl[0]
    assert "duel/regret" not in files_without_regret(tmp_path / "without", method)


def files_without_regret(folder, method):
    start(folder, method)()
    return {name for row in files(folder, method)[0] for name in row}


def test_sums_of_an_older_run_have_no_regret():
    meter = OnlineMeter()
    meter.restore({"wins": 2.0, "responses": 3.0, "best": None})
    assert meter.saved() == {"wins": 2.0, "responses": 3.0, "regret": 0.0}
