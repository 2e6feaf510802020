"""XPO: DPO with + α log π_θ(y_ref), y_ref ~ π_ref (Eq. 19), in one update and in whole runs."""

import dataclasses

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import LEARNING, TINY, batch, update
from small_run import loop, small_run

from configs import quickstart, tldr
from sea_jax import algorithm
from sea_jax.actors.sampler import new_version, sample_now
from sea_jax.losses import sequence_logprobs
from sea_jax.methods.xpo import Optimism
from sea_jax.state import sample_keys, step_keys

ALPHA = 0.7  # of the paper's 5e-6 nothing would be seen
LENGTHS = (2, 4, 3, 1)


@pytest.fixture(scope="module")
def optimistic(step):
    """The session's step with a y_ref for each prompt: settings, state, π_ref and batch."""
    model, state, ref_params, pairs = step
    tokens, mask = batch(LENGTHS, 4, "right", TINY["vocab_size"], seed=9)
    learning = LEARNING | dict(posterior=None)
    settings = algorithm.UpdateSettings(model=model, **learning, term=Optimism(ALPHA))
    return settings, state, ref_params, pairs._replace(extra_tokens=tokens[:, None], extra_mask=mask[:, None])


def by_hand(model, params, prompts, prompt_mask, tokens, mask):
    """log π [B, M] from whole sequences in one row each, nothing shared and nothing scanned."""
    (B, M, T), L = tokens.shape, prompts.shape[1]
    whole = jnp.concatenate([jnp.repeat(prompts, M, 0), tokens.reshape(B * M, T)], 1)
    whole_mask = jnp.concatenate([jnp.repeat(prompt_mask, M, 0), mask.reshape(B * M, T)], 1)
    logp = jax.nn.log_softmax(model.apply({"params": params}, whole, whole_mask)[:, L - 1 : -1])
    chosen = jnp.take_along_axis(logp, whole[:, L:, None], -1)[..., 0].reshape(B, M, T)
    return jnp.where(mask, chosen, 0.0).sum(-1)


def equation_19(params, settings, ref_params, pairs, alpha=ALPHA):
    """Σ_i w_i (α log π(y_ref) − log σ(β h)) / Σ_i w_i."""
    of = lambda p, *y: by_hand(settings.model, p, pairs.prompts, pairs.prompt_mask, *y)  # noqa: E731
    ratio = of(params, pairs.tokens, pairs.mask) - of(ref_params, pairs.tokens, pairs.mask)
    y_ref = of(params, pairs.extra_tokens, pairs.extra_mask)[:, 0]
    dpo = jnp.log1p(jnp.exp(-helpers.STEP_BETA * (ratio[:, 0] - ratio[:, 1])))
    return ((alpha * y_ref + dpo) * pairs.weight).sum() / pairs.weight.sum()


def test_loss_and_gradient_are_equation_19s(optimistic):
    """Against the formula on whole sequences; and its slope along the gradient by finite differences in f64."""
    settings, state, ref_params, pairs = optimistic
    params = state.policy.params
    value, gradient = jax.jit(jax.value_and_grad(lambda p: equation_19(p, settings, ref_params, pairs)))(
        params
    )
    loss, found, _, _, y_ref = jax.jit(algorithm._policy_gradient, static_argnums=0)(
        settings, params, ref_params, pairs
    )
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, gradient)
    inputs = pairs.prompts, pairs.prompt_mask, pairs.extra_tokens, pairs.extra_mask
    np.testing.assert_allclose(y_ref[:, 0], by_hand(settings.model, params, *inputs)[:, 0], rtol=1e-5)
    with jax.enable_x64():
        wide = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float64), tree)  # noqa: E731
        point = lambda s: jax.tree.map(lambda p, g: p + s * g, wide(params), wide(found))  # noqa: E731
        at = jax.jit(lambda s: equation_19(point(s), settings, wide(ref_params), pairs))
        slope = (at(1e-4) - at(-1e-4)) / 2e-4
    squares = sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in jax.tree.leaves(found))
    np.testing.assert_allclose(slope, squares, rtol=1e-3)


def test_metrics_and_queries_of_a_step(optimistic):
    """log π_θ(y_ref) is logged over the rows that teach; pairs are measured as without it; y_ref is no query."""
    settings, state, ref_params, pairs = optimistic
    after, metrics = update(settings=settings, state=state, ref_params=ref_params, batch=pairs)
    inputs = pairs.prompts, pairs.prompt_mask, pairs.extra_tokens, pairs.extra_mask
    logps = by_hand(settings.model, state.policy.params, *inputs)[:, 0]
    np.testing.assert_allclose(metrics["policy/log_prob_y_ref"], logps[np.array([0, 1, 3])].mean(), rtol=1e-5)
    plain, alone = (
        pairs._replace(extra_tokens=None, extra_mask=None),
        dataclasses.replace(settings, term=None),
    )
    _, without = update(settings=alone, state=state, ref_params=ref_params, batch=plain)
    assert "policy/log_prob_y_ref" not in without and after.num_queries == 9
    for name in ("policy/log_ratio_chosen", "policy/log_ratio_rejected", "duel/length_chosen", "duel/void"):
        np.testing.assert_allclose(metrics[name], without[name], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(
        metrics["policy/loss"], without["policy/loss"] + ALPHA * metrics["policy/log_prob_y_ref"], rtol=1e-5
    )


def test_without_alpha_it_is_the_passive_step(optimistic):
    settings, state, ref_params, pairs = optimistic
    plain = pairs._replace(extra_tokens=None, extra_mask=None)
    found, expected = (
        update(settings=dataclasses.replace(settings, term=term), state=state, ref_params=ref_params, batch=b)
        for b, term in ((pairs, Optimism(0.0)), (plain, None))
    )
    np.testing.assert_allclose(found[1]["policy/loss"], expected[1]["policy/loss"], rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        found[0].policy.params,
        expected[0].policy.params,
    )


@pytest.mark.parametrize("changes", [dict(micro_batch=2), dict(micro_batch=1, token_chunk=3)], ids=str)
def test_parts_sum_to_the_batch(optimistic, changes):
    """Uneven weights (a void duel in one half) included."""
    settings, *inputs = optimistic
    gradient = jax.jit(algorithm._policy_gradient, static_argnums=0)
    state, ref_params, pairs = inputs
    whole = gradient(settings, state.policy.params, ref_params, pairs)
    parts = gradient(dataclasses.replace(settings, **changes), state.policy.params, ref_params, pairs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), parts, whole)


