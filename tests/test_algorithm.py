"""The three functions of Algorithm 2: which duels, whose labels, and what a step changes."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import LEARNING, fits, preference_batch, update
from scipy import stats

from sea_jax import algorithm
from sea_jax.ensemble import STRATEGIES
from sea_jax.losses import DAP_LOSSES, sequence_logprobs
from sea_jax.models import convert
from sea_jax.state import policy_optimizer
from sea_jax.types import Candidates, Duel, PreferenceBatch, PromptBatch

K, B, M, T, E = 4, 10, 5, 3, 2
STATIC = ("strategy", "gamma", "gamma_mode", "synthetic_pairs")


@functools.partial(jax.jit, static_argnames=STATIC)
def jitted(key, label_key, rewards, candidates, remaining, *, strategy, gamma, **options):
    """Lines 5 to 8 until the oracle is asked, with the keys of step 0."""
    select, route = jax.random.split(key)
    rewards = algorithm.merge_duplicates(rewards, candidates)
    duel = algorithm.propose(select, rewards, strategy=strategy)
    asked = algorithm.oracle_share(gamma, rewards.shape[1], step=0)
    return algorithm.route(
        route, label_key, duel, rewards, candidates, remaining, gamma=gamma, num_asked=asked, **options
    )


def propose(candidates, rewards, key=0, label_key=1, remaining=10**6, **options):
    options = dict(strategy="bai_ts", gamma=1.0) | options
    key, label_key = (jax.random.key(k) if isinstance(k, int) else k for k in (key, label_key))
    duel = jitted(
        key=key, label_key=label_key, rewards=jnp.array(rewards), candidates=candidates,
        remaining=remaining, **options,
    )  # fmt: skip
    return Duel(*map(np.asarray, duel))


def candidates(tokens=None, mask=None):
    """Distinct responses unless tokens are given; features carry (prompt, response)."""
    if tokens is None:
        tokens = np.arange(B * M * T).reshape(B, M, T)
    tokens = np.asarray(tokens, np.int32)
    rows = np.stack(np.meshgrid(np.arange(len(tokens)), np.arange(tokens.shape[1]), indexing="ij"), -1)
    mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask)
    return Candidates(tokens, mask, rows.astype(np.float32))


def random_rewards(seed=0, shape=(K, B, M)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def drawn_head(rewards, label_key):
    """The rewards [B, M] of the head that labels each prompt, by the same draw."""
    K, B, _ = rewards.shape
    return rewards[np.asarray(jax.random.randint(label_key, (B,), 0, K)), np.arange(B)]


# --- propose ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma, expected", [(0.0, 0), (0.29, 3), (0.72, 7), (1.0, 10)])
def test_count_mode_asks_about_exactly_gamma_b(gamma, expected):
    duel = propose(candidates(), random_rewards(), gamma=gamma)
    assert duel.query_oracle.sum() == expected and not duel.void.any()
    plain = STRATEGIES["bai_ts"](jax.random.split(jax.random.key(0))[0], jnp.array(random_rewards()))
    np.testing.assert_array_equal(duel.first, plain.first)
    np.testing.assert_array_equal(duel.second, plain.second)


@pytest.mark.parametrize(("gamma", "batch_size"), [(0.7, 4), (0.7, 1), (0.1, 3), (1 / 3, 32), (1.0, 4)])
def test_the_oracles_share_holds_over_steps(gamma, batch_size):
    """By hand for the first steps of γ = 0.7 and B = 4; over any number of steps within half a duel of γ."""
    asked = [algorithm.oracle_share(gamma, batch_size, step) for step in range(1000)]
    if (gamma, batch_size) == (0.7, 4):
        assert asked[:5] == [3, 3, 2, 3, 3]  # totals 2.8, 5.6, 8.4, 11.2, 14 rounded: 3, 6, 8, 11, 14
    assert all(0 <= n <= batch_size for n in asked)
    expected = gamma * batch_size * np.arange(1, 1001)
    assert np.abs(np.cumsum(asked) - expected).max() <= 0.5 + 1e-6
    late = algorithm.oracle_share(gamma, batch_size, 10**9)
    assert late in {int(gamma * batch_size), int(np.ceil(gamma * batch_size))}


def test_bernoulli_mode_draws_for_every_prompt():
    """Queries of a batch are Binomial(B, γ), each prompt alike, whatever pair was chosen."""
    keys = jax.random.split(jax.random.key(3), 2000)
    rewards, responses = jnp.array(random_rewards()), candidates()
    one = lambda key: jitted(  # noqa: E731
        key=key, label_key=key, rewards=rewards, candidates=responses, remaining=100,
        strategy="bai_ts", gamma=0.3, gamma_mode="bernoulli",
    )  # fmt: skip
    duel = jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys))
    queries = duel.query_oracle
    per_batch = np.bincount(queries.sum(1), minlength=B + 1)
    likely = stats.binom.pmf(np.arange(B + 1), B, 0.3)
    fold = lambda x: np.append(x[:7], x[7:].sum())  # noqa: E731  rare ones together
    assert fits(fold(per_batch), fold(likely))
    for b in range(B):
        assert fits([queries[:, b].sum(), (~queries[:, b]).sum()], [0.3, 0.7])
        table = np.zeros((2, M))
        np.add.at(table, (queries[:, b].astype(int), duel.first[:, b]), 1)
        table = table[:, table.any(0)]
        if table.shape[1] > 1:
            assert stats.chi2_contingency(table).pvalue > 1e-4


# Prompt 0: 0 = 2 and 1 = 3 up to padding; 4 alone. 1: four copies of 0. 2: a prefix is no copy.
# 3: all the same, whatever the padding holds.
COPIES = [
    [[1, 2, 0], [3, 4, 5], [1, 2, 9], [3, 4, 5], [6, 6, 6]],
    [[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3], [3, 2, 1]],
    [[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]],
    [[1, 2, 0], [1, 2, 3], [1, 2, 4], [1, 2, 5], [1, 2, 6]],
]
GROUPS = [
    [(0, 0), (0, 2)],
    [(0, 1), (0, 3)],
    *([(b, j) for j in range(4 + (b == 3))] for b in (1, 2, 3)),
]
COPIES_MASK = np.ones((4, M, T), bool)
COPIES_MASK[0, [0, 2], 2] = False
COPIES_MASK[3, :, 2] = False
COPIES_MASK[2, 4, 2] = False


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("heads", [1, 4])
def test_copies_never_meet(strategy, heads):
    """Rewards of copies differ by rounding; still a duel of two copies is a void duel, and no strategy
    that looks at rewards proposes one while its heads like different responses."""
    base = random_rewards(4, (heads, 4, M)) * 3
    for group in GROUPS:
        for b, j in group:
            base[:, b, j] = base[:, b, group[0][1]]
    rewards = base + 1e-6 * random_rewards(5, base.shape)
    text = lambda b, j: tuple(np.array(COPIES)[b, j][COPIES_MASK[b, j]])  # noqa: E731
    for key in range(30):
        duel = propose(candidates(COPIES, COPIES_MASK), rewards, key=key, strategy=strategy)
        assert duel.void[3]
        for b in range(4):
            copies = text(b, duel.first[b]) == text(b, duel.second[b])
            assert duel.void[b] == copies and duel.query_oracle[b] == (not copies)
            if strategy.startswith(("bai", "uncertainty", "max_margin")) and b != 3:
                assert not copies
            if strategy == "ee_ts":
                agree = len({text(b, j) for j in base[:, b].argmax(-1)}) == 1
                assert copies == agree


@pytest.mark.parametrize("synthetic_pairs", ["thompson", "max_margin"])
def test_identical_responses_are_void_and_buy_nothing(synthetic_pairs):
    same = candidates(np.full((B, M, T), 7))
    duel = propose(same, random_rewards(), gamma=0.4, synthetic_pairs=synthetic_pairs)
    assert duel.void.all() and not duel.query_oracle.any()


@pytest.mark.parametrize("remaining", [0, 2, 6, 7])
def test_budget_is_never_overdrawn(remaining):
    """γ B = 7 queries, one of them a void duel: the first `remaining` are asked, later ones dropped."""
    tokens = np.arange(B * M * T).reshape(B, M, T)
    tokens[1] = tokens[1, 0]
    duel = propose(candidates(tokens), random_rewards(), gamma=0.7, remaining=remaining)
    wanted = [0, 2, 3, 4, 5, 6]
    asked, dropped = wanted[:remaining], wanted[remaining:]
    assert np.flatnonzero(duel.query_oracle).tolist() == asked
    assert np.flatnonzero(duel.void).tolist() == sorted([1, *dropped])


def test_max_margin_takes_the_labelling_heads_best_and_worst():
    """On synthetic duels only; the oracle's remain the strategy's; best is labelled y+."""
    rewards = random_rewards(6)
    for seed in range(4):
        keys = dict(key=seed, label_key=jax.random.key(100 + seed))
        duel = propose(candidates(), rewards, **keys, gamma=0.7, synthetic_pairs="max_margin")
        plain = propose(candidates(), rewards, **keys, gamma=0.7)
        head = drawn_head(rewards, keys["label_key"])
        for b in range(B):
            asked = plain.first[b], plain.second[b]
            expected = asked if b < 7 else (head[b].argmax(), head[b].argmin())
            assert (duel.first[b], duel.second[b]) == expected
        batch = label(rewards, duel, np.zeros(B, bool), keys["label_key"])
        np.testing.assert_array_equal(batch.features[7:, 0, 1], head[7:].argmax(-1))


# --- assign_labels ----------------------------------------------------------------------------


def label(rewards, duel, answers, label_key, answered=True):
    prompts = PromptBatch(np.arange(B * 2).reshape(B, 2), np.ones((B, 2), bool))
    batch = jax.jit(algorithm.assign_labels)(
        label_key=label_key, rewards=jnp.array(rewards), prompts=prompts, candidates=candidates(),
        duel=duel, prefers_first=answers, answered=np.broadcast_to(answered, (B,)),
    )  # fmt: skip
    np.testing.assert_array_equal(batch.prompts, prompts.tokens)
    np.testing.assert_array_equal(batch.prompt_mask, prompts.mask)
    assert batch.extra_tokens is None and batch.extra_mask is None
    return PreferenceBatch(*map(np.asarray, batch[:-2]))


def test_labels_are_the_oracles_or_the_drawn_heads():
    """Row by row, (y+, y−) with their own tokens and features; weight 0 exactly on void duels."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        rewards, label_key = random_rewards(seed), jax.random.key(seed)
        pairs = np.array([rng.choice(M, 2, replace=False) for _ in range(B)], np.int32)
        asked, answers, void = rng.random((3, B)) < 0.5
        void &= ~asked
        duel = Duel(pairs[:, 0], pairs[:, 1], asked, void)
        batch = label(rewards, duel, answers, label_key)
        head = drawn_head(rewards, label_key)
        for b, (first, second) in enumerate(pairs):
            first_wins = answers[b] if asked[b] else head[b, first] > head[b, second]
            order = [first, second] if first_wins else [second, first]
            np.testing.assert_array_equal(batch.features[b], [[b, order[0]], [b, order[1]]])
            np.testing.assert_array_equal(batch.tokens[b], candidates().tokens[b, order])
        assert batch.mask.all() and batch.mask.shape == (B, 2, T)
        np.testing.assert_array_equal(batch.from_oracle, asked)
        np.testing.assert_array_equal(batch.weight, np.where(void, 0.0, 1.0))


