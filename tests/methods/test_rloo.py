"""RLOO on the posterior: its schedule, its reward and gradient by hand, and whole runs."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import batch, decoder, full_logits, log_softmax
from helpers import chosen as gather
from small_run import loop, small_run

from sea_jax import algorithm
from sea_jax.ensemble import heads, selection
from sea_jax.errors import InputError
from sea_jax.experiment import validate
from sea_jax.methods import rloo
from sea_jax.models.generate import Responses
from sea_jax.types import Duel, PolicyState, PromptBatch

SMALL = {
    "rloo.pool_factor": 2, "rloo.num_prompts": 4, "rloo.num_responses": 3, "rloo.updates_per_label": 0.5,
    "rloo.burst_labels": (8, 12), "rloo.burst_updates": (3, 2),
}  # fmt: skip
BETA = 0.2
rng = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("bursts", "expected"),
    [
        (((8, 3), (12, 2)), {0: 0, 7: 0, 8: 3, 11: 3, 12: 5, 13: 5, 14: 6, 16: 7}),
        ((), {0: 0, 1: 0, 2: 1, 9: 4}),
    ],
)
def test_updates_are_due_by_labels(bursts, expected):
    labels, updates = zip(*bursts, strict=True) if bursts else ((), ())
    config = types.SimpleNamespace(burst_labels=labels, burst_updates=updates, updates_per_label=0.5)
    assert {n: rloo.updates_due(config, n) for n in expected} == expected
    assert [rloo.restarts(config, n, n + 4) for n in (0, 4, 8, 12)] == [
        False,
        bool(bursts),
        bool(bursts),
        False,
    ]


def test_the_reward_is_the_mean_less_the_spread_of_differences():
    members = heads.init(jax.random.key(0), heads.Head((5,)), 4, 3, optax.adam(1.0)).params
    features = rng.normal(size=(2, 6, 3)).astype(np.float32)
    rewards = np.asarray(heads.rewards(members, features))  # [4, 2, 6]
    expected = np.zeros((2, 6))
    for b in range(2):
        centred = np.array([r[b] - r[b].mean() for r in rewards])
        expected[b] = rewards[:, b].mean(0) - 0.7 * centred.std(0)
    np.testing.assert_allclose(rloo.posterior_reward(members, features, 0.7), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def step():
    """One step of plain gradient descent, so that the parameters' change is the gradient."""
    model, params = decoder(seed=0, num_layers=1)
    _, ref_params = decoder(seed=1, num_layers=1)
    prompts, prompt_mask = batch((3, 4), 4, "left", 11)
    tokens, mask = batch((4, 1, 3, 2, 4, 2), 4, "right", 11, seed=1)
    responses = Responses(tokens.reshape(2, 3, 4), mask.reshape(2, 3, 4), None)
    rewards = rng.normal(size=(2, 3)).astype(np.float32)
    update = jax.jit(rloo.policy_gradient_step, static_argnums=(0, 1))

    def gradient(micro_batch):
        optimizer = optax.with_extra_args_support(optax.sgd(1.0))
        settings = algorithm.UpdateSettings(model, optimizer, micro_batch=micro_batch)
        policy = PolicyState(params, optimizer.init(params))
        inputs = PromptBatch(prompts, prompt_mask), responses, jnp.asarray(rewards)
        after, metrics = update(settings, BETA, policy, ref_params, *inputs)
        return jax.tree.map(lambda a, b: np.asarray(a - b), params, after.params), metrics

    def logps(params):
        logits = full_logits((model, params), prompts, prompt_mask, responses.tokens)
        return (gather(log_softmax(logits), responses.tokens) * responses.mask).sum(-1)

    return gradient, logps, params, ref_params, rewards


def test_the_gradient_by_finite_differences(step):
    """Along random directions, of the sum of advantages times log-probs, with the advantages by loops."""
    gradient, logps, params, ref_params, rewards = step
    found, metrics = gradient(0)
    ratio = logps(params) - logps(ref_params)
    returns = rewards - BETA * ratio
    advantages = np.array([[r[g] - np.delete(r, g).mean() for g in range(3)] for r in returns])
    value = lambda p: -(advantages * logps(p)).mean()  # noqa: E731
    for seed in range(3):
        draw = np.random.default_rng(seed)
        direction = jax.tree.map(lambda p, d=draw: d.normal(size=p.shape).astype(np.float32), params)
        ahead, behind = (
            jax.tree.map(lambda p, v, s=sign: p + s * 1e-2 * v, params, direction) for sign in (1, -1)
        )
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, v: (g * v).sum(), found, direction)))
        np.testing.assert_allclose((value(ahead) - value(behind)) / 2e-2, slope, rtol=0.02, atol=2e-3)
    np.testing.assert_allclose(metrics["rloo/kl"], ratio.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["rloo/reward"], rewards.mean(), rtol=1e-5)


