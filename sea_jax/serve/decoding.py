"""Samples answers a few tokens at a time, so that what is written can be shown before it is complete.

`begin` and `advance` draw what `models.generate` draws from the same key.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sea_jax.models.decoder import Decoder
from sea_jax.models.generate import (
    DecodingState,
    Layer,
    Weights,
    append_token,
    init_decoding,
    next_logits,
    sample_token,
)
from sea_jax.types import Array


class Written(NamedTuple):
    """Answers that are being written: B prompts, M answers to each."""

    state: DecodingState
    keys: tuple[Array, ...]  # [B, H_kv, D, L] of each layer: the caches of the prompts
    values: tuple[Array, ...]  # [B, H_kv, L, D]
    prompt_mask: Array  # [B, L] bool
    uniforms: Array  # [T, B, M] f32 in [0, 1)
    temperature: Array  # [B] f32; 0 is greedy


class Programs(NamedTuple):
    """The jitted functions of a policy."""

    begin: Callable[..., Written]
    advance: Callable[..., Written]


@functools.cache
def programs(model: Decoder, max_tokens: int, eos_id: int) -> Programs:
    """Returns `begin` and `advance` of a policy, jitted; an argument that is advanced is used up."""
    return Programs(
        jax.jit(functools.partial(begin, model, max_tokens=max_tokens, eos_id=eos_id), static_argnums=(5,)),
        jax.jit(functools.partial(advance, model, eos_id=eos_id), donate_argnums=1),
    )


def begin(
    model: Decoder, weights: Weights, prompts: Array, prompt_mask: Array, key: Array, temperature: Array,
    num_responses: int, *, max_tokens: int, eos_id: int,
) -> Written:  # fmt: skip
    """Reads B left-padded prompts [B, L], and draws the first token of M answers to each.

    Args:
        model, weights: the policy.
        prompts: [B, L] int32.
        prompt_mask: [B, L] bool.
        key: [] key.
        temperature: [B] f32; 0 is greedy.
        num_responses: M.
        max_tokens: T, EOS included.
        eos_id: ends an answer.
    """
    variables = {"params": weights.rest}
    last, prefix = model.apply(variables, prompts, prompt_mask, weights.layers, method="prefill")
    logits = model.apply(variables, last, method="logits")
    uniforms = jax.random.uniform(key, (max_tokens, prompts.shape[0], num_responses))
    first = _draw(jnp.repeat(logits[:, None], num_responses, 1), uniforms[0], temperature)
    state = init_decoding(prefix, *first, max_tokens=max_tokens, eos_id=eos_id)
    return Written(state, tuple(prefix.keys), tuple(prefix.values), prompt_mask, uniforms, temperature)


def advance(
    model: Decoder, weights: Weights, written: Written, wanted: Array, num_tokens: Array, *, eos_id: int
) -> Written:
    """Draws further tokens, until all wanted answers have ended.

    Args:
        model, weights: the policy.
        written: so far.
        wanted: [B] bool; answers to other prompts end here.
        num_tokens: [] int32, at most.
        eos_id: ends an answer.
    """
    layers = [Layer(*parts) for parts in zip(weights.layers, written.keys, written.values, strict=True)]
    T = written.uniforms.shape[0]
    stop = jnp.minimum(written.state.t + num_tokens, T)

    def step(state: DecodingState) -> DecodingState:
        logits, past = next_logits(model, weights.rest, layers, written.prompt_mask, state)
        token, logprob = _draw(logits, written.uniforms[state.t], written.temperature)
        return append_token(state, token, logprob, past, eos_id)

    def unfinished(state: DecodingState) -> Array:
        return (state.t < stop) & ~state.ended.all()

    start = written.state._replace(ended=written.state.ended | ~wanted[:, None])
    return written._replace(state=jax.lax.while_loop(unfinished, step, start))


def _draw(logits: Array, uniform: Array, temperature: Array) -> tuple[Array, Array]:
    """Draws tokens [B, M] from logits [B, M, V] at the prompts' temperatures [B], with their log-probs."""
    warm = jnp.where(temperature > 0, temperature, 1.0)[:, None]
    drawn = sample_token(logits / warm[..., None], uniform, 1.0)
    best = sample_token(logits, uniform, 0.0)
    return jax.tree.map(lambda a, b: jnp.where(temperature[:, None] > 0, a, b), drawn, best)