def test_an_unanswered_duel_is_void_and_no_query():
    """Every third duel is asked in vain, the next two answered or synthetic; nothing else moves."""
    rewards, label_key = random_rewards(2), jax.random.key(2)
    first, second = np.zeros(B, np.int32), np.ones(B, np.int32)
    asked, answered = np.arange(B) % 3 != 2, np.arange(B) % 3 != 0
    void = np.arange(B) == 5
    batch = label(rewards, Duel(first, second, asked, void), np.ones(B, bool), label_key, answered)
    np.testing.assert_array_equal(batch.from_oracle, np.arange(B) % 3 == 1)
    np.testing.assert_array_equal(batch.weight, np.where((np.arange(B) % 3 == 0) | void, 0.0, 1.0))
    np.testing.assert_array_equal(batch.features[1::3, 0, 1], 0)  # the oracle's answers: the first wins


def test_labelling_heads_are_uniform_and_drawn_for_each_prompt():
    """One head of four prefers y: it wins a quarter of the time, in two prompts independently."""
    rewards = np.zeros((K, B, M), np.float32)
    rewards[:, :, 1] = [[1], [1], [1], [-1]]
    duel = Duel(np.zeros(B, int), np.ones(B, int), np.zeros(B, bool), np.zeros(B, bool))
    prompts = PromptBatch(np.zeros((B, 1), int), np.ones((B, 1), bool))
    one = lambda key: algorithm.assign_labels(  # noqa: E731
        label_key=key, rewards=jnp.array(rewards), prompts=prompts,
        candidates=jax.tree.map(jnp.array, candidates()), duel=duel,
        prefers_first=np.zeros(B, bool), answered=np.ones(B, bool),
    ).features[:, 0, 1]  # fmt: skip
    keys = jax.random.split(jax.random.key(0), 3000)
    winner = np.asarray(jax.jit(jax.vmap(one))(keys)).astype(int)
    table = np.zeros((2, 2))
    np.add.at(table, (winner[:, 0], winner[:, 7]), 1)
    assert fits(table, np.outer([0.25, 0.75], [0.25, 0.75]))


