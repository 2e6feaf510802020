"""RLOO on the posterior: its schedule, its reward and gradient by hand, and whole runs."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import batch, decoder, full_logits, log_softmax
from helpers import chosen as gather
from small_run import FEW_UPDATES, loop, small_run

from sea_jax import algorithm
from sea_jax.ensemble import heads, selection, uncertainty
from sea_jax.errors import InputError
from sea_jax.experiment import validate
from sea_jax.methods import between_labels, rloo
from sea_jax.models.generate import Responses
from sea_jax.types import PolicyState, PromptBatch

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
    assert {n: between_labels.updates_due(config, n) for n in expected} == expected
    assert [between_labels.restarts(config, n, n + 4) for n in (0, 4, 8, 12)] == [
        False,
        bool(bursts),
        bool(bursts),
        False,
    ]


def test_the_kl_weight_falls_with_labels():
    config = types.SimpleNamespace(kl_weight=0.4, kl_half_labels=64.0)
    assert [between_labels.kl_weight(config, n) for n in (0, 64, 192)] == pytest.approx([0.4, 0.2, 0.1])
    config.kl_half_labels = float("inf")
    assert between_labels.kl_weight(config, 1000) == 0.4


def test_the_reward_is_the_mean_less_the_spread_of_differences():
    members = heads.init(jax.random.key(0), heads.Head((5,)), 4, 3, optax.adam(1.0)).params
    features = rng.normal(size=(2, 6, 3)).astype(np.float32)
    rewards = np.asarray(heads.rewards(members, features))  # [4, 2, 6]
    expected = np.zeros((2, 6))
    for b in range(2):
        centred = np.array([r[b] - r[b].mean() for r in rewards])
        expected[b] = rewards[:, b].mean(0) - 0.7 * centred.std(0)
    found = rloo.posterior_reward(members, features, "mean", 0.7)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_win_probability_meets_every_other_response():
    members = heads.init(jax.random.key(0), heads.Head((5,)), 4, 3, optax.adam(1.0)).params
    features = rng.normal(size=(2, 5, 3)).astype(np.float32)
    rewards = np.asarray(heads.rewards(members, features))  # [4, 2, 5]
    expected = np.zeros((2, 5))
    for b in range(2):
        for g in range(5):
            won = [
                np.mean([1 / (1 + np.exp(r[b, h] - r[b, g])) for h in range(5) if h != g]) for r in rewards
            ]
            expected[b, g] = np.mean(won) - 0.5 * np.std(won)
    found = rloo.posterior_reward(members, features, "win_probability", 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_distinct_responses_are_counted_by_their_tokens():
    tokens, mask = jnp.array([[[3, 4], [3, 5], [3, 4], [3, 4]]]), jnp.ones((1, 4, 2), bool)
    assert float(between_labels.share_distinct(Responses(tokens, mask, None))) == pytest.approx(2 / 4)
    mask = mask.at[..., 1].set(False)  # padding is not compared
    assert float(between_labels.share_distinct(Responses(tokens, mask, None))) == pytest.approx(1 / 4)


@pytest.fixture(scope="module")
def step():
    """One step of plain gradient descent, so that the parameters' change is the gradient."""
    model, params = decoder(seed=0, num_layers=1)
    _, ref_params = decoder(seed=1, num_layers=1)
    prompts, prompt_mask = batch((3, 4), 4, "left", 11)
    tokens, mask = batch((4, 1, 3, 2, 4, 2), 4, "right", 11, seed=1)
    responses = Responses(tokens.reshape(2, 3, 4), mask.reshape(2, 3, 4), None)
    rewards = rng.normal(size=(2, 3)).astype(np.float32)
    update = jax.jit(rloo.policy_gradient_step, static_argnums=0)

    def gradient(micro_batch, max_kl=np.inf):
        optimizer = optax.with_extra_args_support(optax.sgd(1.0))
        settings = algorithm.UpdateSettings(model, optimizer, micro_batch=micro_batch)
        policy = PolicyState(params, optimizer.init(params))
        inputs = PromptBatch(prompts, prompt_mask), responses, jnp.asarray(rewards)
        after, metrics = update(settings, BETA, max_kl, policy, ref_params, *inputs)
        return jax.tree.map(lambda a, b: np.asarray(a - b), params, after.params), metrics

    def logps(params):
        logits = full_logits((model, params), prompts, prompt_mask, responses.tokens)
        return (gather(log_softmax(logits), responses.tokens) * responses.mask).sum(-1)

    return gradient, logps, params, ref_params, rewards


