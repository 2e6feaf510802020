"""Samples M responses to each prompt, which is read once (Alg. 2, line 4)."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from sea_jax.models.decoder import Decoder
from sea_jax.models.layers import Past, Prefix
from sea_jax.models.params import cast_matrices
from sea_jax.types import BATCH_AXES, Array, Params


class Responses(NamedTuple):
    """Sampled responses."""

    tokens: Array  # [B, M, T] int32, pad after the EOS
    mask: Array  # [B, M, T] bool, True up to the EOS and on it
    logprobs: Array  # [B, M, T] f32 nats at the sampling temperature, 0 on padding


class BatchSlice(NamedTuple):
    """A slice of a larger batch; its draws equal those of the full batch."""

    first: int  # the row of the batch that is row 0 here
    total: int  # rows of the batch


def sample_token(logits: Array, uniform: Array, temperature: float) -> tuple[Array, Array]:
    """Draws from softmax(logits / temperature) by inverting its cumulative sum.

    One uniform per row replaces V Gumbel variables, which on CPU cost more than the rest of the head. A
    cumulative sum over V would cost as much: a block of about √V tokens is drawn first, then a token in it.

    Args:
        logits: [..., V] f32.
        uniform: [...] f32 in [0, 1).
        temperature: 0 takes the argmax and reports its log-prob at temperature 1.

    Returns:
        tokens [...] int32, and their log-probs [...] f32 nats under that distribution.
    """
    scaled = logits / (temperature or 1.0)
    scaled -= jnp.max(scaled, -1, keepdims=True)
    mass = jnp.exp(scaled)
    if temperature == 0:
        token = jnp.argmax(scaled, -1)
    else:
        V = mass.shape[-1]
        size = 1 << (V.bit_length() // 2)
        blocks = jnp.pad(mass, [(0, 0)] * (mass.ndim - 1) + [(0, -V % size)])
        blocks = blocks.reshape(*mass.shape[:-1], -1, size)
        sums = blocks.sum(-1)
        block, rest = _invert_cdf(sums, uniform * sums.sum(-1))
        within = jnp.take_along_axis(blocks, block[..., None, None], -2)[..., 0, :]
        token = block * size + _invert_cdf(within, rest)[0]
    chosen = jnp.take_along_axis(scaled, token[..., None], -1)[..., 0]
    return token.astype(jnp.int32), chosen - jnp.log(mass.sum(-1))


def _invert_cdf(mass: Array, target: Array) -> tuple[Array, Array]:
    """Finds the first index whose cumulative mass exceeds the target; returns it and the remaining target.

    The index has mass, whatever the rounding: [..., n] f32, [...] f32 -> [...] int32, [...] f32.
    """
    cumulative = jnp.cumsum(mass, -1)
    possible = mass > 0
    above = possible & (cumulative > target[..., None])
    last = mass.shape[-1] - 1 - jnp.argmax(possible[..., ::-1], -1)
    index = jnp.where(above.any(-1), jnp.argmax(above, -1), last)
    before = jnp.take_along_axis(cumulative - mass, index[..., None], -1)[..., 0]
    return index, target - before


class Weights(NamedTuple):
    """A policy's parameters for sampling: unstacked layers, in the dtype of the computation.

    Slices of stacked arrays would be copied at every token. Sharded parameters are gathered in this form.
    """

    layers: tuple[Params, ...]
    rest: Params


class Layer(NamedTuple):
    """One layer's weights and its cache of the prompts."""

    params: Params
    keys: Array  # [B, H_kv, D, L]
    values: Array  # [B, H_kv, L, D]


class DecodingState(NamedTuple):
    """The carry of the decoding loop."""

    t: Array  # [] int32, tokens drawn so far
    token: Array  # [B, M] int32, the last of them
    length: Array  # [B, M] int32, tokens of each response, its EOS included
    ended: Array  # [B, M] bool
    past: tuple[Past, ...]  # one per layer
    tokens: Array  # [T, B, M] int32, time first, so that a step writes contiguous memory
    logprobs: Array  # [T, B, M] f32


def unstack_layers(model: Decoder, params: Params) -> Weights:
    """Casts and unstacks the learner's parameters for sampling."""
    cast = cast_matrices(params, model.config.dtype)
    stack = cast.pop("layers")
    layers = [jax.tree.map(lambda x, i=i: x[i], stack) for i in range(model.config.num_layers)]
    return Weights(tuple(layers), cast)


