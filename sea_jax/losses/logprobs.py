"""Log-probs of responses under a policy, with the prompt read once for all of them."""

import jax
import jax.numpy as jnp

from sea_jax.models.decoder import Decoder
from sea_jax.models.layers import Prefix
from sea_jax.types import Array, Params


def response_states(
    model: Decoder, params: Params, prompts: Array, prompt_mask: Array, tokens: Array, mask: Array
) -> Array:
    """The hidden state that predicts each response token, and the one after the last.

    Args:
        model, params: a decoder.
        prompts: [B, L] int32, left-padded.
        prompt_mask: [B, L] bool.
        tokens: [B, M, T] int32.
        mask: [B, M, T] bool.

    Returns:
        [B, M, T + 1, W]; state t has read the tokens before t.
    """
    variables = {"params": params}
    last, prefix = model.apply(variables, prompts, prompt_mask, method="prefill")
    assert isinstance(prefix, Prefix)
    B, M, T = tokens.shape
    first = jnp.broadcast_to(last[:, None, None], (B, M, 1, last.shape[-1]))
    if T == 0:
        return first
    hidden, _, _ = model.apply(variables, tokens, mask, prefix, method="encode")
    return jnp.concatenate([first, hidden], axis=2)


def token_logprobs(
    model: Decoder, params: Params, prompts: Array, prompt_mask: Array, tokens: Array, mask: Array,
    chunk: int = 0,
) -> Array:  # fmt: skip
    """log π(y_t | x, y_<t) at temperature 1.

    Logits exist at response positions only; a prompt's are never computed.

    Args:
        model, params: the policy.
        prompts: [B, L] int32, left-padded.
        prompt_mask: [B, L] bool.
        tokens: [B, M, T] int32, EOS in.
        mask: [B, M, T] bool.
        chunk: as `next_logprobs`.

    Returns:
        [B, M, T] f32 nats, 0 on padding.
    """
    params = model.gather_shared(params)
    # No token comes after the last one, so that nothing needs to read it.
    before = tokens[:, :, :-1], mask[:, :, :-1]
    states = response_states(model, params, prompts, prompt_mask, *before)
    return jnp.where(mask, next_logprobs(model, params, states, tokens, chunk), 0.0)


def next_logprobs(model: Decoder, params: Params, states: Array, tokens: Array, chunk: int = 0) -> Array:
    """Log-probs of the tokens that follow the states, at temperature 1.

    Args:
        model, params: a decoder.
        states: [..., T, W].
        tokens: [..., T] int32.
        chunk: how many of the T have their logits [..., chunk, V] in memory at once, forward and backward,
            where they are computed again; 0: all.

    Returns:
        [..., T] f32 nats.
    """

    def of(states: Array, tokens: Array) -> Array:
        logits = model.apply({"params": params}, states, method="logits")
        chosen = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, -1)

    T = tokens.shape[-1]
    if chunk == 0 or chunk >= T:
        return of(states, tokens)
    axis = tokens.ndim - 1

    def cut(x: Array) -> Array:
        """[..., T, ...] -> [T / chunk, ..., chunk, ...], filled up with zeros."""
        x = jnp.pad(x, [(0, -T % chunk if i == axis else 0) for i in range(x.ndim)])
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :]), axis, 0)

    parts = jax.lax.map(jax.checkpoint(lambda part: of(*part)), (cut(states), cut(tokens)))
    return jnp.moveaxis(parts, 0, axis).reshape(*tokens.shape[:-1], -1)[..., :T]


def sequence_logprobs(
    model: Decoder, params: Params, prompts: Array, prompt_mask: Array, tokens: Array, mask: Array,
    chunk: int = 0,
) -> Array:  # fmt: skip
    """log π(y | x) = Σ_t log π(y_t | x, y_<t): arguments as `token_logprobs` -> [B, M] f32 nats."""
    return token_logprobs(model, params, prompts, prompt_mask, tokens, mask, chunk).sum(-1)