@pytest.mark.parametrize("limited", [False, True])
def test_the_gradient_by_finite_differences(step, limited):
    """Along random directions, of the sum of advantages times log-probs, with the advantages by loops.

    With a limit between the two prompts' log-ratios the further one has no reward.
    """
    gradient, logps, params, ref_params, rewards = step
    ratio = logps(params) - logps(ref_params)
    limit = ratio.mean() if limited else np.inf
    found, metrics = gradient(0, limit)
    is_far = ratio.mean(1, keepdims=True) > limit
    assert is_far.sum() == limited
    returns = np.where(is_far, -ratio, rewards - BETA * ratio)
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
    whole, parts = (step[0](size, 0.0)[0] for size in (0, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, parts)


@pytest.mark.parametrize("strategy", ["double_reverse_ts", "delta_ucb"])
def test_pairs_of_a_large_gap(strategy):
    rewards = rng.normal(size=(6, 40, 5)).astype(np.float32)
    duel = selection.STRATEGIES[strategy](jax.random.key(3), jnp.asarray(rewards))
    best, worst = rewards.argmax(-1), rewards.argmin(-1)  # [6, 40]
    for b in range(40):
        first, second = int(duel.first[b]), int(duel.second[b])
        assert bool(duel.void[b]) == (first == second)
        if strategy == "double_reverse_ts":
            assert first in best[:, b] and second in worst[:, b]
            continue
        centred = rewards[:, b] - rewards[:, b].mean(-1, keepdims=True)
        mean, spread = centred.mean(0), centred.std(0)
        pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
        gap = {(i, j): mean[i] + spread[i] - mean[j] + spread[j] for i, j in pairs}
        assert gap[first, second] == pytest.approx(max(gap.values()), rel=1e-5)
    assert strategy == "delta_ucb" or len(set(np.asarray(duel.first).tolist())) > 1


def test_a_large_gap_is_between_two_responses():
    """Response 2 has the highest upper bound and the lowest lower one; 0 and 1 are copies."""
    rewards = jnp.array([[0.0, 0.0, 9.0, 1.0], [0.0, 0.0, -9.0, 1.0]])[:, None]
    duel = selection.delta_ucb(jax.random.key(0), rewards)
    assert (int(duel.first[0]), int(duel.second[0])) == (3, 2) and not duel.void[0]
    certain = jnp.array([[5.0, 5.0, 1.0]])[:, None]
    duel = selection.delta_ucb(jax.random.key(0), certain)
    assert int(duel.first[0]) in (0, 1) and int(duel.second[0]) == 2


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
    run = small_run(tmp_path, "posterior_rl", **FEW_UPDATES)
    before = jax.tree.map(np.array, run.state.policy.params)
    rows, _ = loop(run)
    assert int(run.state.num_queries) == run.labeller.num_queries == 16
    made = {row["queries"]: row["improve/updates"] for row in rows if "improve/updates" in row}
    assert made == {8: 3, 12: 2, 16: 2}
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, jax.device_get(run.state.policy.params))
    assert max(jax.tree.leaves(moved)) > 1e-4
    assert not any("policy/loss" in row for row in rows)  # no preference loss
    assert all(np.isfinite(row["rloo/kl"]) for row in rows if "rloo/kl" in row)


