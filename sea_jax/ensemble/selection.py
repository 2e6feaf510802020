"""Selects two of M responses to compare, by pure functions (key, rewards [K, B, M]) -> Duel.

Heads are drawn per prompt, not once per batch. Ties go to the lowest index.
"""

import jax
import jax.numpy as jnp

from sea_jax.ensemble import design
from sea_jax.ensemble.uncertainty import (
    logit_variance,
    pair_information,
    pair_logit_variance,
    pair_preference_variance,
    preference_variance,
)
from sea_jax.types import Array, Duel


def _duel(first: Array, second: Array, void: Array | None = None) -> Duel:
    void = jnp.zeros(first.shape, bool) if void is None else void
    return Duel(first.astype(jnp.int32), second.astype(jnp.int32), ~void, void)


def thompson_draw(key: Array, rewards: Array) -> Array:
    """Takes argmax_b r_φ(x, b) with φ ~ Uniform(Φ), one head per prompt (Alg. 2, line 5).

    Args:
        key: [] key.
        rewards: [K, B, M] f32.

    Returns:
        [B] int32.
    """
    K, B, _ = rewards.shape
    member = jax.random.randint(key, (B,), 0, K)
    return jnp.argmax(rewards[member, jnp.arange(B)], axis=-1)


def _most_uncertain_against_first(key: Array, rewards: Array, variance) -> Duel:
    first = thompson_draw(key, rewards)
    # y_t and its copies (equal under every head) have variance 0 with it, and would win where all
    # members agree on every margin, as one head alone does.
    chosen = jnp.take_along_axis(rewards, first[None, :, None], axis=2)
    scores = jnp.where((rewards == chosen).all(axis=0), -1.0, variance(rewards, first))
    itself = jnp.arange(rewards.shape[-1]) == first[:, None]
    return _duel(first, jnp.argmax(jnp.where(itself, -jnp.inf, scores), axis=-1))


def bai_ts(key: Array, rewards: Array) -> Duel:
    """Selects for best-arm identification (Alg. 2, lines 5 and 7).

    The first response is a Thompson draw, the second the one whose preference against it is most uncertain,
    argmax_b V_φ[σ(r_φ(y_t) − r_φ(b))].
    """
    return _most_uncertain_against_first(key, rewards, preference_variance)


def bai_ts_logits(key: Array, rewards: Array) -> Duel:
    """Selects as `bai_ts`, by the variance of the logits (docs/deviations.md)."""
    return _most_uncertain_against_first(key, rewards, logit_variance)


def ee_ts(key: Array, rewards: Array) -> Duel:
    """Selects for explore and exploit: two Thompson draws, "repeat until y' ≠ y" (Alg. 2, lines 5 and 6).

    Redrawing until the two differ is one draw from the heads whose argmax differs from y_t, so no
    loop is needed. If no head differs, the loop would not end: the duel is void.
    """
    first_key, second_key = jax.random.split(key)
    first = thompson_draw(first_key, rewards)
    best = jnp.argmax(rewards, axis=-1)  # [K, B]
    differs = best != first
    void = ~differs.any(axis=0)
    logits = jnp.where(differs | void, 0.0, -jnp.inf)
    member = jax.random.categorical(second_key, logits, axis=0)
    return _duel(first, jnp.take_along_axis(best, member[None], axis=0)[0], void)


def uncertainty(key: Array, rewards: Array) -> Duel:
    """Selects the pair whose difference of logits varies most over members: pure exploration (App. G.1)."""
    del key
    return _best_pair(rewards, pair_logit_variance(rewards))


def infomax(key: Array, rewards: Array) -> Duel:
    """Selects the pair whose preference varies most over members, argmax_{b, b'} V_φ[σ(r_φ(b) − r_φ(b'))].

    References:
        Efficient Exploration at Scale (2026), arXiv:2603.17378.
    """
    del key
    return _best_pair(rewards, pair_preference_variance(rewards))


def bald(key: Array, rewards: Array) -> Duel:
    """Selects the pair whose label tells most of the reward, by the mutual information of label and member.

    References:
        Melo et al. (2024), arXiv:2406.10023, without their entropy of the prompts; Houlsby et al. (2011).
    """
    del key
    return _best_pair(rewards, pair_information(rewards))


def i_optimal(key: Array, rewards: Array) -> Duel:
    """Selects the pair whose label tells most of the rewards of all responses, to all B prompts.

    Where `infomax` asks about the pair that is known least, which may be an odd one, this asks about what
    matters for ranking the responses that the policy writes: see `design.pair_gains`.
    """
    del key
    return _best_pair(rewards, design.pair_gains(rewards))