def next_logits(
    model: Decoder, params: Params, layers: list[Layer], prompt_mask: Array, state: DecodingState
) -> tuple[Array, tuple[Past, ...]]:
    """Computes the logits of the next token of every response.

    Args:
        model, params: the policy, and its parameters without the layers.
        layers: weights and caches of the layers.
        prompt_mask: [B, L] bool.
        state: carry of the loop.

    Returns:
        logits [B, M, V], and the caches with the last token appended.
    """
    variables, block = {"params": params}, model.config.block(model.config)
    token = state.token[..., None]  # [B, M, 1]
    mask = jnp.ones(token.shape, bool)
    positions = jnp.broadcast_to(prompt_mask.sum(-1)[:, None, None] + state.t - 1, token.shape)
    x, pasts = model.apply(variables, token, method="embed_tokens"), []
    for layer, past in zip(layers, state.past, strict=True):
        prefix = (layer.keys, layer.values)
        x, appended = block.apply({"params": layer.params}, x, positions, mask, prompt_mask, prefix, past)
        pasts.append(appended)
    return model.apply(variables, x[..., 0, :], method="read_out"), tuple(pasts)


def init_decoding(
    prefix: Prefix, token: Array, logprob: Array, max_tokens: int, eos_id: int
) -> DecodingState:
    """Returns the state after the first token [B, M] and its log-prob are drawn; the caches are empty."""
    (B, M), T, (_, _, H, D, _) = token.shape, max_tokens, prefix.keys.shape
    return DecodingState(
        t=jnp.int32(1),
        token=token,
        length=jnp.ones((B, M), jnp.int32),
        ended=token == eos_id,
        past=tuple(
            Past(
                jnp.zeros((B, H, M, D, T), prefix.keys.dtype),
                jnp.zeros((B, H, M, T, D), prefix.values.dtype),
                jnp.int32(0),
            )
            for _ in range(prefix.keys.shape[0])
        ),
        tokens=jnp.zeros((T, B, M), jnp.int32).at[0].set(token),
        logprobs=jnp.zeros((T, B, M), jnp.float32).at[0].set(logprob),
    )


def append_token(
    state: DecodingState, token: Array, logprob: Array, past: tuple[Past, ...], eos_id: int
) -> DecodingState:
    """Returns the state after a further token was drawn.

    Args:
        state: before it.
        token: [B, M] int32; those of responses that have ended do not count.
        logprob: [B, M] f32 nats.
        past: the caches, from `next_logits`.
        eos_id: ends a response.
    """
    return DecodingState(
        t=state.t + 1,
        token=token,
        length=state.length + ~state.ended,
        ended=state.ended | (token == eos_id),
        past=past,
        tokens=state.tokens.at[state.t].set(token),
        logprobs=state.logprobs.at[state.t].set(logprob),
    )


def to_responses(state: DecodingState, pad_id: int) -> Responses:
    """Returns the drawn tokens, masked after each response's EOS."""
    mask = jnp.arange(state.tokens.shape[0]) < state.length[..., None]
    tokens, logprobs = (jnp.moveaxis(x, 0, -1) for x in (state.tokens, state.logprobs))
    return Responses(jnp.where(mask, tokens, pad_id), mask, jnp.where(mask, logprobs, 0.0))


