"""Which duels of a pool are asked about, against determinants and covariances of weights in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import sigmoid

from sea_jax import algorithm
from sea_jax.ensemble import design, selection
from sea_jax.types import Candidates, Duel

rng = np.random.default_rng(0)


def duels(first, second, void=()):
    is_void = jnp.isin(jnp.arange(len(first)), jnp.array(void, int))
    return Duel(jnp.array(first), jnp.array(second), ~is_void, is_void)


def linear(K, P, M, E, scale=2.0):
    """Weights [K, E], features [P, M, E], rewards [K, P, M]."""
    weights, features = rng.normal(size=(K, E)), scale * rng.normal(size=(P, M, E))
    return weights, features, np.einsum("ke,pme->kpm", weights, features).astype(np.float32)


def test_of_a_pool_the_most_uncertain_duels_are_kept():
    rewards = rng.normal(size=(6, 5, 4)).astype(np.float32)
    pairs = [(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)]
    duel = duels(*zip(*pairs, strict=True), void=[1])
    variance = [np.var(sigmoid(rewards[:, i, a] - rewards[:, i, b])) for i, (a, b) in enumerate(pairs)]
    expected = sorted(sorted((0, 2, 4), key=lambda i: -variance[i])[:2])
    tokens = rng.integers(0, 9, (5, 4, 3)).astype(np.int32)
    tokens[3, 0] = tokens[3, 3]  # so that duel 3 teaches nothing
    candidates = Candidates(jnp.asarray(tokens), jnp.ones((5, 4, 3), bool), None)
    assert algorithm.most_informative(rewards, candidates, duel, 2, "variance").tolist() == expected
    # Void duels only where there are too few others.
    four = algorithm.most_informative(rewards, candidates, duel, 4, "variance").tolist()
    assert set(four) > {0, 2, 4}


def informations(rewards, pairs):
    mean = [sigmoid(rewards[:, i, a] - rewards[:, i, b]).mean() for i, (a, b) in enumerate(pairs)]
    return [p * (1 - p) for p in mean]


def greedy(precision, differences, information, count, value, void):
    """Chooses by brute force: the duel whose label gives the precision of the largest value."""
    chosen = []
    for _ in range(count):
        added = {
            i: precision + information[i] * np.outer(d, d)
            for i, d in enumerate(differences)
            if i not in chosen and i not in void
        }
        chosen.append(max(added, key=lambda i, a=added: value(a[i])))
        precision = added[chosen[-1]]
    return chosen


@pytest.mark.parametrize("choice", ["d_optimal", "i_optimal"])
def test_a_batch_is_chosen_as_by_brute_force(choice):
    """By log det of the precision of the weights, or by the mean variance of all centred rewards."""
    weights, features, rewards = linear(K=200, P=7, M=3, E=4)
    pairs = [(0, 1), (1, 2), (2, 0), (0, 2), (1, 0), (2, 0), (0, 1)]
    differences = [features[i, a] - features[i, b] for i, (a, b) in enumerate(pairs)]
    centred = (features - features.mean(1, keepdims=True)).reshape(-1, 4)
    value = {
        "d_optimal": lambda p: np.linalg.slogdet(p)[1],
        "i_optimal": lambda p: -np.einsum("ne,ef,nf->", centred, np.linalg.inv(p), centred),
    }[choice]
    information, precision = informations(rewards, pairs), np.linalg.inv(np.cov(weights.T))
    chosen = greedy(precision, differences, information, 4, value, void=[3])
    duel = duels(*zip(*pairs, strict=True), void=[3])
    found = jax.jit(design.POOL_CHOICES[choice], static_argnums=2)(jnp.asarray(rewards), duel, 4)
    assert found.tolist() == sorted(chosen)
    everything = design.POOL_CHOICES[choice](jnp.asarray(rewards), duel, 7)
    assert everything.tolist() == list(range(7))


def test_the_gain_of_a_pair_is_the_fall_in_mean_variance():
    weights, features, rewards = linear(K=100, P=3, M=4, E=5)
    covariance = np.cov(weights.T)
    centred = (features - features.mean(1, keepdims=True)).reshape(-1, 5)
    mean_variance = lambda c: np.einsum("ne,ef,nf->", centred, c, centred) / len(centred)  # noqa: E731
    found = np.asarray(jax.jit(design.pair_gains)(rewards))
    duel = selection.i_optimal(jax.random.key(0), jnp.asarray(rewards))
    for p in range(3):
        gains = {}
        for a, b in itertools.combinations(range(4), 2):
            d, mean = features[p, a] - features[p, b], sigmoid(rewards[:, p, a] - rewards[:, p, b]).mean()
            left = np.linalg.inv(np.linalg.inv(covariance) + mean * (1 - mean) * np.outer(d, d))
            gains[a, b] = mean_variance(covariance) - mean_variance(left)
            np.testing.assert_allclose(found[p, a, b], gains[a, b], rtol=1e-3)
            np.testing.assert_allclose(found[p, b, a], found[p, a, b], rtol=1e-5)
        assert (int(duel.first[p]), int(duel.second[p])) == max(gains, key=gains.get)


def test_members_that_agree_gain_nothing():
    rewards = jnp.ones((3, 2, 4)) * jnp.arange(4.0)
    assert (design.pair_gains(rewards) == 0).all()
    assert design.i_optimal(rewards, duels([0, 1], [1, 2]), 1).tolist() == [0]


@pytest.mark.parametrize("choice", ["variance", "d_optimal", "i_optimal"])
def test_a_batch_does_not_ask_one_question_twice(choice):
    """Two duels about one direction of larger variance, and one about another."""
    features = np.zeros((3, 2, 2))
    features[:2, 0, 0], features[2, 0, 1] = 4.0, 3.0
    rewards = np.einsum("ke,pme->kpm", rng.normal(size=(400, 2)), features)
    kept = design.POOL_CHOICES[choice](jnp.asarray(rewards), duels([0, 0, 0], [1, 1, 1]), 2)
    assert (2 in kept.tolist()) == (choice != "variance")