def test_a_burst_begins_at_the_first_policy(tmp_path):
    """The last burst makes no update: policy and moments are what they were at the start."""
    run = small_run(
        tmp_path, "posterior_rl", **FEW_UPDATES | {"rloo.burst_labels": (8, 16), "rloo.burst_updates": (3, 0)}
    )
    first = jax.tree.map(np.array, run.state.policy)
    loop(run)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.state.policy), first)


def test_an_update_that_is_not_finite_ends_the_run(tmp_path, monkeypatch):
    """The policy stays as it was, and its inputs are saved."""
    run = small_run(
        tmp_path, "posterior_rl", **FEW_UPDATES | {"rloo.burst_labels": (), "rloo.burst_updates": ()}
    )
    before = jax.tree.map(np.array, run.state.policy)
    monkeypatch.setattr(rloo, "_reward", lambda *_, **__: jnp.full((4, 3), jnp.nan))
    with pytest.raises(FloatingPointError, match=r"step 0: .*rloo/grad_norm.* is not finite"):
        loop(run)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.state.policy), before)
    assert (tmp_path / "non_finite_step_0" / "policy" / "model.safetensors").exists()


def test_a_run_is_the_same_again(tmp_path):
    states = []
    for name in ("a", "b"):
        run = small_run(tmp_path / name, "posterior_rl", **FEW_UPDATES)
        loop(run)
        states.append(jax.device_get((run.state.policy, run.state.ensemble)))
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_limits_end_the_updates_of_a_step(tmp_path):
    limits = {"rloo.burst_labels": (), "rloo.burst_updates": (), "rloo.min_distinct": 1.0}
    run = small_run(tmp_path, "posterior_rl", **FEW_UPDATES | limits)
    rows, _ = loop(run)
    made = [row["improve/updates"] for row in rows if "improve/updates" in row]
    distinct = [row["rloo/distinct"] for row in rows if "rloo/distinct" in row]
    assert len(made) == 4 and all(
        n == (1 if share < 1 else 2) for n, share in zip(made, distinct, strict=True)
    )


def test_a_policy_stays_within_its_limit(tmp_path):
    """A reward of the number of tokens leads far away; with a limit the same updates stay near it."""
    fields = {
        "rloo.burst_labels": (), "rloo.burst_updates": (), "rloo.updates_per_label": 8.0, "rloo.kl_weight": 0.0,
        "rloo.learning_rate": 0.01, "rloo.num_responses": 8, "train.max_idle_steps": 20,
    }  # fmt: skip
    last = {}
    for limit in (0.5, float("inf")):
        run = small_run(
            tmp_path / str(limit), "posterior_rl", **FEW_UPDATES | fields, **{"rloo.max_kl": limit}
        )
        rows, _ = loop(run)
        last[limit] = [row["rloo/kl"] for row in rows if "rloo/kl" in row][-1]
    assert last[0.5] < 2.0 < 10.0 < last[float("inf")], last


def test_no_update_follows_labels_that_contradict_the_posterior(tmp_path, monkeypatch):
    """The policy stays as it is, while labels are bought and learned from."""
    monkeypatch.setattr(between_labels, "contradicted", lambda run, learned: "ensemble/surprise" in learned)
    run = small_run(tmp_path, "posterior_rl", **FEW_UPDATES)
    start = jax.device_get(run.state.policy.params)
    rows, _ = loop(run)
    assert sum(row["improve/updates"] for row in rows if "improve/updates" in row) == 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.state.policy.params), start)
    assert run.labeller.num_queries == 16 and int(run.state.experience.size) == 16