# --- update: the fixtures `step` and `stepped` are in conftest.py -------------------------------


def assert_equal(a, b):
    unkey = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(unkey(a), unkey(b)), a, b)


def test_golden_step(stepped):
    """Loss, gradient norm and weights as torch found them (tests/parity/test_update_hf.py)."""
    settings, (after, metrics) = stepped
    np.testing.assert_allclose(metrics["policy/loss"], 1.780923, rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/grad_norm"], 2.916144, rtol=1e-5)
    weights = convert.to_hf(settings.model, after.policy.params)
    for name, values in {
        "embed_out.weight": [-0.166985, 1.139841, -0.272317],
        "gpt_neox.layers.0.mlp.dense_4h_to_h.bias": [-0.149771, -0.106849, -0.185675],
        "gpt_neox.layers.0.attention.query_key_value.weight": [0.290368, 0.184754, -0.127647],
    }.items():
        np.testing.assert_allclose(weights[name].ravel()[:3], values, atol=5e-6)


def test_queries_are_counted_and_synthetic_pairs_never_enter_the_experience(step, stepped):
    _, state, _, batch = step
    _, (after, metrics) = stepped
    assert after.num_queries == 7 + 2 and after.step == 4
    assert after.experience.size == 2 and after.experience.cursor == 2
    np.testing.assert_array_equal(after.experience.features[:2], batch.features[np.array([0, 3])])
    np.testing.assert_array_equal(after.experience.weight, [1, 1, 0, 0, 0])
    assert not after.experience.features[2:].any()
    assert_equal(after.key, state.key)
    assert_equal(after.ensemble.anchor, state.ensemble.anchor)
    kernels = after.ensemble.params["out"]["kernel"], state.ensemble.params["out"]["kernel"]
    assert (np.asarray(kernels[0]) != kernels[1]).any()
    assert metrics["step/finite"] == 1
    assert metrics["duel/void"] == 0.25 and metrics["duel/from_oracle"] == 0.75


def test_metrics_by_hand(step, stepped):
    """Of the policy and the posterior before the step; void duels count in none, synthetic pairs only
    in the policy's."""
    model, state, ref_params, batch = step
    _, (_, metrics) = stepped
    inputs = (batch.prompts, batch.prompt_mask, batch.tokens, batch.mask)
    logps = jax.jit(lambda p: sequence_logprobs(model, p, *inputs))
    learned, bought = [0, 1, 3], [0, 3]
    ratio = np.asarray(logps(state.policy.params) - logps(ref_params))[learned]
    p = state.ensemble.params
    hidden = np.einsum("bie,keh->kbih", batch.features, p["hidden_0"]["kernel"])
    hidden = np.maximum(hidden + p["hidden_0"]["bias"][:, None, None], 0)
    r = np.einsum("kbih,kh->kbi", hidden, p["out"]["kernel"][..., 0])
    probability = (1 / (1 + np.exp(r[..., 1] - r[..., 0])))[:, bought]
    mean = probability.mean(0)
    entropy = -mean * np.log(mean) - (1 - mean) * np.log(1 - mean)
    excess, variance = -np.log(mean) - entropy, mean * (1 - mean) * np.log(mean / (1 - mean)) ** 2
    for name, value in {
        "policy/implicit_accuracy": (ratio[:, 0] > ratio[:, 1]).mean(),
        "policy/log_ratio_chosen": ratio[:, 0].mean(),
        "policy/log_ratio_rejected": ratio[:, 1].mean(),
        "duel/length_chosen": (4 + 1 + 2) / 3,
        "duel/length_rejected": (2 + 3 + 4) / 3,
        "ensemble/accuracy_chosen": (probability.mean(0) > 0.5).mean(),
        "ensemble/confidence_chosen": np.maximum(probability.mean(0), 1 - probability.mean(0)).mean(),
        "ensemble/nll_chosen": -np.log(probability.mean(0)).mean(),
        "ensemble/probability_std": probability.std(0).mean(),
        "ensemble/surprise": excess.sum() / np.sqrt(variance.sum()),
    }.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)


