"""DPO on pairs that the posterior is sure of: the pairs and the step by brute force, and a whole run."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import batch, decoder
from small_run import FEW_UPDATES, loop, small_run

from sea_jax import algorithm
from sea_jax.ensemble import heads
from sea_jax.methods import posterior_dpo
from sea_jax.state import init_state
from sea_jax.types import Candidates, EnsembleState, PreferenceBatch, PromptBatch

step = jax.jit(posterior_dpo.preference_step, static_argnums=(0, 1))
update = jax.jit(algorithm.update, static_argnums=0)


def samples(B, G):
    """A tiny decoder, B prompts, G responses to each with features, and the members that score them."""
    model, params = decoder(seed=0)
    prompts = batch([3, 4, 1][:B], 4, "left", 11)
    tokens, mask = batch([4, 2, 3, 1, 4, 3] * B, 4, "right", 11, seed=1)
    tokens, mask = (x[: B * G].reshape(B, G, 4) for x in (tokens, mask))
    features = jnp.asarray(np.random.default_rng(0).normal(size=(B, G, 5)).astype(np.float32))
    members = heads.init(jax.random.key(0), heads.Head((3,)), 6, 5, optax.adam(1.0)).params
    settings = algorithm.UpdateSettings(model=model, policy_optimizer=optax.adam(1e-2))
    state = init_state(jax.random.key(1), params, settings.policy_optimizer, None)
    state = state._replace(ensemble=EnsembleState(members, members, ()))
    candidates = Candidates(jnp.asarray(tokens), jnp.asarray(mask), features)
    return settings, state, PromptBatch(*map(jnp.asarray, prompts)), candidates


def test_pairs_by_brute_force():
    rewards = np.random.default_rng(0).normal(size=(7, 40, 5)).astype(np.float32)
    pairs, bounds = posterior_dpo.surest_pairs(jnp.asarray(rewards), 0.8)
    for row in range(40):
        found = {}
        for i in range(5):
            for j in range(5):
                margin = rewards[:, row, i] - rewards[:, row, j]
                found[i, j] = margin.mean() - 0.8 * margin.std()
        best = max(found, key=lambda pair: found[pair])
        np.testing.assert_allclose(bounds[row], max(found[best], 0), rtol=1e-4, atol=1e-6)
        if found[best] > 0:
            assert tuple(np.asarray(pairs[row])) == best


def test_a_pair_of_equal_responses_has_no_bound():
    _, bounds = posterior_dpo.surest_pairs(jnp.ones((3, 2, 4)), 0.0)
    np.testing.assert_array_equal(bounds, 0)


def test_a_step_is_the_preference_update_on_these_pairs_alone():
    settings, state, prompts, candidates = samples(3, 4)
    _, ref_params = decoder(seed=1)
    new, metrics = step(settings, 0.9, state, ref_params, prompts, candidates)

    rewards = np.asarray(heads.rewards(state.ensemble.params, candidates.features))
    pairs, weight = [], []
    for row in range(3):
        margin = rewards[:, row, :, None] - rewards[:, row, None, :]
        bound = margin.mean(0) - 0.9 * margin.std(0)
        pairs.append(np.unravel_index(bound.argmax(), bound.shape))
        weight.append(float(bound.max() > 0))
    assert 0 < sum(weight) < 3  # one kind of row each
    rows, pairs = np.arange(3)[:, None], np.array(pairs)
    tokens, mask = candidates.tokens[rows, pairs], candidates.mask[rows, pairs]
    labelled = PreferenceBatch(*prompts, tokens, mask, None, jnp.zeros(3, bool), jnp.array(weight))
    expected, _ = update(settings, state, ref_params, labelled)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.policy, expected.policy)
    jax.tree.map(np.testing.assert_array_equal, new.ensemble, state.ensemble)
    assert int(new.step) == 0 and int(new.num_queries) == 0  # no label was bought
    np.testing.assert_allclose(metrics["rloo/sure"], np.mean(weight))


def test_without_a_sure_pair_the_policy_stays():
    settings, state, prompts, candidates = samples(2, 3)
    new, metrics = step(settings, 1e6, state, state.policy.params, prompts, candidates)
    assert float(metrics["rloo/sure"]) == 0
    jax.tree.map(np.testing.assert_array_equal, new.policy, state.policy)


def test_a_whole_run_learns_between_labels(tmp_path):
    run = small_run(tmp_path, "posterior_dpo", **FEW_UPDATES)
    assert not run.settings.learn_policy  # not on the labels themselves
    before = jax.tree.map(np.asarray, run.state.policy.params)
    rows, _ = loop(run)
    assert int(run.state.num_queries) == 16
    made = {row["queries"]: row["improve/updates"] for row in rows if "improve/updates" in row}
    assert made == {8: 3, 12: 2, 16: 2}
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), run.state.policy.params, before)
    assert any(jax.tree.leaves(moved))


def test_the_updates_of_a_step_end_at_the_limits():
    config = types.SimpleNamespace(max_kl=0.5, min_distinct=0.25)
    ends = posterior_dpo.DpoBetweenLabels().ends_early
    assert ends(config, {"rloo/kl": 0.6, "rloo/distinct": 1.0})
    assert not ends(config, {"rloo/kl": 0.4, "rloo/distinct": 1.0})
    assert ends(config, {"rloo/kl": 0.4, "rloo/distinct": 0.2})
