"""Tests how the labels of an oracle are drawn, counted and checked."""

import numpy as np
import pytest

from sea_jax.oracles import bradley_terry, protocol
from sea_jax.oracles import labeller as labels


class Fixed:
    """An oracle that answers with given probabilities and records its queries."""

    def __init__(self, probability):
        self.answer = np.asarray(probability, np.float64)
        self.asked = []

    def probability(self, prompts, first, second):
        self.asked.append((prompts, first, second))
        return self.answer


def ask(labeller, size, seed=0):
    texts = [""] * size
    return labeller.label(texts, texts, texts, seed).prefers_first


def test_threshold():
    labeller = labels.Labeller(Fixed([0.0, 0.499, 0.501, 1.0]))
    for seed in range(5):
        answer = ask(labeller, 4, seed)
        assert answer.dtype == bool and answer.tolist() == [False, False, True, True]


def test_ties_are_fair_and_repeatable():
    labeller = labels.Labeller(Fixed(np.full(10_000, 0.5)))
    first = ask(labeller, 10_000, 3)
    assert abs(first.mean() - 0.5) < 0.025  # 5 σ
    np.testing.assert_array_equal(first, ask(labeller, 10_000, 3))
    assert (first != ask(labeller, 10_000, 4)).mean() > 0.4


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.7, 1.0])
def test_bernoulli_frequency(probability):
    labeller = labels.Labeller(Fixed(np.full(10_000, probability)), mode="bernoulli")
    spread = 5 * np.sqrt(probability * (1 - probability) / 10_000)
    assert abs(ask(labeller, 10_000).mean() - probability) <= spread


@pytest.mark.parametrize("mode", labels.MODES)
def test_flips(mode):
    answer = np.repeat([0.0, 1.0], 5_000)
    right = answer > 0.5
    clean = ask(labels.Labeller(Fixed(answer), mode), 10_000)
    np.testing.assert_array_equal(clean, right)
    noisy = ask(labels.Labeller(Fixed(answer), mode, flip_probability=0.1), 10_000)
    for half in (slice(0, 5_000), slice(5_000, None)):  # both labels are flipped alike
        assert abs((noisy != right)[half].mean() - 0.1) < 0.022
    flipped = ask(labels.Labeller(Fixed(answer), mode, flip_probability=1.0), 10_000)
    np.testing.assert_array_equal(flipped, ~right)


@pytest.mark.parametrize("mode", labels.MODES)
def test_flips_are_independent_of_the_other_draws(mode):
    labeller = labels.Labeller(Fixed(np.full(10_000, 0.5)), mode, flip_probability=0.3)
    plain = labels.Labeller(Fixed(np.full(10_000, 0.5)), mode)
    before, after = ask(plain, 10_000), ask(labeller, 10_000)
    assert abs((before != after).mean() - 0.3) < 0.023
    assert abs((before != after)[before].mean() - 0.3) < 0.033


def test_queries_are_counted_exactly():
    oracle = Fixed([0.1, 0.2, 0.3])
    labeller = labels.Labeller(oracle, num_queries=10)
    ask(labeller, 3)
    ask(labeller, 3)
    assert labeller.num_queries == 16
    assert ask(labeller, 0).shape == (0,)
    assert labeller.num_queries == 16 and len(oracle.asked) == 2
    with pytest.raises(ValueError):
        labeller.label(["", ""], ["", ""], [""], 0)
    assert labeller.num_queries == 16 and len(oracle.asked) == 2


def test_an_oracle_that_fails_costs_nothing_and_an_unusable_answer_costs_its_queries():
    class Failing:
        def probability(self, prompts, first, second):
            raise ConnectionError

    labeller = labels.Labeller(Failing())
    with pytest.raises(ConnectionError):
        ask(labeller, 2)
    assert labeller.num_queries == 0
    labeller = labels.Labeller(Fixed([np.nan, 0.5]))
    with pytest.raises(ValueError):
        ask(labeller, 2)
    assert labeller.num_queries == 2


class Hesitant:
    """An oracle that does not answer some comparisons."""

    def __init__(self, probability, answered):
        self.reply = protocol.Answers(np.asarray(probability), np.asarray(answered))

    def answers(self, prompts, first, second):
        return self.reply


