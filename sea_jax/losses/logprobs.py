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
    hidden, _, _ = model.apply(variables, tokens, mask, prefix, method="encode")
    B, M, _, W = hidden.shape
    first = jnp.broadcast_to(last[:, None, None], (B, M, 1, W))
    return jnp.concatenate([first, hidden], axis=2)


def token_logprobs(
    model: Decoder, params: Params, prompts: Array, prompt_mask: Array, tokens: Array, mask: Array
) -> Array:
    """log π(y_t | x, y_<t) at temperature 1.

    Logits exist at response positions only; a prompt's are never computed.

    Args:
        model, params: the policy.
        prompts: [B, L] int32, left-padded.
        prompt_mask: [B, L] bool.
        tokens: [B, M, T] int32, EOS in.
        mask: [B, M, T] bool.

    Returns:
        [B, M, T] f32 nats, 0 on padding.
    """
    states = response_states(model, params, prompts, prompt_mask, tokens, mask)[:, :, :-1]
    return jnp.where(mask, next_logprobs(model, params, states, tokens), 0.0)


def next_logprobs(model: Decoder, params: Params, states: Array, tokens: Array) -> Array:
    """Log-probs of the tokens [...] that follow the states [..., W], at temperature 1: [...] f32 nats."""
    logits = model.apply({"params": params}, states, method="logits")
    chosen = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, -1)


def sequence_logprobs(
    model: Decoder, params: Params, prompts: Array, prompt_mask: Array, tokens: Array, mask: Array
) -> Array:
    """log π(y | x) = Σ_t log π(y_t | x, y_<t): arguments as `token_logprobs` -> [B, M] f32 nats."""
    return token_logprobs(model, params, prompts, prompt_mask, tokens, mask).sum(-1)
