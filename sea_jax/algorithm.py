"""Algorithm 2 as pure functions: `propose` (lines 5-7), `route` and `assign_labels` (8), `update` (9-10).

No I/O happens here; the host loop in `train.py` samples, asks the oracle and calls these functions.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sea_jax.ensemble import design, heads, selection, uncertainty
from sea_jax.ensemble import experience as buffer
from sea_jax.ensemble.posterior import Posterior
from sea_jax.losses import DAP_LOSSES, LossTerm, mean_or_nan, sequence_logprobs
from sea_jax.losses.micro_batches import merge_passes, split_passes
from sea_jax.models.decoder import Decoder
from sea_jax.state import step_keys
from sea_jax.types import (
    Array,
    Candidates,
    Duel,
    EnsembleState,
    Experience,
    Params,
    PolicyState,
    PreferenceBatch,
    PromptBatch,
    SeaState,
)


@dataclasses.dataclass(frozen=True)
class UpdateSettings:
    """The settings of `update`; all are static under jit."""

    model: Decoder
    policy_optimizer: optax.GradientTransformation
    dap: str = "dpo"
    dap_options: tuple[tuple[str, Any], ...] = (("beta", 0.1),)
    term: LossTerm | None = None  # added to F
    micro_batch: int = 0  # prompts in one backward pass; 0: all of B
    token_chunk: int = 0  # tokens whose logits are in memory at once; 0: all of T
    learn_policy: bool = True
    posterior: Posterior | None = None  # None: the method learns no ensemble


def merge_duplicates(rewards: Array, candidates: Candidates) -> Array:
    """Gives equal responses the reward of their first copy, to the bit, so that an argmax finds one of them.

    Args:
        rewards: [K, B, M] f32.
        candidates: the proposal sets S_t.

    Returns:
        [K, B, M] f32.
    """
    first_copy = jnp.argmax(_equal(candidates), axis=-1)
    return jnp.take_along_axis(rewards, first_copy[None], axis=2)


def count_distinct(candidates: Candidates) -> Array:
    """Computes the mean number of distinct responses in S_t: the choice that a strategy has, [] f32."""
    return (1.0 / _equal(candidates).sum(-1)).sum(-1).mean()


def _equal(candidates: Candidates) -> Array:
    """Marks the responses to a prompt that have the same tokens: [B, M, M] bool."""
    tokens = jnp.where(candidates.mask, candidates.tokens, -1)
    return (tokens[:, :, None] == tokens[:, None]).all(-1)


def propose(key: Array, rewards: Array, *, strategy: str) -> Duel:
    """Chooses the two responses of each prompt that meet (lines 5-7).

    Args:
        key: [] key.
        rewards: [K, B, M] f32, r_φ of every candidate under every member, after `merge_duplicates`.
        strategy: a row of `selection.STRATEGIES`.

    Returns:
        Duel; every duel that is not void goes to the oracle until `route` decides otherwise.
    """
    return selection.STRATEGIES[strategy](key, rewards)


def most_informative(rewards: Array, candidates: Candidates, duel: Duel, num_kept: int, choice: str) -> Array:
    """Returns the rows [B] of the B most informative of P duels, by a row of `design.POOL_CHOICES`."""
    equal = _equal(candidates)[jnp.arange(len(duel.first)), duel.first, duel.second]
    return design.POOL_CHOICES[choice](rewards, duel._replace(void=duel.void | equal), num_kept)


def oracle_share(gamma: float, batch_size: int, step: int) -> int:
    """Returns how many duels of step t go to the oracle, so that its share of all duels is γ (line 8).

    Each step rounds the running total γ B (t + 1) instead of its own γ B, and so carries the remainder:
    with B = 4 and γ = 0.7, whose γ B is 2.8, four of five steps ask three times and one asks twice.

    Args:
        gamma: γ in (0, 1].
        batch_size: B.
        step: t, from 0.
    """
    total = lambda steps: math.floor(gamma * batch_size * steps + 0.5)  # noqa: E731
    return total(step + 1) - total(step)


def route(
    key: Array,
    label_key: Array,
    duel: Duel,
    rewards: Array,
    candidates: Candidates,
    remaining: Array | int,
    *,
    gamma: Array | float,
    num_asked: Array | int,
    gamma_mode: str = "count",
    synthetic_pairs: str = "thompson",
) -> Duel:
    """Sends each duel to the oracle or to the ensemble, or marks it void (line 8).

    Args:
        key: [] key of γ.
        label_key: [] key of the head that labels synthetic duels; the same as for `assign_labels`.
        duel: from `propose`.
        rewards: [K, B, M] f32, after `merge_duplicates`.
        candidates: the proposal sets S_t.
        remaining: [] int32, labels that the budget still allows.
        gamma: [] f32, γ, the oracle's share of the duels.
        num_asked: [] int32, the duels of this step that 'count' sends to the oracle; see `oracle_share`.
        gamma_mode: 'count' asks the oracle about the first num_asked prompts; 'bernoulli' draws g < γ for
            every prompt, as line 8 prints it.
        synthetic_pairs: 'thompson' keeps the strategy's duel; 'max_margin' takes the labelling head's best
            and worst response (the first implementation's choice).

    Returns:
        Duel. Void duels buy no label: two equal responses, and duels beyond the budget.
    """
    B = rewards.shape[1]
    rows = jnp.arange(B)
    query = rows < num_asked if gamma_mode == "count" else jax.random.uniform(key, (B,)) < gamma
    if synthetic_pairs == "max_margin":
        drawn = _labelling_head(label_key, rewards)
        first = jnp.where(query, duel.first, jnp.argmax(drawn, -1))
        second = jnp.where(query, duel.second, jnp.argmin(drawn, -1))
        duel = duel._replace(first=first, second=second)
    void = duel.void | _equal(candidates)[rows, duel.first, duel.second]
    query &= ~void
    over_budget = query & (jnp.cumsum(query) > remaining)
    return duel._replace(query_oracle=query & ~over_budget, void=void | over_budget)


def assign_labels(
    label_key: Array,
    rewards: Array,
    prompts: PromptBatch,
    candidates: Candidates,
    duel: Duel,
    prefers_first: Array,
    answered: Array,
) -> PreferenceBatch:
    """Orders each duel into (y+, y−): by the oracle, or by a head drawn for the prompt (line 8).

    A duel that the oracle left without an answer becomes void; no label was bought for it.

    Args:
        label_key: [] key, the same as for `route`.
        rewards: [K, B, M] f32, after `merge_duplicates`.
        prompts, candidates, duel: of this step.
        prefers_first, answered: [B] bool, the oracle's labels; read only where duel.query_oracle.

    Returns:
        PreferenceBatch with weight 0 on void duels.
    """
    rows = jnp.arange(duel.first.shape[0])
    from_oracle = duel.query_oracle & answered
    void = duel.void | (duel.query_oracle & ~answered)
    drawn = _labelling_head(label_key, rewards)
    head_prefers_first = drawn[rows, duel.first] > drawn[rows, duel.second]
    first_wins = jnp.where(from_oracle, prefers_first, head_prefers_first)
    winner = jnp.where(first_wins, duel.first, duel.second)
    loser = jnp.where(first_wins, duel.second, duel.first)
    pair = jnp.stack([winner, loser], axis=1)  # [B, 2]
    tokens, mask, features = jax.tree.map(lambda x: x[rows[:, None], pair], candidates)
    weight = (~void).astype(jnp.float32)
    return PreferenceBatch(prompts.tokens, prompts.mask, tokens, mask, features, from_oracle, weight)


def update(
    settings: UpdateSettings, state: SeaState, ref_params: Params, batch: PreferenceBatch
) -> tuple[SeaState, dict[str, Array]]:
    """Updates the experience, the ensemble and the policy (lines 9-10).

    Jit it with `settings` static and `state` donated; ref_params are never donated.

    Args:
        settings: static.
        state: before the step.
        ref_params: π_ref.
        batch: B_t.

    Returns:
        The new state, and metrics as [] f32 that are still on the device.
    """
    bought = batch.from_oracle & (batch.weight > 0)
    policy, ensemble, experience, metrics = state.policy, state.ensemble, state.experience, {}
    if settings.posterior is not None:
        assert ensemble is not None and experience is not None and batch.features is not None
        # Synthetic pairs never enter D_t: a posterior must not learn from its own labels.
        experience = buffer.add(experience, batch.features, batch.weight, bought)
        key = step_keys(state.key, state.step).ensemble
        ensemble, metrics = _update_ensemble(settings, key, ensemble, experience, batch, bought)
    if settings.learn_policy:
        policy, policy_metrics = _update_policy(settings, policy, ref_params, batch, state.num_queries)
        # A batch of void duels has no gradient, yet Adam's momentum would move θ: keep θ as it is.
        policy = _where(batch.weight.sum() > 0, policy, state.policy)
        metrics |= policy_metrics
    num_queries = state.num_queries + bought.sum(dtype=jnp.int32)
    new = SeaState(policy, ensemble, experience, state.key, state.step + 1, num_queries)
    # A step that is not finite changes nothing, so that state and batch can be saved as its inputs.
    finite = _all_finite(metrics)
    metrics |= _duel_metrics(batch) | {"step/finite": finite.astype(jnp.float32)}
    return _where(finite, new, state), metrics


def _all_finite(metrics: dict[str, Array]) -> Array:
    """Tells whether the losses and the gradient are finite: [] bool."""
    checked = ("policy/loss", "policy/grad_norm", "ensemble/loss")
    return jnp.all(jnp.array([jnp.isfinite(metrics[name]) for name in checked if name in metrics]))


def _where(condition: Array, after: Any, before: Any) -> Any:
    """Selects one of two trees by a [] bool."""
    select = lambda a, b: jax.lax.select(jnp.broadcast_to(condition, a.shape), a, b)  # noqa: E731
    return jax.tree.map(select, after, before)


def _labelling_head(key: Array, rewards: Array) -> Array:
    """Draws one head per prompt and returns its rewards [B, M]."""
    K, B, _ = rewards.shape
    return rewards[jax.random.randint(key, (B,), 0, K), jnp.arange(B)]


def _duel_metrics(batch: PreferenceBatch) -> dict[str, Array]:
    """Returns the lengths of the pairs and the shares of void and of oracle-labelled duels."""
    lengths = batch.mask.sum(-1).astype(jnp.float32)
    return {
        "duel/length_chosen": mean_or_nan(lengths[:, 0], batch.weight),
        "duel/length_rejected": mean_or_nan(lengths[:, 1], batch.weight),
        "duel/void": 1.0 - batch.weight.mean(),
        "duel/from_oracle": batch.from_oracle.mean(dtype=jnp.float32),
    }


def _update_ensemble(
    settings: UpdateSettings, key: Array, state: EnsembleState, experience: Experience,
    batch: PreferenceBatch, bought: Array,
) -> tuple[EnsembleState, dict[str, Array]]:  # fmt: skip
    """Runs line 9, and measures the posterior on the bought labels [B] before it learns from them."""
    assert batch.features is not None and settings.posterior is not None
    before = heads.rewards(state.params, batch.features)  # [K, B, 2]
    margin = before[..., 0] - before[..., 1]
    probability = jax.nn.sigmoid(margin).mean(0)
    weight = bought.astype(jnp.float32)
    state, metrics = settings.posterior.update(key, state, experience)
    return state, metrics | {
        "ensemble/accuracy_chosen": mean_or_nan((probability > 0.5).astype(jnp.float32), weight),
        # Equals the accuracy if calibrated; a larger value means that the posterior is overconfident.
        "ensemble/confidence_chosen": mean_or_nan(jnp.maximum(probability, 1 - probability), weight),
        "ensemble/nll_chosen": mean_or_nan(-jnp.log(probability + 1e-6), weight),
        "ensemble/probability_std": mean_or_nan(jax.nn.sigmoid(margin).std(0), weight),
        "ensemble/surprise": uncertainty.surprise(probability, weight),
    }


def _update_policy(
    settings: UpdateSettings,
    state: PolicyState,
    ref_params: Params,
    batch: PreferenceBatch,
    num_queries: Array,
) -> tuple[PolicyState, dict[str, Array]]:
    """Runs line 10: one optimizer step on F (Eq. 9), with its gradient summed over micro-batches.

    The optimizer's schedule reads num_queries, [] int32, the labels bought before this step.
    """
    loss, grads, logps, ref_logps, extra_logps = _policy_gradient(settings, state.params, ref_params, batch)
    optimizer = optax.with_extra_args_support(settings.policy_optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, num_queries=num_queries)
    ratio = logps - ref_logps
    correct = (ratio[:, 0] > ratio[:, 1]).astype(jnp.float32)
    metrics = {
        "policy/loss": loss,
        "policy/grad_norm": optax.tree.norm(grads),
        "policy/implicit_accuracy": mean_or_nan(correct, batch.weight),
        "policy/log_ratio_chosen": mean_or_nan(ratio[:, 0], batch.weight),
        "policy/log_ratio_rejected": mean_or_nan(ratio[:, 1], batch.weight),
    }
    if settings.term is not None and extra_logps is not None:
        metrics |= settings.term.metrics(extra_logps, batch.weight)
    return PolicyState(optax.apply_updates(state.params, updates), opt_state), metrics


def _policy_gradient(
    settings: UpdateSettings, params: Params, ref_params: Params, batch: PreferenceBatch
) -> tuple[Array, Params, Array, Array, Array | None]:
    """Returns F (Eq. 9), its gradient, and log-probs: π_θ's and π_ref's of the pairs [B, 2], π_θ's of the
    further responses [B, X] (None without a loss term).

    Micro-batches bound the memory of the backward pass. F is a weighted mean over B, so each pass adds its
    share of one sum; `optax.MultiSteps` would average passes of unequal weight.
    """
    size = settings.micro_batch or batch.weight.shape[0]
    total = jnp.maximum(batch.weight.sum(), 1e-8)
    loss_fn = DAP_LOSSES[settings.dap]

    def share(params: Params, part: PreferenceBatch) -> tuple[Array, tuple[Array, Array, Array | None]]:
        prompts, chunk = (part.prompts, part.prompt_mask), settings.token_chunk
        ref_logps = sequence_logprobs(settings.model, ref_params, *prompts, part.tokens, part.mask, chunk)
        logps = sequence_logprobs(settings.model, params, *prompts, *_with_extra(part), chunk)
        pairs, extra_logps = logps, None
        if settings.term is not None:
            pairs, extra_logps = logps[:, :2], logps[:, 2:]
        losses = loss_fn(pairs, ref_logps, part.mask.sum(-1), **dict(settings.dap_options))
        if settings.term is not None and extra_logps is not None:
            losses += settings.term.loss(extra_logps)
        return jnp.sum(losses * part.weight) / total, (pairs, ref_logps, extra_logps)

    def add(sums: tuple[Array, Params], part: PreferenceBatch) -> tuple[Any, Any]:
        (loss, logps), grads = jax.value_and_grad(share, has_aux=True)(params, part)
        return jax.tree.map(jnp.add, sums, (loss, grads)), logps

    zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
    (loss, grads), logps = jax.lax.scan(add, zeros, split_passes(batch, size))
    return loss, grads, *merge_passes(logps)


def _with_extra(batch: PreferenceBatch) -> tuple[Array, Array]:
    """Returns tokens and mask of the pair [B, 2, T], followed by the further responses [B, 2 + X, T]."""
    if batch.extra_tokens is None or batch.extra_mask is None:
        return batch.tokens, batch.mask
    tokens = jnp.concatenate([batch.tokens, batch.extra_tokens], axis=1)
    return tokens, jnp.concatenate([batch.mask, batch.extra_mask], axis=1)