@pytest.mark.parametrize("mode", labels.MODES)
def test_what_is_not_answered_gets_no_label(mode):
    """Half of the comparisons are dropped: they get no label and cost none; the rest are unaffected."""
    size = 10_000
    answered = np.arange(size) % 2 == 0
    whole = np.where(np.arange(size) % 3 == 0, 0.0, 1.0)
    labeller = labels.Labeller(Hesitant(np.where(answered, whole, np.nan), answered), mode, 0.5)
    texts = [""] * size
    found = labeller.label(texts, texts, texts, 0)
    np.testing.assert_array_equal(found.answered, answered)
    assert not found.prefers_first[~answered].any() and found.prefers_first[answered].any()
    np.testing.assert_array_equal(
        found.prefers_first[answered], ask(labels.Labeller(Fixed(whole), mode, 0.5), size)[answered]
    )
    assert (labeller.num_queries, labeller.num_dropped) == (size // 2, size // 2)
    assert labeller.metrics() == {"oracle/dropped": size // 2}


def test_a_bad_answer_is_not_mistaken_for_none():
    labeller = labels.Labeller(Hesitant([np.nan, np.nan], [False, True]))
    with pytest.raises(ValueError, match=r"probability\[1\] is nan"):
        ask(labeller, 2)
    assert (labeller.num_queries, labeller.num_dropped) == (1, 1)


def test_the_oracles_own_counts_are_passed_on():
    oracle = Fixed([0.5])
    oracle.metrics = lambda: {"oracle/calls": 3.0}
    assert labels.Labeller(oracle).metrics() == {"oracle/dropped": 0.0, "oracle/calls": 3.0}


def test_the_texts_reach_the_oracle_in_order():
    oracle = Fixed([0.9])
    labels.Labeller(oracle).label(["x"], ["y"], ["y'"], 0)
    assert oracle.asked == [(["x"], ["y"], ["y'"])]


@pytest.mark.parametrize(
    "answer, message",
    [
        ([0.5, np.nan], r"probability\[1\] is nan, must lie in \[0, 1\]"),
        ([0.5, 1.01], r"probability\[1\] is 1.01"),
        ([-0.01, 0.5], r"probability\[0\] is -0.01"),
        ([0.5], r"shape \(1,\), must be \(2,\)"),
        ([[0.5, 0.5]], r"shape \(1, 2\), must be \(2,\)"),
    ],
)
def test_unusable_answers(answer, message):
    with pytest.raises(ValueError, match=message) as error:
        ask(labels.Labeller(Fixed(answer)), 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mode": "soft"}, "mode: 'soft', must be one of"),
        ({"flip_probability": 1.5}, "flip_probability: 1.5"),
        ({"flip_probability": float("nan")}, "flip_probability: nan"),
        ({"num_queries": -1}, "num_queries: -1"),
    ],
)
def test_unusable_options(options, message):
    with pytest.raises(ValueError, match=message):
        labels.Labeller(Fixed([0.5]), **options)


# --- Bradley-Terry ----------------------------------------------------------------------------

BY_LENGTH = bradley_terry.BradleyTerryOracle(lambda prompts, texts: np.array([len(t) for t in texts]))


def test_bradley_terry_by_hand():
    answer = BY_LENGTH.probability(["", "", ""], ["aa", "a", "aaa"], ["a", "aaa", "aaa"])
    assert answer.dtype == np.float64
    # σ(1), σ(-2), σ(0)
    np.testing.assert_allclose(answer, [0.7310585786, 0.1192029220, 0.5], rtol=1e-9)
    assert answer[2] == 0.5


def test_bradley_terry_is_antisymmetric_and_survives_large_margins():
    first, second = ["a" * 5000, "aa"], ["", "aaaa"]
    there, back = (BY_LENGTH.probability(["", ""], *p) for p in ((first, second), (second, first)))
    np.testing.assert_allclose(there + back, 1.0, rtol=1e-12)
    assert there[0] == 1.0 and back[0] == 0.0


def test_rewards_are_checked():
    rewards = BY_LENGTH.rewards(["", ""], ["a", "aa"])
    assert rewards.dtype == np.float32 and rewards.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="responses: 1 given"):
        BY_LENGTH.rewards(["", ""], ["a"])
    scalar = bradley_terry.BradleyTerryOracle(lambda prompts, texts: np.zeros(()))
    with pytest.raises(ValueError, match=r"reward_fn: answer of shape \(\)"):
        scalar.rewards([""], ["a"])
