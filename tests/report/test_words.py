"""The report's sentences, by hand."""

from sea_jax.report.runs import MethodRuns, with_gain
from sea_jax.report.words import in_words

REWARD = "eval/reward"


def method(label, *curves):
    """One method; each curve has the reward after 0, 100 and 200 labels."""
    seeds = {
        seed: [{"queries": 100 * i, REWARD: value} for i, value in enumerate(values)]
        for seed, values in enumerate(curves)
    }
    return MethodRuns(label, False, seeds)


def test_the_highest_level_that_somebody_reached_on_all_seeds():
    runs = {
        "passive": method("passive", [0, 1, 2], [0, 1, 2]),
        "sea": method("SEA", [0, 2, 3], [0, 4, 5]),
        "late": method("late", [0, 0, 1], [0, 2, 3]),
    }
    # 4 was reached by SEA on one seed only; 2 by SEA after 100 and 50, by passive after 200 and 200.
    assert in_words(runs, REWARD, (2.0, 4.0)) == (
        "To a mean hidden reward of 2: SEA needed 75 labels, passive 200 (2.7 times as many), "
        "late did not reach it on every seed within 200."
    )


def test_silence_where_nothing_can_be_compared():
    one = {"passive": method("passive", [0, 1, 2])}
    assert in_words(one, REWARD, (1.0,)) == ""
    assert in_words(one | {"sea": method("SEA", [0, 1, 2])}, REWARD, (9.0,)) == ""
    assert in_words(one | {"sea": method("SEA", [0, 1, 2])}, "eval/win_rate_reference", (0.9,)) == ""


def test_a_gain_is_the_reward_less_that_of_the_first_evaluation():
    rows = with_gain([{"queries": 0, REWARD: 4.0}, {"queries": 7}, {"queries": 100, REWARD: 6.0}])
    assert [row.get("eval/reward_gain") for row in rows] == [0.0, None, 2.0]
    runs = {"passive": MethodRuns("passive", False, {0: rows}), "sea": method("SEA", [1, 3, 3])}
    runs["sea"].seeds[0] = with_gain(runs["sea"].seeds[0])
    assert in_words(runs, "eval/reward_gain", (1.0,)) == (
        "To a gain of 1 in mean hidden reward: passive needed 50 labels, SEA 50 (1.0 times as many)."
    )


def test_no_multiple_of_nothing():
    """A level that the starting policy has needs no labels."""
    runs = {"passive": method("passive", [0, 1, 2]), "sea": method("SEA", [1, 2, 3])}
    assert in_words(runs, REWARD, (1.0,)) == (
        "To a mean hidden reward of 1: SEA needed 0 labels, passive 100."
    )