def generate(
    model: Decoder,
    params: Params,
    prompts: Array,
    prompt_mask: Array,
    key: Array,
    first: Array | int = 0,
    *,
    total: int = 0,
    num_responses: int,
    max_tokens: int,
    temperature: float,
    eos_id: int,
    pad_id: int,
    mesh: Mesh | None = None,
    micro_batch: int = 0,
) -> Responses:
    """Samples M responses to each of B left-padded prompts; jit it with the keywords static.

    Stops as soon as all B·M responses have ended. A response that reaches max_tokens has no EOS.

    Args:
        model, params: the policy π_θ.
        prompts: [B, L] int32, left-padded.
        prompt_mask: [B, L] bool.
        key: [] key.
        first, total: fields of a `BatchSlice`; total is 0 if the B prompts are the whole batch.
        num_responses: M.
        max_tokens: T, EOS included.
        temperature: 0 is greedy.
        eos_id, pad_id: token ids; they may be equal, since the mask marks padding.
        mesh: its devices share the prompts, if they divide B. Each stops when its own responses have ended;
            the draws do not depend on the number of devices.
        micro_batch: prompts sampled at once, at most; bounds the memory of the caches and changes no
            response. 0: all of B.

    Returns:
        Responses [B, M, T].
    """
    B = prompts.shape[0]
    shards = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    shards = shards if B % shards == 0 else 1
    respond = functools.partial(
        _respond_in_passes, model, at_once=(micro_batch or B) // shards,
        temperature=temperature, eos_id=eos_id, pad_id=pad_id,
    )  # fmt: skip
    if shards > 1:
        # Gathers the weights once, before the first token, rather than layer by layer at each token.
        each, rows, by_token = PartitionSpec(), PartitionSpec(BATCH_AXES), PartitionSpec(None, BATCH_AXES)
        respond = jax.shard_map(
            respond, mesh=mesh, in_specs=(each, rows, rows, by_token), out_specs=rows,
            axis_names=set(BATCH_AXES), check_vma=False,
        )  # fmt: skip
    uniforms = jax.random.uniform(key, (max_tokens, total or B, num_responses))
    if total:
        uniforms = jax.lax.dynamic_slice_in_dim(uniforms, first, B, axis=1)
    return respond(unstack_layers(model, params), prompts, prompt_mask, uniforms)


def _respond_in_passes(
    model: Decoder, weights: Weights, prompts: Array, prompt_mask: Array, uniforms: Array,
    *, at_once: int, **options: Any,
) -> Responses:  # fmt: skip
    """Calls `_respond` on `at_once` prompts at a time, or on the largest smaller number that divides B."""
    B = prompts.shape[0]
    passes = next(n for n in range(1, B + 1) if B % n == 0 and B // n <= max(at_once, 1))
    respond = functools.partial(_respond, model, weights, **options)
    if passes == 1:
        return respond(prompts, prompt_mask, uniforms)
    rows = lambda x, axis=0: x.reshape(*x.shape[:axis], passes, -1, *x.shape[axis + 1 :])  # noqa: E731
    parts = rows(prompts), rows(prompt_mask), jnp.moveaxis(rows(uniforms, 1), 1, 0)
    out = jax.lax.map(lambda part: respond(*part), parts)
    return jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), out)


def _respond(
    model: Decoder, weights: Weights, prompts: Array, prompt_mask: Array, uniforms: Array,
    *, temperature: float, eos_id: int, pad_id: int,
) -> Responses:  # fmt: skip
    """Samples as `generate` does, with given uniforms [T, B, M] f32 in [0, 1)."""
    T, _, M = uniforms.shape
    params, variables = weights.rest, {"params": weights.rest}
    last, prefix = model.apply(variables, prompts, prompt_mask, weights.layers, method="prefill")
    layers = [Layer(*parts) for parts in zip(weights.layers, prefix.keys, prefix.values, strict=True)]
    logits = model.apply(variables, last, method="logits")  # [B, V], the same for all M
    first = sample_token(jnp.repeat(logits[:, None], M, 1), uniforms[0], temperature)

    def step(state: DecodingState) -> DecodingState:
        logits, past = next_logits(model, params, layers, prompt_mask, state)
        token, logprob = sample_token(logits, uniforms[state.t], temperature)
        return append_token(state, token, logprob, past, eos_id)

    def unfinished(state: DecodingState) -> Array:
        return (state.t < T) & ~state.ended.all()

    start = init_decoding(prefix, *first, max_tokens=T, eos_id=eos_id)
    return to_responses(jax.lax.while_loop(unfinished, step, start), pad_id)


@functools.cache
def make_sampler(
    model: Decoder, num_responses: int, max_tokens: int, temperature: float, eos_id: int, pad_id: int,
    mesh: Mesh | None = None, micro_batch: int = 0, total: int = 0,
) -> Callable:  # fmt: skip
    """Returns `generate` with its static arguments bound, jitted; compiled once per process."""
    sample = functools.partial(
        generate, model, num_responses=num_responses, max_tokens=max_tokens,
        temperature=temperature, eos_id=eos_id, pad_id=pad_id, mesh=mesh, micro_batch=micro_batch,
        total=total,
    )  # fmt: skip
    return jax.jit(sample)
