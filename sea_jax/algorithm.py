"""Algorithm 2 as pure functions: `propose` (lines 5-7), `drop` and `assign_labels` (8), `update` (9-10).

No I/O here; the host loop in `train.py` samples, asks the oracle and calls these.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sea_jax.ensemble import experience as buffer
from sea_jax.ensemble import heads, selection
from sea_jax.losses import DAP_LOSSES, implicit_reward, mean_or_nan, optimism, sequence_logprobs
from sea_jax.models.decoder import Decoder
from sea_jax.state import step_keys
from sea_jax.types import (
    Array,
    Candidates,
    Duel,
    EnsembleState,
    Params,
    PolicyState,
    PreferenceBatch,
    PromptBatch,
    SeaState,
)


@dataclasses.dataclass(frozen=True)
class Learner:
    """What `update` needs besides arrays; all static under jit."""

    model: Decoder
    policy_optimizer: optax.GradientTransformation
    ensemble_optimizer: optax.GradientTransformation
    dap: str = "dpo"
    dap_options: tuple[tuple[str, Any], ...] = (("beta", 0.1),)
    optimism: float = 0.0  # α of Eq. 19; read where the batch has y_ref
    micro_batch: int = 0  # prompts in a backward pass; 0: all of B at once
    token_chunk: int = 0  # tokens whose logits are in memory at once; 0: all of T
    learn_ensemble: bool = True
    ensemble_steps: int = 5  # m
    ensemble_batch: int = 128
    regularization: float = 0.5  # λ
    scale_by_data: bool = True


def predictive_entropy(logprobs: Array) -> Array:
    """H(y|x) ≈ −Σ_n log π_θ(y_n|x) / N, y_n ~ π_θ(·|x): by which APL chooses prompts (line 3).

    References:
        App. E, APL; Muldrew et al. (2024), arXiv:2402.08114.

    Args:
        logprobs: [B, N, T] f32 nats, 0 on padding: of N samples' tokens, under the distribution that they
            were drawn from. At temperature 1 that is π_θ, and the estimate has no bias.

    Returns:
        [B] f32 nats.
    """
    return -logprobs.sum(-1).mean(-1)


def implicit_rewards(
    learner: Learner, params: Params, ref_params: Params, prompts: PromptBatch, tokens: Array, mask: Array
) -> Array:
    """DPO's implicit reward of every response, in the place of a head's rewards (line 5, for APL).

    Args:
        learner: its micro_batch prompts are scored at once, with the loss's own β.
        params, ref_params: π_θ, π_ref.
        prompts: B of them.
        tokens: [B, M, T] int32.
        mask: [B, M, T] bool.

    Returns:
        [1, B, M] f32.
    """
    model, chunk, beta = learner.model, learner.token_chunk, dict(learner.dap_options)["beta"]

    def score(part: tuple[Array, Array, Array, Array]) -> Array:
        logps, ref_logps = (sequence_logprobs(model, p, *part, chunk) for p in (params, ref_params))
        return implicit_reward(logps, ref_logps, beta)

    parts = _spread((prompts.tokens, prompts.mask, tokens, mask), learner.micro_batch or tokens.shape[0])
    return _gather(jax.lax.map(score, parts))[None]


def propose(
    key: Array,
    label_key: Array,
    rewards: Array,
    candidates: Candidates,
    remaining: Array | int,
    *,
    strategy: str,
    gamma: float,
    gamma_mode: str = "count",
    synthetic_pairs: str = "thompson",
) -> Duel:
    """Chooses each prompt's duel, and which duels the oracle judges (lines 5-8).

    Args:
        key: [] key of the selection.
        label_key: [] key of the head that labels synthetic duels; `assign_labels` gets the same.
        rewards: [K, B, M] f32, r_φ of every candidate under every member.
        candidates: the proposal sets S_t.
        remaining: [] int32, queries left in the budget; duels past it are dropped.
        strategy: a row of `selection.STRATEGIES`.
        gamma: γ, the oracle's share of the duels.
        gamma_mode: 'count' asks the oracle about round(γ B) prompts of each batch; 'bernoulli'
            draws g < γ for every prompt, as line 8 prints it.
        synthetic_pairs: 'thompson' takes the strategy's duel; 'max_margin' the labelling head's
            best and worst response (the first implementation's variant).

    Returns:
        Duel; query_oracle is False for a clash: no label is bought for two equal responses, nor
        past the budget.
    """
    select_key, gamma_key = jax.random.split(key)
    B = rewards.shape[1]
    rewards, original = _merge_duplicates(rewards, candidates)
    duel = selection.STRATEGIES[strategy](select_key, rewards)
    if gamma_mode == "count":
        query = jnp.arange(B) < round(gamma * B)
    else:
        query = jax.random.uniform(gamma_key, (B,)) < gamma
    if synthetic_pairs == "max_margin":
        drawn = _labelling_head(label_key, rewards)
        first = jnp.where(query, duel.first, jnp.argmax(drawn, -1))
        second = jnp.where(query, duel.second, jnp.argmin(drawn, -1))
        duel = duel._replace(first=first, second=second)
    rows = jnp.arange(B)
    clash = duel.clash | (original[rows, duel.first] == original[rows, duel.second])
    query &= ~clash
    over = query & (jnp.cumsum(query) > remaining)
    return duel._replace(query_oracle=query & ~over, clash=clash | over)


def drop(duel: Duel, answered: Array) -> Duel:
    """A duel that the oracle left without an answer teaches nothing, as a clash does (line 8).

    Args:
        duel: of this step.
        answered: [B] bool; read only where duel.query_oracle.

    Returns:
        Duel in which the others are as they were; of a dropped duel no label was bought.
    """
    dropped = duel.query_oracle & ~answered
    return duel._replace(query_oracle=duel.query_oracle & ~dropped, clash=duel.clash | dropped)


def assign_labels(
    label_key: Array,
    rewards: Array,
    prompts: PromptBatch,
    candidates: Candidates,
    duel: Duel,
    oracle_prefers_first: Array,
) -> PreferenceBatch:
    """Orders each duel into (y+, y−): by the oracle, or by a head drawn for the prompt (line 8).

    Args:
        label_key: [] key, the same as `propose` got.
        rewards: [K, B, M] f32.
        prompts, candidates, duel: of this step.
        oracle_prefers_first: [B] bool; read only where duel.query_oracle.

    Returns:
        PreferenceBatch with weight 0 on clashes.
    """
    rows = jnp.arange(duel.first.shape[0])
    drawn = _labelling_head(label_key, rewards)
    head_prefers_first = drawn[rows, duel.first] > drawn[rows, duel.second]
    first_wins = jnp.where(duel.query_oracle, oracle_prefers_first, head_prefers_first)
    winner = jnp.where(first_wins, duel.first, duel.second)
    loser = jnp.where(first_wins, duel.second, duel.first)
    pair = jnp.stack([winner, loser], axis=1)  # [B, 2]
    take = lambda x: x[rows[:, None], pair]  # noqa: E731
    return PreferenceBatch(
        prompts.tokens,
        prompts.mask,
        take(candidates.tokens),
        take(candidates.mask),
        take(candidates.features),
        duel.query_oracle,
        (~duel.clash).astype(jnp.float32),
    )


def update(
    learner: Learner, state: SeaState, ref_params: Params, batch: PreferenceBatch
) -> tuple[SeaState, dict[str, Array]]:
    """Experience, reward learning and policy learning of one step (lines 8-10).

    Jit it with `learner` static and `state` donated; ref_params never are.

    Args:
        learner: static settings.
        state: before the step.
        ref_params: π_ref.
        batch: B_t.

    Returns:
        The new state, and metrics as f32 scalars still on the device.
    """
    ensemble_key = step_keys(state.key, state.step).ensemble
    bought = batch.from_oracle & (batch.weight > 0)
    experience, ensemble, metrics = state.experience, state.ensemble, {}
    if learner.learn_ensemble:
        # Synthetic pairs never enter D_t: reward learning sees the oracle's labels only.
        experience = buffer.add(experience, batch.features, batch.weight, bought)
        ensemble, metrics = _update_ensemble(learner, ensemble_key, state.ensemble, experience, batch)
    policy, policy_metrics = _update_policy(learner, state.policy, ref_params, batch, state.num_queries)
    # Where every duel clashes there is no gradient, but Adam's momentum would move θ all the same.
    taught = batch.weight.sum() > 0
    policy = jax.tree.map(lambda after, before: _select(taught, after, before), policy, state.policy)
    num_queries = state.num_queries + bought.sum(dtype=jnp.int32)
    new = SeaState(policy, ensemble, experience, state.key, state.step + 1, num_queries)
    # A step that is not finite changes nothing, so that state and batch can be saved as its inputs.
    finite = jnp.isfinite(policy_metrics["policy/loss"] + policy_metrics["policy/grad_norm"])
    if "ensemble/loss" in metrics:
        finite &= jnp.isfinite(metrics["ensemble/loss"])
    new = jax.tree.map(lambda after, before: _select(finite, after, before), new, state)
    return new, metrics | policy_metrics | {"step/finite": finite.astype(jnp.float32)}


def _select(finite: Array, after: Array, before: Array) -> Array:
    return jax.lax.select(jnp.broadcast_to(finite, after.shape), after, before)


def _merge_duplicates(rewards: Array, candidates: Candidates) -> tuple[Array, Array]:
    """Gives equal responses the reward of their first copy, to the bit, so that argmax meets one.

    Returns rewards [K, B, M] and, for each response, the index of its first copy [B, M].
    """
    tokens = jnp.where(candidates.mask, candidates.tokens, -1)
    equal = (tokens[:, :, None] == tokens[:, None]).all(-1)  # [B, M, M]
    original = jnp.argmax(equal, axis=-1)
    return jnp.take_along_axis(rewards, original[None], axis=2), original


def _labelling_head(key: Array, rewards: Array) -> Array:
    """The rewards [B, M] of one head drawn for each prompt."""
    K, B, _ = rewards.shape
    return rewards[jax.random.randint(key, (B,), 0, K), jnp.arange(B)]


def _update_ensemble(
    learner: Learner, key: Array, state: EnsembleState, experience: Any, batch: PreferenceBatch
) -> tuple[EnsembleState, dict[str, Array]]:
    """Line 9, with the accuracy of the posterior before it saw the batch's labels."""
    before = heads.rewards(state.params, batch.features)  # [K, B, 2]
    margin = before[..., 0] - before[..., 1]
    probability = jax.nn.sigmoid(margin).mean(0)
    bought = (batch.from_oracle & (batch.weight > 0)).astype(jnp.float32)
    state, metrics = heads.update(
        key,
        state,
        experience,
        learner.ensemble_optimizer,
        num_steps=learner.ensemble_steps,
        batch_size=learner.ensemble_batch,
        regularization=learner.regularization,
        scale_by_data=learner.scale_by_data,
    )
    return state, metrics | {
        "ensemble/accuracy_chosen": mean_or_nan((probability > 0.5).astype(jnp.float32), bought),
        # Calibrated, it equals the accuracy; above it, the posterior is too sure of itself.
        "ensemble/confidence_chosen": mean_or_nan(jnp.maximum(probability, 1 - probability), bought),
        "ensemble/nll_chosen": mean_or_nan(-jnp.log(probability + 1e-6), bought),
        "ensemble/probability_std": mean_or_nan(jax.nn.sigmoid(margin).std(0), bought),
    }


def _with_y_ref(batch: PreferenceBatch) -> tuple[Array, Array]:
    """Tokens and mask [B, 2, T] of the pair; [B, 3, T] where y_ref is a third response to the prompt."""
    if batch.y_ref_tokens is None or batch.y_ref_mask is None:
        return batch.tokens, batch.mask
    tokens = jnp.concatenate([batch.tokens, batch.y_ref_tokens], axis=1)
    return tokens, jnp.concatenate([batch.mask, batch.y_ref_mask], axis=1)


def _policy_gradient(
    learner: Learner, params: Params, ref_params: Params, batch: PreferenceBatch
) -> tuple[Array, Params, Array, Array, Array | None]:
    """F (Eq. 9) and its gradient; log π_θ and log π_ref of the pairs, [B, 2] each; log π_θ of y_ref [B].

    Micro-batches bound the memory of the backward pass. F is a weighted mean over B, so each pass adds
    its share of one sum.
    """
    size = learner.micro_batch or batch.weight.shape[0]
    total = jnp.maximum(batch.weight.sum(), 1e-8)
    loss_fn = DAP_LOSSES[learner.dap]

    def share(params, part):
        prompts, chunk, y_ref_logps = (part.prompts, part.prompt_mask), learner.token_chunk, None
        ref_logps = sequence_logprobs(learner.model, ref_params, *prompts, part.tokens, part.mask, chunk)
        logps = sequence_logprobs(learner.model, params, *prompts, *_with_y_ref(part), chunk)
        if part.y_ref_tokens is not None:
            logps, y_ref_logps = logps[:, :2], logps[:, 2]
        losses = loss_fn(logps, ref_logps, part.mask.sum(-1), **dict(learner.dap_options))
        if y_ref_logps is not None:
            losses += optimism(y_ref_logps, learner.optimism)
        return jnp.sum(losses * part.weight) / total, (logps, ref_logps, y_ref_logps)

    def add(sums, part):
        (loss, logps), grads = jax.value_and_grad(share, has_aux=True)(params, part)
        return jax.tree.map(jnp.add, sums, (loss, grads)), logps

    zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
    (loss, grads), logps = jax.lax.scan(add, zeros, _spread(batch, size))
    return loss, grads, *_gather(logps)


def _spread(tree: Any, size: int) -> Any:
    """[B, ...] -> [B / size, size, ...], a pass each.

    Row i goes to pass i mod (B / size): each takes its rows from every shard of the batch axis.
    """
    return jax.tree.map(lambda x: x.reshape(size, len(x) // size, *x.shape[1:]).swapaxes(0, 1), tree)


def _gather(tree: Any) -> Any:
    """The inverse of `_spread`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


def _update_policy(
    learner: Learner, state: PolicyState, ref_params: Params, batch: PreferenceBatch, num_queries: Array
) -> tuple[PolicyState, dict[str, Array]]:
    """Line 10: one optimizer step on F (Eq. 9), its gradient summed over micro-batches.

    The optimizer is told num_queries, [] int32 bought before this step, for its schedule.
    """
    loss, grads, logps, ref_logps, y_ref_logps = _policy_gradient(learner, state.params, ref_params, batch)
    lengths = batch.mask.sum(-1)
    optimizer = optax.with_extra_args_support(learner.policy_optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, num_queries=num_queries)
    ratio = logps - ref_logps
    metrics = {
        "policy/loss": loss,
        "policy/grad_norm": optax.tree.norm(grads),
        "policy/implicit_accuracy": mean_or_nan(
            (ratio[:, 0] > ratio[:, 1]).astype(jnp.float32), batch.weight
        ),
        "policy/log_ratio_chosen": mean_or_nan(ratio[:, 0], batch.weight),
        "policy/log_ratio_rejected": mean_or_nan(ratio[:, 1], batch.weight),
        "duel/length_chosen": mean_or_nan(lengths[:, 0].astype(jnp.float32), batch.weight),
        "duel/length_rejected": mean_or_nan(lengths[:, 1].astype(jnp.float32), batch.weight),
        "duel/clash": 1.0 - batch.weight.mean(),
        "duel/from_oracle": batch.from_oracle.mean(dtype=jnp.float32),
    }
    if y_ref_logps is not None:
        metrics["policy/log_prob_y_ref"] = mean_or_nan(y_ref_logps, batch.weight)
    return PolicyState(optax.apply_updates(state.params, updates), opt_state), metrics
