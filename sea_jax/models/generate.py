"""The sampler: M responses to each prompt, the prompt read once (Alg. 2, line 4)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sea_jax.models.decoder import Decoder
from sea_jax.models.layers import Past
from sea_jax.types import Array, Params


class Responses(NamedTuple):
    """What `generate` returns."""

    tokens: Array  # [B, M, T] int32, pad after the EOS
    mask: Array  # [B, M, T] bool, True up to the EOS and on it
    logprobs: Array  # [B, M, T] f32 nats at the sampling temperature, 0 on padding


def sample_token(logits: Array, uniform: Array, temperature: float) -> tuple[Array, Array]:
    """Draws from softmax(logits / temperature) by inverting its cumulative sum.

    One uniform a row replaces V Gumbel variables, which on CPU cost more than the rest of the head.

    Args:
        logits: [..., V] f32.
        uniform: [...] f32 in [0, 1).
        temperature: 0 takes the argmax, whose log-prob is then reported at temperature 1.

    Returns:
        tokens [...] int32, and their log-probs [...] f32 nats under the distribution drawn from.
    """
    logprobs = jax.nn.log_softmax(logits / (temperature or 1.0))
    if temperature == 0:
        token = jnp.argmax(logprobs, -1)
    else:
        probs = jnp.exp(logprobs)
        # XLA's parallel sum does not quite rise monotonically: what has probability 0 is cut out,
        # or its rounding could be drawn. Scaled by the largest entry, which is a little off 1.
        cumulative = jnp.where(probs > 0, jnp.cumsum(probs, -1), 0.0)
        above = cumulative > (uniform * cumulative.max(-1))[..., None]
        V = logits.shape[-1]
        token = jnp.min(jnp.where(above, jnp.arange(V), V - 1), -1)
    return token.astype(jnp.int32), jnp.take_along_axis(logprobs, token[..., None], -1)[..., 0]


def generate(
    model: Decoder,
    params: Params,
    prompts: Array,
    prompt_mask: Array,
    key: Array,
    *,
    num_responses: int,
    max_tokens: int,
    temperature: float,
    eos_id: int,
    pad_id: int,
) -> Responses:
    """Samples M responses to each of B left-padded prompts; jit it with the keywords static.

    Stops as soon as all B·M responses have ended. A response that reaches max_tokens has no EOS.

    Args:
        model, params: the policy π_θ.
        prompts: [B, L] int32, left-padded.
        prompt_mask: [B, L] bool.
        key: [] key.
        num_responses: M.
        max_tokens: T, EOS included.
        temperature: 0 is greedy.
        eos_id, pad_id: token ids; they may be equal, the mask tells them apart.

    Returns:
        Responses [B, M, T].
    """
    B, M, T = prompts.shape[0], num_responses, max_tokens
    variables = {"params": params}
    last, prefix = model.apply(variables, prompts, prompt_mask, method="prefill")
    uniforms = jax.random.uniform(key, (T, B, M))

    N, _, H, D, _ = prefix.keys.shape
    past = Past(
        jnp.zeros((N, B, H, M, D, T), prefix.keys.dtype),
        jnp.zeros((N, B, H, M, T, D), prefix.values.dtype),
        jnp.int32(0),
    )
    logits = model.apply(variables, last, method="logits")  # [B, V], the same for all M
    token, logprob = sample_token(jnp.repeat(logits[:, None], M, 1), uniforms[0], temperature)
    out = Responses(
        jnp.full((B, M, T), pad_id, jnp.int32).at[..., 0].set(token),
        jnp.zeros((B, M, T), bool).at[..., 0].set(True),
        jnp.zeros((B, M, T), jnp.float32).at[..., 0].set(logprob),
    )

    def step(carry):
        t, token, ended, past, out = carry
        hidden, keys, values = model.apply(
            variables, token[..., None], jnp.ones((B, M, 1), bool), prefix, past, method="encode"
        )
        # One write a step to caches that the loop carries, in place; new keys are [N,B,M,1,H,D].
        past = Past(
            jax.lax.dynamic_update_slice(
                past.keys, keys.transpose(0, 1, 4, 2, 5, 3), (0, 0, 0, 0, 0, t - 1)
            ),
            jax.lax.dynamic_update_slice(
                past.values, values.transpose(0, 1, 4, 2, 3, 5), (0, 0, 0, 0, t - 1, 0)
            ),
            t,
        )
        logits = model.apply(variables, hidden[..., 0, :], method="logits")
        token, logprob = sample_token(logits, uniforms[t], temperature)
        out = Responses(
            out.tokens.at[..., t].set(jnp.where(ended, pad_id, token)),
            out.mask.at[..., t].set(~ended),
            out.logprobs.at[..., t].set(jnp.where(ended, 0.0, logprob)),
        )
        return t + 1, token, ended | (token == eos_id), past, out

    def unfinished(carry):
        t, _, ended, _, _ = carry
        return (t < T) & ~ended.all()

    start = (jnp.int32(1), token, token == eos_id, past, out)
    return jax.lax.while_loop(unfinished, step, start)[-1]