def _best_pair(rewards: Array, scores: Array) -> Duel:
    """Selects the pair of the highest score [B, M, M]; two copies of a response only for lack of others."""
    B, M = rewards.shape[1:]
    above = jnp.triu(jnp.ones((M, M), bool), k=1)
    scores = jnp.where(_copies(rewards), -1.0, scores)
    scores = jnp.where(above, scores, -jnp.inf)
    best = jnp.argmax(scores.reshape(B, -1), axis=-1)
    return _duel(best // M, best % M)


def passive(key: Array, rewards: Array) -> Duel:
    """Selects the first two responses, i.i.d. draws from π_θ: online DAP (App. E)."""
    del key
    B = rewards.shape[1]
    return _duel(jnp.zeros((B,), jnp.int32), jnp.ones((B,), jnp.int32))


def best_vs_random(key: Array, rewards: Array) -> Duel:
    """Selects a Thompson draw and a response drawn uniformly from the rest.

    With the oracle's own reward as the only member (K = 1) this is the ceiling that the miniature's
    figure shows: every variance is 0 there, so line 7 has nothing to choose by.
    """
    first_key, second_key = jax.random.split(key)
    return _against_random(second_key, thompson_draw(first_key, rewards), rewards.shape[-1])


def borda_ucb(key: Array, rewards: Array) -> Duel:
    """Selects the response of the highest possible Borda score, against one drawn uniformly from the rest.

    A member's Borda score of a response is the mean probability that it beats another of S_t; the bound is
    the mean plus one standard deviation over the members.

    References:
        AE-Borda, Mehta et al. (2023), arXiv:2312.00267, in prompts that are given.
    """
    M = rewards.shape[-1]

    def borda(member: Array) -> Array:
        beats = jax.nn.sigmoid(member[:, :, None] - member[:, None, :])
        return (beats.sum(-1) - 0.5) / (M - 1)  # without itself

    scores = jax.lax.map(borda, rewards)  # member by member: [K, B, M, M] may be large
    return _against_random(key, jnp.argmax(scores.mean(0) + scores.std(0), axis=-1), M)


def _against_random(key: Array, first: Array, num_responses: int) -> Duel:
    other = jax.random.randint(key, first.shape, 0, num_responses - 1)
    return _duel(first, other + (other >= first))


def max_margin(key: Array, rewards: Array) -> Duel:
    """Selects the pair of largest |r(y) − r(y')|, the lower index first.

    With DPO's implicit reward as the only member (K = 1) this is APL's "preference model certainty" (App. E;
    Muldrew et al., 2024, arXiv:2402.08114); with more members, the margin of their mean. If all are equal, as
    before the first update, it selects the first two responses.
    """
    del key
    B, M = rewards.shape[1:]
    mean = rewards.mean(axis=0)
    margins = jnp.abs(mean[:, :, None] - mean[:, None, :])
    above = jnp.triu(jnp.ones((M, M), bool), k=1)
    best = jnp.argmax(jnp.where(above, margins, -jnp.inf).reshape(B, -1), axis=-1)
    return _duel(best // M, best % M)


def double_reverse_ts(key: Array, rewards: Array) -> Duel:
    """Selects the best response of one drawn head and the worst of another (DRTS), a pair of large margin.

    References:
        ActiveUltraFeedback (2026), arXiv:2603.09692.
    """
    first_key, second_key = jax.random.split(key)
    first, second = thompson_draw(first_key, rewards), thompson_draw(second_key, -rewards)
    return _duel(first, second, first == second)


def delta_ucb(key: Array, rewards: Array) -> Duel:
    """Selects the pair of largest UCB(y) − LCB(y'), the gap that the members still allow.

    The bounds are the mean plus and minus one standard deviation over the members, of rewards centred in
    their prompt, since a constant of the prompt means nothing.

    References:
        ActiveUltraFeedback (2026), arXiv:2603.09692.
    """
    del key
    centred = rewards - rewards.mean(-1, keepdims=True)
    mean, spread = centred.mean(0), centred.std(0)
    gaps = (mean + spread)[:, :, None] - (mean - spread)[:, None, :]
    B, M = mean.shape
    gaps = jnp.where(_copies(rewards), -jnp.finfo(gaps.dtype).max, gaps)
    best = jnp.argmax(jnp.where(jnp.eye(M, dtype=bool), -jnp.inf, gaps).reshape(B, -1), axis=-1)
    return _duel(best // M, best % M)


def _copies(rewards: Array) -> Array:
    """Returns [B, M, M] bool, True where two responses are equal under every member."""
    return (rewards[..., :, None] == rewards[..., None, :]).all(axis=0)


STRATEGIES = {
    "bai_ts": bai_ts,
    "bai_ts_logits": bai_ts_logits,
    "ee_ts": ee_ts,
    "uncertainty": uncertainty,
    "infomax": infomax,
    "bald": bald,
    "i_optimal": i_optimal,
    "passive": passive,
    "best_vs_random": best_vs_random,
    "max_margin": max_margin,
    "borda_ucb": borda_ucb,
    "double_reverse_ts": double_reverse_ts,
    "delta_ucb": delta_ucb,
}
