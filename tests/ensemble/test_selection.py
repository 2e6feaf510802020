"""Duels against Algorithm 2 written out with plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fits, sigmoid
from scipy import stats

from sea_jax.ensemble import selection, uncertainty

DRAWS = 3000


def entropy(p):
    return -p * np.log(p) - (1 - p) * np.log1p(-p)


def test_bald_takes_the_pair_whose_label_tells_most_of_the_member():
    rewards = np.random.default_rng(5).normal(size=(6, 9, 5)).astype(np.float32) * 3
    duel = selection.bald(jax.random.key(0), jnp.asarray(rewards))
    found = np.asarray(uncertainty.pair_information(jnp.asarray(rewards)))
    for b in range(9):
        tells = {}
        for i in range(5):
            for j in range(i + 1, 5):
                p = np.array([sigmoid(float(r[i]) - float(r[j])) for r in rewards[:, b]])
                tells[i, j] = entropy(p.mean()) - entropy(p).mean()
                assert found[b, i, j] == pytest.approx(tells[i, j], abs=1e-5)
        assert (int(duel.first[b]), int(duel.second[b])) == max(tells, key=tells.get)


def test_information_of_certain_members_is_a_bit_where_they_contradict_each_other():
    """Also where σ rounds to 0 and 1."""
    rewards = jnp.array([[300.0, 0.0, 300.0], [-300.0, 0.0, -300.0]])[:, None]
    found = uncertainty.pair_information(rewards)[0]
    np.testing.assert_allclose(found, np.log(2) * np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]), atol=1e-6)
    assert (uncertainty.pair_information(jnp.array([[[300.0, 0.0]]])) == 0).all()


def test_borda_ucb_compares_the_response_that_may_beat_most_with_a_random_other():
    rewards = np.random.default_rng(6).normal(size=(4, 3, 5)).astype(np.float32) * 2
    drawn = jax.vmap(lambda key: selection.borda_ucb(key, jnp.asarray(rewards)))(
        jax.random.split(jax.random.key(0), DRAWS)
    )
    for b in range(3):
        bounds = []
        for i in range(5):
            scores = [np.mean([sigmoid(r[i] - r[j]) for j in range(5) if j != i]) for r in rewards[:, b]]
            bounds.append(np.mean(scores) + variance(scores) ** 0.5)
        assert (np.asarray(drawn.first[:, b]) == argmax(bounds)).all()
        counts = np.bincount(np.asarray(drawn.second[:, b]), minlength=5)
        expected = np.where(np.arange(5) == argmax(bounds), 0, DRAWS / 4)
        assert fits(counts, expected / DRAWS) and not drawn.void.any()


def argmax(values):
    """Index of the largest value, the lowest one of equals."""
    best = 0
    for i, value in enumerate(values):
        if value > values[best]:
            best = i
    return best


def variance(values):
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / len(values)


def line_7(rewards, first, probability):
    """argmax_b V_φ[σ(r(y) − r(b))] over b ≠ y, one prompt: rewards [K, M]."""
    scores = []
    for b in range(rewards.shape[1]):
        margins = [r[first] - r[b] for r in rewards.astype(np.float64)]
        scores.append(variance([sigmoid(m) for m in margins] if probability else margins))
    scores[first] = -1.0
    return argmax(scores)


def bai_distribution(rewards, probability=True):
    """P(y, y') [M, M] of lines 5 and 7, every head equally likely."""
    K, M = rewards.shape
    table = np.zeros((M, M))
    for head in rewards:
        first = argmax(head)
        table[first, line_7(rewards, first, probability)] += 1 / K
    return table


def ee_distribution(rewards):
    """P(y, y') [M, M] of lines 5 and 6, by enumerating the heads that end the loop."""
    K, M = rewards.shape
    best = [argmax(head) for head in rewards]
    table = np.zeros((M, M))
    for first in best:
        others = [b for b in best if b != first]
        for second in others:
            table[first, second] += 1 / K / len(others)
    return table


def ee_loop(rng, rewards):
    """Lines 5 and 6 to the letter: repeat until y' ≠ y."""
    first = second = argmax(rewards[rng.integers(len(rewards))])
    while second == first:
        second = argmax(rewards[rng.integers(len(rewards))])
    return first, second


def random_rewards(K=5, B=4, M=4, seed=0):
    return np.random.default_rng(seed).normal(size=(K, B, M)).astype(np.float32) * 1.5


def counts(strategy, rewards, draws=DRAWS, seed=0):
    """How often each duel comes up: [B, M, M], and whether any was a void duel."""
    keys = jax.random.split(jax.random.key(seed), draws)
    duels = jax.jit(jax.vmap(selection.STRATEGIES[strategy], (0, None)))(keys, jnp.array(rewards))
    B, M = rewards.shape[1:]
    table = np.zeros((B, M, M), int)
    for b in range(B):
        np.add.at(table[b], (np.asarray(duels.first[:, b]), np.asarray(duels.second[:, b])), 1)
    assert (np.asarray(duels.query_oracle) == ~np.asarray(duels.void)).all()
    assert duels.first.dtype == duels.second.dtype == jnp.int32
    return table, np.asarray(duels.void)


def test_bai_ts_second_is_line_7_for_the_drawn_first():
    """Draw by draw, and the drawn member reproduced by the same call."""
    rewards = random_rewards(K=6, B=40, M=7, seed=1)
    for seed in range(3):
        key = jax.random.key(seed)
        member = np.asarray(jax.random.randint(key, (40,), 0, 6))
        duel = selection.bai_ts(key, jnp.array(rewards))
        for b in range(40):
            first = argmax(rewards[member[b], b])
            assert duel.first[b] == first
            assert duel.second[b] == line_7(rewards[:, b], first, probability=True)


@pytest.mark.parametrize("seed", [0, 1])
def test_bai_ts_frequencies(seed):
    rewards = random_rewards(seed=seed)
    table, void = counts("bai_ts", rewards, seed=seed)
    assert not void.any()
    for b in range(rewards.shape[1]):
        assert fits(table[b], bai_distribution(rewards[:, b]))


def test_bai_ts_logits_is_another_rule():
    """The logits' variance ranks by loops too, and differs from line 7 on large margins."""
    rewards = random_rewards(seed=2) * 4
    tables = [bai_distribution(rewards[:, b], probability=False) for b in range(4)]
    table, _ = counts("bai_ts_logits", rewards)
    assert all(fits(table[b], tables[b]) for b in range(4))
    assert any((tables[b] != bai_distribution(rewards[:, b])).any() for b in range(4))


@pytest.mark.parametrize("seed", [0, 1])
def test_ee_ts_frequencies_are_those_of_the_rejection_loop(seed):
    rewards = random_rewards(seed=seed + 10)
    table, void = counts("ee_ts", rewards, seed=seed)
    rng = np.random.default_rng(seed)
    assert not void.any()
    for b in range(rewards.shape[1]):
        exact = ee_distribution(rewards[:, b])
        assert fits(table[b], exact)
        literal = np.zeros_like(table[b])
        for _ in range(DRAWS):
            literal[ee_loop(rng, rewards[:, b])] += 1
        seen = exact > 0
        assert not literal[~seen].any()
        both = np.stack([literal[seen], table[b][seen]])
        assert stats.chi2_contingency(both).pvalue > 1e-4


def test_ee_ts_weighs_responses_by_heads():
    """3 heads like response 0, 2 like 1, 1 likes 2: after y = 0, y' is 1 twice as often as 2."""
    best = [0, 0, 0, 1, 1, 2]
    rewards = np.eye(4, dtype=np.float32)[best][:, None]
    table, _ = counts("ee_ts", rewards)
    expected = np.zeros((4, 4))
    expected[0, 1], expected[0, 2] = 3 / 6 * 2 / 3, 3 / 6 * 1 / 3
    expected[1, 0], expected[1, 2] = 2 / 6 * 3 / 4, 2 / 6 * 1 / 4
    expected[2, 0], expected[2, 1] = 1 / 6 * 3 / 5, 1 / 6 * 2 / 5
    assert fits(table[0], expected)


def test_uncertainty_takes_the_most_disputed_pair():
    rewards = random_rewards(K=6, B=30, M=6, seed=3)
    duel = selection.uncertainty(jax.random.key(0), jnp.array(rewards))
    for b in range(30):
        pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
        scores = [variance([r[i] - r[j] for r in rewards[:, b].astype(float)]) for i, j in pairs]
        assert (duel.first[b], duel.second[b]) == pairs[argmax(scores)]
    assert not duel.void.any()


def widest(rewards):
    """The pair i < j of largest |r_i − r_j|, the first one of equals, one prompt: rewards [M]."""
    pairs = [(i, j) for i in range(len(rewards)) for j in range(i + 1, len(rewards))]
    return pairs[argmax([abs(float(rewards[i]) - float(rewards[j])) for i, j in pairs])]


@pytest.mark.parametrize("M", [2, 3, 8])
def test_max_margin_takes_the_widest_pair(M):
    """Against loops: plain rewards; rounded ones, full of ties; of several members, their mean."""
    plain = random_rewards(K=1, B=40, M=M, seed=5)
    for rewards in (plain, plain.round(), np.float32(8) * random_rewards(K=3, B=40, M=M, seed=6).round()):
        duel = selection.max_margin(jax.random.key(0), jnp.array(rewards))
        for b in range(40):
            assert (duel.first[b], duel.second[b]) == widest(rewards[:, b].astype(float).mean(0))
        assert duel.query_oracle.all() and not duel.void.any()


def test_max_margin_by_hand():
    """The lowest of several best and worst; a copy of the best is not its partner; all equal: the first two."""
    rewards = np.float32([[[1, 3, 0, 3, 0], [2, 2, 2, 2, 1.5], [-9, 4, 4, -9, 4], [0, 0, 0, 0, 0]]])
    duel = selection.max_margin(jax.random.key(0), jnp.array(rewards))
    assert duel.first.tolist() == [1, 0, 0, 0] and duel.second.tolist() == [2, 4, 1, 1]


def test_passive_takes_the_first_two():
    duel = selection.passive(jax.random.key(0), jnp.array(random_rewards()))
    assert (duel.first == 0).all() and (duel.second == 1).all() and not duel.void.any()


def test_best_vs_random_frequencies():
    """A Thompson draw against one of the other responses, each as likely."""
    rewards = random_rewards(seed=7)
    table, void = counts("best_vs_random", rewards)
    K, B, M = rewards.shape
    for b in range(B):
        expected = np.zeros((M, M))
        for head in rewards[:, b]:
            expected[argmax(head)] += 1 / K / (M - 1)
        np.fill_diagonal(expected, 0)
        assert fits(table[b], expected)
    assert not void.any()


@pytest.mark.parametrize("strategy", ["bai_ts", "bai_ts_logits", "ee_ts"])
def test_heads_are_drawn_for_each_prompt_by_itself(strategy):
    """Head k likes response k best: y_t tells which head was drawn. Two prompts are independent."""
    K = 3
    rewards = np.repeat(np.eye(K, dtype=np.float32)[:, None], 6, axis=1) * 3
    keys = jax.random.split(jax.random.key(5), DRAWS)
    duels = jax.jit(jax.vmap(selection.STRATEGIES[strategy], (0, None)))(keys, jnp.array(rewards))
    drawn = [duels.first] + ([(duels.second - duels.first) % K - 1] if strategy == "ee_ts" else [])
    for choice in drawn:
        outcomes = int(choice.max()) + 1
        joint = np.zeros((outcomes, outcomes))
        np.add.at(joint, (np.asarray(choice[:, 0]), np.asarray(choice[:, 5])), 1)
        assert fits(joint, np.full(joint.shape, 1 / outcomes**2))


@pytest.mark.parametrize("strategy", selection.STRATEGIES)
@pytest.mark.parametrize("shape", [(1, 3, 4), (4, 3, 2)], ids=["K=1", "M=2"])
def test_two_different_responses_unless_clash(strategy, shape):
    """One head, or two responses: E&E voids duels exactly where all heads agree, DRTS only where they do not."""
    rewards = random_rewards(*shape, seed=4)
    table, void = counts(strategy, rewards, draws=200)
    agree = (rewards.argmax(-1) == rewards.argmax(-1)[0]).all(0)
    if strategy != "double_reverse_ts":
        assert (void == (agree & (strategy == "ee_ts"))).all()
    else:  # one head's best response may be another's worst
        assert not (void & agree).any()
    for b in np.flatnonzero(~void.any(0)):
        assert np.trace(table[b]) == 0


def test_one_head_makes_bai_meet_the_lowest_other_response():
    """With K = 1 every variance is 0: y' is the lowest index that is not y."""
    rewards = np.float32([[[5, 1, 2], [1, 5, 2]]])
    duel = selection.bai_ts(jax.random.key(0), jnp.array(rewards))
    assert duel.first.tolist() == [0, 1] and duel.second.tolist() == [1, 0]


def test_ties_go_to_the_lowest_index():
    """All rewards equal; then heads that tie between 1 and 2; then b = 1 and 3 equally disputed."""
    for rewards in (np.zeros((3, 2, 4)), np.float32([[[0, 7, 7, 0]] * 2] * 3)):
        best = int(rewards[0, 0].argmax())
        for strategy in ("bai_ts", "bai_ts_logits"):
            duel = selection.STRATEGIES[strategy](jax.random.key(1), jnp.float32(rewards))
            assert (duel.first == best).all() and (duel.second != best).all()
            assert not duel.void.any()
        for strategy in (selection.uncertainty, selection.max_margin):
            duel = strategy(jax.random.key(1), jnp.float32(rewards))
            assert (duel.first == 0).all() and (duel.second == 1).all()
        duel = selection.ee_ts(jax.random.key(1), jnp.float32(rewards))
        assert duel.void.all() and not duel.query_oracle.any()
    disputed = np.float32([[[9, 1, 0, 1]], [[9, 8, 0, 8]]])
    assert selection.bai_ts(jax.random.key(0), jnp.array(disputed)).second == 1
    pair = selection.uncertainty(jax.random.key(0), jnp.array(disputed))
    assert (int(pair.first[0]), int(pair.second[0])) == (0, 1)


@pytest.mark.parametrize("strategy", ["bai_ts", "bai_ts_logits", "uncertainty"])
def test_undisputed_margins_do_not_pair_a_response_with_its_copy(strategy):
    """Equal rewards under every head mean a copy; it is met only if nothing else is there."""
    rewards = jnp.float32([[[5, 5, 1, 0]]])  # one head: every variance is 0
    duel = selection.STRATEGIES[strategy](jax.random.key(0), rewards)
    assert (int(duel.first[0]), int(duel.second[0])) == (0, 2)


def test_variances_against_loops():
    rewards = random_rewards(K=4, B=3, M=3, seed=6)
    first = np.array([2, 0, 1])
    r = rewards.astype(np.float64)
    probability = uncertainty.preference_variance(jnp.array(rewards), jnp.array(first))
    logit = uncertainty.logit_variance(jnp.array(rewards), jnp.array(first))
    pairs = uncertainty.pair_logit_variance(jnp.array(rewards))
    for b, i in enumerate(first):
        for j in range(3):
            margins = [r[k, b, i] - r[k, b, j] for k in range(4)]
            assert np.isclose(probability[b, j], variance([sigmoid(m) for m in margins]), atol=1e-6)
            assert np.isclose(logit[b, j], variance(margins), atol=1e-5)
            assert np.isclose(pairs[b, i, j], variance(margins), atol=1e-5)