def test_a_row_of_weight_0_has_no_y_ref_either(optimistic):
    """Row 2 is a void duel: another y_ref there changes not a bit."""
    settings, state, ref_params, pairs = optimistic
    other = pairs.extra_tokens.copy()
    other[2] = (other[2] + 1) % TINY["vocab_size"]
    mask = pairs.extra_mask.copy()
    mask[2] = True
    after = [
        update(settings=settings, state=state, ref_params=ref_params, batch=b)[0].policy.params
        for b in (pairs, pairs._replace(extra_tokens=other, extra_mask=mask))
    ]
    jax.tree.map(np.testing.assert_array_equal, *after)


# --- whole runs ---------------------------------------------------------------------------------


def watched(run):
    """The proposals that `update` learned from, step by step."""
    seen, read = [], run.actor.read

    def reading():
        seen.append(read())
        return seen[-1]

    run.actor.read = reading
    return seen


def test_a_run_has_its_y_ref_from_the_first_policy(tmp_path):
    """One a prompt, at each step what π_ref writes under the step's own key while π_θ moves away; and as many
    queries as labels: y_ref is shown to nobody."""
    fields = {
        "train.learning_rate": 0.05,
        "train.staleness": 1,
        "xpo.alpha": 3.0,
        "train.query_budget": 14,
    }
    run = small_run(tmp_path, "xpo", **fields)
    asked, label = [], run.labeller.ask
    run.labeller.ask = lambda prompts, *rest, **kw: asked.append(len(prompts)) or label(prompts, *rest, **kw)
    seen = watched(run)
    metrics, _ = loop(run)
    assert sum(asked) == run.labeller.num_queries == int(run.state.num_queries) == 14
    assert len(seen) == len(asked) >= 4
    ref, sampler = new_version(run.assets.ref_params), run.assets.sampler
    for step, proposal in enumerate(seen):
        y_ref = proposal.extra
        assert y_ref.tokens.shape[:2] == (4, 1)
        keys = sample_keys(step_keys(run.state.key, step).sample)
        write = lambda policy, key, p=proposal.prompts.batch: sample_now(  # noqa: E731
            sampler, policy, p.tokens, p.mask, key, num_responses=1, temperature=run.config.train.temperature
        )
        np.testing.assert_array_equal(y_ref.tokens, write(ref, keys.extra).tokens)
        assert not np.array_equal(y_ref.tokens, write(ref, keys.responses).tokens)
        if step == 3:
            assert not np.array_equal(y_ref.tokens, write(run.policy, keys.extra).tokens)
    logged = [row["policy/log_prob_y_ref"] for row in metrics if "policy/log_prob_y_ref" in row]
    assert len(logged) == len(seen) and all(value < 0 for value in logged)
    first = seen[0]
    inputs = *first.prompts.batch, first.extra.tokens, first.extra.mask
    logps = jax.jit(sequence_logprobs, static_argnums=0)(run.assets.model, run.assets.ref_params, *inputs)
    first = logps[:, 0]
    np.testing.assert_allclose(logged[0], first.mean(), rtol=1e-5)  # θ⁰ = π_ref, and no duel was a void duel
    loss = next(row["policy/loss"] for row in metrics if "policy/loss" in row)
    np.testing.assert_allclose(loss, np.log(2) + 3.0 * first.mean(), rtol=1e-5)  # the config's α


def test_alpha_0_is_the_passive_run(tmp_path):
    runs = [
        small_run(tmp_path / m, m, **{"xpo.alpha": 0.0, "train.micro_batch": 2}) for m in ("passive", "xpo")
    ]
    for run in runs:
        loop(run)
    passive, xpo = (run.state.policy.params for run in runs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), passive, xpo)


def test_inputs_of_a_step_that_is_not_finite_hold_its_y_ref(tmp_path):
    run = small_run(tmp_path, "xpo")
    spoilt = jax.tree.map(lambda p: p * jnp.nan, run.assets.ref_params)
    run.ref_params = spoilt
    with pytest.raises(FloatingPointError):
        loop(run)
    saved = np.load(tmp_path / "non_finite_step_0/batch.npz")
    assert saved["extra_tokens"].shape[:2] == saved["extra_mask"].shape[:2] == (4, 1)


def test_the_papers_alpha():
    assert quickstart.get_config().xpo.alpha == tldr.get_config().xpo.alpha == 5e-6