def test_rows_of_weight_0_change_nothing(step, stepped):
    """Garbage in the void row: the whole state is equal to the last bit."""
    _, state, ref_params, batch = step
    settings, (after, metrics) = stepped
    other = PreferenceBatch(**preference_batch([[1, 4]] * 4, seed=50))
    garbage = {
        name: jnp.asarray(getattr(batch, name)).at[2].set(getattr(other, name)[2])
        for name in ("prompts", "prompt_mask", "tokens", "mask")
    }
    features = batch.features.at[2].set(1e4)
    for from_oracle in (True, False):
        spoilt = batch._replace(
            **garbage, features=features, from_oracle=batch.from_oracle.at[2].set(from_oracle)
        )
        again, same = update(settings=settings, state=state, ref_params=ref_params, batch=spoilt)
        assert_equal(after, again)
        assert metrics["policy/loss"] == same["policy/loss"]


def test_micro_batches_sum_to_the_batch(step, stepped):
    """Uneven weights (a void duel in one half) included; every metric is of the whole batch."""
    _, state, ref_params, batch = step
    settings, (whole, metrics) = stepped
    settings = dataclasses.replace(settings, micro_batch=2)
    after, same = update(settings=settings, state=state, ref_params=ref_params, batch=batch)
    for a, b in zip(jax.tree.leaves(after.policy), jax.tree.leaves(whole.policy), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for name, value in metrics.items():
        np.testing.assert_allclose(same[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_step_that_is_not_finite_changes_nothing(step, stepped):
    _, state, ref_params, batch = step
    settings = stepped[0]
    broken = ref_params | {"head": {"kernel": np.full_like(ref_params["head"]["kernel"], np.nan)}}
    after, metrics = update(settings=settings, state=state, ref_params=broken, batch=batch)
    assert metrics["step/finite"] == 0
    assert_equal(after, state)


def test_the_policys_rate_goes_by_the_queries_bought_before(step, stepped):
    """7 are: a cosine over 7 has ended, one over 14 is at its half."""
    _, state, ref_params, batch = step
    moved = []
    for budget in (7, 14):
        config = dict(learning_rate=0.5, warmup_queries=0, schedule="cosine", max_grad_norm=1e9)
        optimizer = policy_optimizer(types.SimpleNamespace(**config, query_budget=budget))
        policy = state.policy._replace(opt_state=optimizer.init(state.policy.params))
        settings = dataclasses.replace(stepped[0], policy_optimizer=optimizer)
        after, _ = update(
            settings=settings, state=state._replace(policy=policy), ref_params=ref_params, batch=batch
        )
        kernels = after.policy.params["head"]["kernel"], state.policy.params["head"]["kernel"]
        moved.append(np.abs(np.asarray(kernels[0]) - kernels[1]).max())
    np.testing.assert_allclose(moved, [0, 0.25], rtol=1e-3)


def test_a_batch_of_void_duels_leaves_the_policy_alone(stepped, step):
    """Even with momentum from the step before."""
    _, _, ref_params, batch = step
    settings, (state, _) = stepped
    nothing = batch._replace(weight=np.zeros_like(batch.weight))
    after, _ = update(settings=settings, state=state, ref_params=ref_params, batch=nothing)
    assert_equal(after.policy, state.policy)
    assert after.num_queries == state.num_queries and after.step == state.step + 1


def test_without_reward_learning_and_with_another_loss(step):
    """Passive: ensemble and D_t untouched, labels still counted. IPO's options reach the loss."""
    model, state, ref_params, batch = step
    options = dict(beta=0.5, per_token=True)
    settings = algorithm.UpdateSettings(
        model=model,
        **LEARNING | dict(dap_options=tuple(options.items()), posterior=None),
        dap="ipo",
    )
    after, metrics = update(settings=settings, state=state, ref_params=ref_params, batch=batch)
    assert_equal((after.ensemble, after.experience), (state.ensemble, state.experience))
    assert after.num_queries == 9 and after.step == 4
    inputs = (batch.prompts, batch.prompt_mask, batch.tokens, batch.mask)
    logps = jax.jit(lambda p: sequence_logprobs(model, p, *inputs))
    losses = DAP_LOSSES["ipo"](logps(state.policy.params), logps(ref_params), batch.mask.sum(-1), **options)
    np.testing.assert_allclose(metrics["policy/loss"], losses[np.array([0, 1, 3])].mean(), rtol=1e-5)
    assert not any(name.startswith("ensemble/") for name in metrics)


def test_the_ensembles_batches_depend_on_the_step(step, stepped):
    """fold_in(key, step): the same state a step later draws other rows of D_t."""
    _, state, ref_params, batch = step
    settings, (after, _) = stepped
    later = state._replace(step=np.int32(4))
    other, _ = update(settings=settings, state=later, ref_params=ref_params, batch=batch)
    assert_equal(other.policy, after.policy)
    kernels = other.ensemble.params["out"]["kernel"], after.ensemble.params["out"]["kernel"]
    assert (np.asarray(kernels[0]) != np.asarray(kernels[1])).any()