def test_the_surprise_of_the_last_steps_adds_up():
    config = types.SimpleNamespace(rloo=types.SimpleNamespace(max_surprise=2.0))
    run = types.SimpleNamespace(config=config, memory={})
    told = [
        between_labels.contradicted(run, {"ensemble/surprise": jnp.float32(x)})
        for x in (1.5, np.nan, 1.5, 1.5, -3.0)
    ]
    assert told == [False, False, True, True, False]  # 3 / √2 and 4.5 / √3 are above 2
    for _ in range(9):
        between_labels.contradicted(run, {"ensemble/surprise": jnp.float32(0.5)})
    assert run.memory["surprise"].tolist() == [0.5] * 8
    config.rloo.max_surprise = float("inf")
    assert not between_labels.contradicted(run, {"ensemble/surprise": jnp.float32(1e9)})


def test_a_calibrated_posterior_is_surprised_by_chance_only():
    """Mean 0 and variance 1 over labels drawn with the probabilities that it gives them."""
    generator = np.random.default_rng(0)
    p = generator.uniform(0.05, 0.95, (4000, 16))
    chosen = np.where(generator.uniform(size=p.shape) < p, p, 1 - p)
    found = np.asarray(jax.vmap(uncertainty.surprise)(jnp.asarray(chosen, jnp.float32), jnp.ones(p.shape)))
    assert abs(found.mean()) < 0.06 and abs(found.std() - 1) < 0.06
    sure_and_wrong = uncertainty.surprise(jnp.full(16, 0.1), jnp.ones(16))
    assert sure_and_wrong > 10


def test_a_perfect_reward_needs_no_ensemble(tmp_path):
    """The reward of every response is the oracle's own."""
    run = small_run(tmp_path, "perfect_rl", **FEW_UPDATES)
    assert run.state.ensemble is None and run.method.reads_oracle
    prompts = run.actor.encode(np.arange(2))
    responses = run.actor.sampler.begin(
        run.policy, *prompts.batch, jax.random.key(0), num_responses=3, temperature=1.0
    )()
    texts = run.decode(responses.tokens, responses.mask)
    expected = [run.oracle.rewards([x] * 3, row) for x, row in zip(prompts.texts, texts, strict=True)]
    found = run.method.improvement.reward(run, prompts, responses)
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-6)
    rows, _ = loop(run)
    assert sum(row.get("improve/updates", 0) for row in rows) == 7


def test_all_labels_on_the_starting_policy(tmp_path, monkeypatch):
    """One batch is asked, then the policy learns; no duel is between responses of the policy that learned."""
    bursts = {"rloo.burst_labels": (16,), "rloo.burst_updates": (3,)}
    run = small_run(tmp_path, "posterior_rl_offline", **FEW_UPDATES | bursts | {"train.batch_size": 8})
    seen, begin = [], run.actor.sampler.begin
    note = lambda policy, *a, **k: seen.append((policy.version, k["num_responses"])) or begin(policy, *a, **k)  # noqa: E731
    monkeypatch.setattr(run.actor.sampler, "begin", note)
    loop(run)
    proposers = {version for version, num_responses in seen if num_responses == 5}
    assert proposers == {run.actor.reference.version}


def test_a_proposal_set_from_both_policies(tmp_path):
    """Of 5 responses π_ref writes 2, the last ones."""
    run = small_run(tmp_path, "posterior_rl", **FEW_UPDATES | {"sea.reference_share": 0.4})
    prompts, key = run.actor.encode(np.arange(4)), jax.random.key(5)
    found = run.actor._propose(run.policy, prompts, key)()
    sample = lambda policy, key, n: run.actor._sample(policy, prompts, key, n)()  # noqa: E731
    own, other = sample(run.policy, key, 3), sample(run.actor.reference, jax.random.fold_in(key, 1), 2)
    np.testing.assert_array_equal(found.tokens, np.concatenate([own.tokens, other.tokens], axis=1))
    np.testing.assert_array_equal(found.mask, np.concatenate([own.mask, other.mask], axis=1))


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
def test_bad_fields(fields, said):
    from configs import quickstart

    config = quickstart.get_config()
    config.methods = ("posterior_rl",)
    config.update_from_flattened_dict(fields)
    with pytest.raises(InputError) as error:
        validate.validate_parts(config)
    assert said in str(error.value)