def test_micro_batches_sum_to_the_batch(step):
    whole, parts = (step[0](size)[0] for size in (0, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, parts)


def test_of_a_pool_the_most_uncertain_duels_are_kept():
    rewards = rng.normal(size=(6, 5, 4)).astype(np.float32)
    duel = Duel(
        *(jnp.array(x) for x in ([0, 1, 2, 3, 0], [1, 2, 3, 0, 2])), jnp.ones(5, bool), jnp.zeros(5, bool)
    )
    duel = duel._replace(void=duel.void.at[1].set(True))
    equal = jnp.array([False, False, False, True, False])
    variance = [
        np.var(1 / (1 + np.exp(-(rewards[:, i, a] - rewards[:, i, b]))))
        for i, (a, b) in enumerate(zip(duel.first, duel.second, strict=True))
    ]
    expected = sorted(sorted((0, 2, 4), key=lambda i: -variance[i])[:2])
    assert selection.most_informative(rewards, duel, equal, num_kept=2).tolist() == expected
    # Void duels only where there are too few others.
    assert selection.most_informative(rewards, duel, equal, num_kept=3).tolist() == [0, 2, 4]


def test_infomax_takes_the_pair_of_largest_variance():
    rewards = rng.normal(size=(6, 3, 5)).astype(np.float32) * 3
    duel = selection.infomax(jax.random.key(0), jnp.asarray(rewards))
    for b in range(3):
        spread = {
            (i, j): np.var(1 / (1 + np.exp(rewards[:, b, j] - rewards[:, b, i])))
            for i in range(5)
            for j in range(i + 1, 5)
        }
        assert (int(duel.first[b]), int(duel.second[b])) == max(spread, key=spread.get)


def test_a_whole_run_learns_between_labels(tmp_path):
    """Updates as the schedule has them, other prompts than the duels', no label for them."""
    run = small_run(tmp_path, "posterior_rl", **SMALL)
    before = jax.tree.map(np.array, run.state.policy.params)
    rows, _ = loop(run)
    assert int(run.state.num_queries) == run.labeller.num_queries == 16
    made = {row["queries"]: row["rloo/updates"] for row in rows if "rloo/updates" in row}
    assert made == {8: 3, 12: 2, 16: 2}
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, jax.device_get(run.state.policy.params))
    assert max(jax.tree.leaves(moved)) > 1e-4
    assert not any("policy/loss" in row for row in rows)  # no preference loss
    assert all(np.isfinite(row["rloo/kl"]) for row in rows if "rloo/kl" in row)


def test_a_burst_begins_at_the_first_policy(tmp_path):
    """The last burst makes no update: policy and moments are what they were at the start."""
    run = small_run(
        tmp_path, "posterior_rl", **SMALL | {"rloo.burst_labels": (8, 16), "rloo.burst_updates": (3, 0)}
    )
    first = jax.tree.map(np.array, run.state.policy)
    loop(run)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.state.policy), first)


def test_an_update_that_is_not_finite_ends_the_run(tmp_path, monkeypatch):
    """The policy stays as it was, and its inputs are saved."""
    run = small_run(tmp_path, "posterior_rl", **SMALL | {"rloo.burst_labels": (), "rloo.burst_updates": ()})
    before = jax.tree.map(np.array, run.state.policy)
    monkeypatch.setattr(rloo, "_reward", lambda *_: jnp.full((4, 3), jnp.nan))
    with pytest.raises(FloatingPointError, match=r"step 0: .*rloo/grad_norm.* is not finite"):
        loop(run)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.state.policy), before)
    assert (tmp_path / "non_finite_step_0" / "policy" / "model.safetensors").exists()


def test_a_run_is_the_same_again(tmp_path):
    states = []
    for name in ("a", "b"):
        run = small_run(tmp_path / name, "posterior_rl", **SMALL)
        loop(run)
        states.append(jax.device_get((run.state.policy, run.state.ensemble)))
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rloo.burst_labels": (64, 32)}, "config.rloo.burst_labels=(64, 32): valid is ascending"),
        ({"rloo.burst_updates": (5,)}, "config.rloo.burst_updates=(5,): valid is 2 numbers"),
        ({"rloo.num_responses": 1}, "config.rloo.num_responses=1: valid is at least 2"),
        (
            {"train.micro_batch": 4, "rloo.num_prompts": 6},
            "config.rloo.num_prompts=6: valid is a multiple of ",
        ),
    ],
)
def test_bad_fields(tmp_path, fields, said):
    from configs import quickstart

    config = quickstart.get_config()
    config.methods = ("posterior_rl",)
    config.update_from_flattened_dict(fields)
    with pytest.raises(InputError) as error:
        validate.load_task(config, tmp_path)
    assert said in str(error.value)
