"""Algorithm 1 on small bandits, against sums by hand and loops in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sea_jax import bandits
from sea_jax.bandits import Agent, FinitePosterior
from sea_jax.ensemble import experience, heads
from sea_jax.ensemble.linear import LinearPosterior
from sea_jax.ensemble.selection import STRATEGIES
from sea_jax.errors import InputError

LINEAR = LinearPosterior(16, prior_scale=3.0, newton_steps=2)


def circle(share=0.8):
    """Three arms in a circle, and one that loses to all."""
    table = np.full((4, 4), 0.5)
    for winner, loser in ((0, 1), (1, 2), (2, 0), (0, 3), (1, 3), (2, 3)):
        table[winner, loser], table[loser, winner] = share, 1 - share
    return table


def problems(num_seeds, num_arms=5):
    draw = partial(bandits.linear, num_contexts=3, num_arms=num_arms, width=4, scale=3.0)
    return jax.vmap(draw)(jax.random.split(jax.random.key(0), num_seeds))


def test_the_winner_of_a_circle_is_the_uniform_policy_over_it():
    np.testing.assert_allclose(bandits.von_neumann_winner(circle()), [1 / 3, 1 / 3, 1 / 3, 0], atol=1e-9)
    # Unequal sides of the circle: arm 0 is ahead of 1 by a, 1 of 2 by b, 2 of 0 by c; then π = (b, c, a) / sum.
    table = np.array([[0.5, 0.6, 0.2], [0.4, 0.5, 0.9], [0.8, 0.1, 0.5]])
    np.testing.assert_allclose(bandits.von_neumann_winner(table), np.array([4, 3, 1]) / 8, atol=1e-9)


def test_no_policy_beats_the_winner_and_a_best_arm_wins_alone():
    rng = np.random.default_rng(0)
    for _ in range(20):
        above = np.triu(rng.uniform(size=(6, 6)), 1)
        table = above + np.tril(1 - above.T, -1) + 0.5 * np.eye(6)
        winner = bandits.von_neumann_winner(table)
        assert winner.sum() == pytest.approx(1) and (winner @ table).min() > 0.5 - 1e-9
    rewards = rng.normal(size=6)
    table = 1 / (1 + np.exp(rewards - rewards[:, None]))
    np.testing.assert_allclose(bandits.von_neumann_winner(table), np.arange(6) == rewards.argmax(), atol=1e-9)


@pytest.mark.parametrize("wrong, said", [
    (np.full((2, 2), 0.5), "preference of shape (2, 2)"),
    (np.full((1, 2, 3), 0.5), "preference of shape (1, 2, 3)"),
    (np.array([[[0.5, 0.7], [0.7, 0.5]]]), "preference[0, 0, 1]=0.7"),
    (np.array([[[0.5, 1.2], [-0.2, 0.5]]]), "preference[0, 0, 1]=1.2"),
    (np.array([[[0.5, np.nan], [0.5, 0.5]]]), "preference[0, 0, 1]=nan"),
])  # fmt: skip
def test_preferences_that_are_none(wrong, said):
    with pytest.raises(InputError) as error:
        bandits.from_preferences(wrong)
    assert str(error.value) == f"{said}: valid is [X, A, A] in [0, 1] with P(a ≻ b) + P(b ≻ a) = 1"


def test_rewards_give_bradley_terry_preferences():
    rewards = jnp.array([[1.0, 3.0, -1.0]])
    problem = bandits.from_rewards(jnp.zeros((1, 3, 2)), rewards)
    assert problem.preference[0, 1, 0] == pytest.approx(1 / (1 + np.exp(-2)))
    assert problem.winner.tolist() == [[0, 1, 0]]


def test_the_exact_posterior_is_bayes_rule():
    rng = np.random.default_rng(1)
    weights, features = rng.normal(size=(5, 3)), rng.normal(size=(7, 2, 3))
    posterior = FinitePosterior(20_000)
    state = posterior.init(jax.random.key(0), 3, {"weights": jnp.asarray(weights, jnp.float32)})
    data = experience.add(
        experience.init(10, 3), jnp.asarray(features, jnp.float32), jnp.ones(7), jnp.arange(7) != 2
    )
    state, _ = posterior.update(jax.random.key(1), state, data)
    likelihood = np.ones(5)
    for i in set(range(7)) - {2}:
        likelihood *= 1 / (1 + np.exp(-weights @ (features[i, 0] - features[i, 1])))
    expected = likelihood / likelihood.sum()
    np.testing.assert_allclose(jax.nn.softmax(state.opt_state), expected, rtol=1e-4)
    drawn = np.asarray(state.params["out"]["kernel"])[:, None, :, 0]
    share = (np.abs(drawn - weights) < 1e-6).all(-1).mean(0)
    np.testing.assert_allclose(share, expected, atol=0.015)


def test_rounds_are_those_of_a_loop():
    """Algorithm 1 line by line, with regrets from Sec. 2's definition by loops over arms."""
    problem = jax.tree.map(lambda x: x[0], problems(1))
    agent, rounds, key = Agent("ee_ts", LINEAR), 12, jax.random.key(5)
    found = bandits.algorithm.run(key, problem, agent, rounds)
    init_key, rounds_key = jax.random.split(key)
    state, data = LINEAR.init(init_key, 4, None), experience.init(rounds, 4)
    prefers = np.asarray(problem.preference, float)
    for t, round_key in enumerate(jax.random.split(rounds_key, rounds)):
        context_key, order_key, select_key, label_key, posterior_key = jax.random.split(round_key, 5)
        c = int(jax.random.randint(context_key, (), 0, 3))
        arms = np.asarray(jax.random.permutation(order_key, 5))
        rewards = heads.rewards(state.params, problem.features[c][arms][None])
        duel = STRATEGIES["ee_ts"](select_key, rewards)
        a, b = arms[int(duel.first[0])], arms[int(duel.second[0])]
        best = max(range(5), key=lambda i: min(prefers[c, i, j] for j in range(5)))
        assert found.regret[t] == pytest.approx(prefers[c, best, a] + prefers[c, best, b] - 1, abs=1e-5)
        assert bool(found.void[t]) == (a == b)
        if a != b:
            won = bool(jax.random.bernoulli(label_key, prefers[c, a, b]))
            ranked = jnp.array([a, b] if won else [b, a])
            data = experience.add(data, problem.features[c][ranked][None], jnp.ones(1), jnp.ones(1, bool))
        state, _ = LINEAR.update(posterior_key, state, data)
        mean = np.asarray(heads.rewards(state.params, problem.features)).mean(0)
        simple = [max(prefers[i, j, mean[i].argmax()] for j in range(5)) - 0.5 for i in range(3)]
        assert found.simple_regret[t] == pytest.approx(np.mean(simple), abs=1e-5)


