"""Log-probs of responses under a policy; the prompt is read once for its M responses."""

import jax
import jax.numpy as jnp

from sea_jax.models.decoder import Decoder
from sea_jax.models.layers import Prefix
from sea_jax.types import Array, Params


def response_states(
    model: Decoder, params: Params, prompts: Array, prompt_mask: Array, tokens: Array, mask: Array
) -> Array:
    """Computes the hidden state before each response token, and the one after the last.

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
    """Computes log π(y_t | x, y_<t) at temperature 1.

    Computes logits at response positions only.

    Args:
        model, params: the policy.
        prompts: [B, L] int32, left-padded.
        prompt_mask: [B, L] bool.
        tokens: [B, M, T] int32, EOS included.
        mask: [B, M, T] bool.
        chunk: as in `next_logprobs`.

    Returns:
        [B, M, T] f32 nats, 0 on padding.
    """
    params = model.gather_shared(params)
    # The last token predicts none, so it is not read.
    before = tokens[:, :, :-1], mask[:, :, :-1]
    states = response_states(model, params, prompts, prompt_mask, *before)
    return jnp.where(mask, next_logprobs(model, params, states, tokens, chunk), 0.0)


def next_logprobs(model: Decoder, params: Params, states: Array, tokens: Array, chunk: int = 0) -> Array:
    """Computes the log-probs of the tokens that follow the states, at temperature 1.

    Args:
        model, params: a decoder.
        states: [..., T, W].
        tokens: [..., T] int32.
        chunk: tokens whose logits [..., chunk, V] are in memory at once, in the forward pass and in the
            backward pass, which recomputes them; 0: all T.

    Returns:
        [..., T] f32 nats.
    """

    def logprobs(states: Array, tokens: Array) -> Array:
        logits = model.apply({"params": params}, states, method="logits")
        chosen = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, -1)

    T = tokens.shape[-1]
    if chunk == 0 or chunk >= T:
        return logprobs(states, tokens)
    axis = tokens.ndim - 1

    def split(x: Array) -> Array:
        """Splits [..., T, ...] into [T / chunk, ..., chunk, ...], padded with zeros."""
        x = jnp.pad(x, [(0, -T % chunk if i == axis else 0) for i in range(x.ndim)])
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :]), axis, 0)

    parts = jax.lax.map(jax.checkpoint(lambda part: logprobs(*part)), (split(states), split(tokens)))
    return jnp.moveaxis(parts, 0, axis).reshape(*tokens.shape[:-1], -1)[..., :T]


def sequence_logprobs(
    model: Decoder, params: Params, prompts: Array, prompt_mask: Array, tokens: Array, mask: Array,
    chunk: int = 0,
) -> Array:  # fmt: skip
    """Sums `token_logprobs` to log π(y | x) = Σ_t log π(y_t | x, y_<t), [B, M] f32 nats."""
    return token_logprobs(model, params, prompts, prompt_mask, tokens, mask, chunk).sum(-1)