def test_seeds_at_once_are_seeds_one_by_one():
    keys, drawn, agent = jax.random.split(jax.random.key(1), 3), problems(3), Agent("bai_ts", LINEAR)
    together = bandits.simulate(keys, drawn, agent, 6)
    alone = bandits.algorithm.run(keys[2], jax.tree.map(lambda x: x[2], drawn), agent, 6)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a[2], b, atol=1e-4)


def test_thompson_sampling_stops_losing_and_random_pairs_do_not():
    keys, drawn = jax.random.split(jax.random.key(1), 100), problems(100)
    half = {}
    for strategy in ("ee_ts", "passive"):
        regret = np.asarray(bandits.simulate(keys, drawn, Agent(strategy, LINEAR), 60).regret)
        half[strategy] = regret[:, :30].sum(1).mean(), regret[:, 30:].sum(1).mean()
    assert half["ee_ts"][1] < 0.6 * half["ee_ts"][0]
    assert half["passive"][1] == pytest.approx(half["passive"][0], rel=0.1)


def test_in_a_circle_a_bradley_terry_posterior_recommends_an_arm_that_another_beats():
    drawn = bandits.from_preferences(circle()[None])
    found = bandits.algorithm.run(jax.random.key(0), drawn, Agent("bai_ts", LINEAR), 60)
    assert found.simple_regret[-1] == pytest.approx(0.3, abs=1e-5)
