"""φ(x, y) from hidden states of the frozen starting policy: features of real text without another model.

A pretrained language model that has read a response represents what it says, so that a linear function of its
states can judge it after few labels. The states are those between two blocks of the policy, of which only the
blocks below are computed. They are standardised and projected on principal components
(`sea_jax/pretraining/hidden_states.py`).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sea_jax.losses.logprobs import response_states
from sea_jax.losses.micro_batches import merge_passes, split_passes
from sea_jax.models.decoder import Decoder
from sea_jax.models.generate import Responses
from sea_jax.models.params import cast_matrices
from sea_jax.runtime.sharding import with_gather
from sea_jax.types import Array, Params


class HiddenStates(NamedTuple):
    """An `Extractor` that reads the policy's own tokens.

    Attributes:
        model: the blocks below the states (`truncate`).
        pool: 'last', 'mean' or 'both' (`pooled`).
        params: {"decoder": of `model`; "mean", "scale": [E'] f32; where features are projected "projection":
            [E', E] f32}.
        eos_id: of the EOS whose state does not count; −1: all states count.
        micro_batch: prompts read at once, at most; 0: all. Bounds memory, and changes no feature.
    """

    model: Decoder
    pool: str
    params: Params
    eos_id: int = -1
    micro_batch: int = 0

    @property
    def feature_width(self) -> int:
        """E."""
        return self.params.get("projection", self.params["scale"]).shape[-1]

    def __call__(self, texts: Sequence[str], prompts: Any, mask: Any, responses: Responses) -> Array:
        """Computes features by `extract`, jitted; the texts are ignored."""
        del texts
        return extract_fn(self.model, self.pool, self.eos_id, self.micro_batch)(
            self.params, prompts, mask, responses.tokens, responses.mask
        )


def middle(num_layers: int, layer: int) -> int:
    """Returns the number of blocks below the states: `layer`, or half of all, rounded up, where it is −1."""
    return (num_layers + 1) // 2 if layer < 0 else layer


def feature_widths(model_width: int, pool: str, scaling: str, width: int) -> tuple[int, int]:
    """Returns E', the width of the pooled states, and E, that of the features.

    Args:
        model_width: of the policy's states.
        pool: as in `pooled`.
        scaling: 'standard', or 'pca' for a projection.
        width: E, at most, where states are projected.
    """
    pooled = 2 * model_width if pool == "both" else model_width
    return pooled, pooled if scaling == "standard" else min(width, pooled)


def truncate(mesh: Mesh, model: Decoder, params: Params, layer: int) -> tuple[Decoder, Params]:
    """Keeps the embedding and the first blocks of a decoder.

    Args:
        mesh: the parameters' own.
        model, params: the policy.
        layer: blocks to keep, 0 to all of them.

    Returns:
        The decoder whose hidden states are the residual stream after these blocks, after all of them also
        normalised; its parameters, cast as in `cast_matrices` and sharded as the given ones. Arrays that
        need neither cast nor cut are the given ones.
    """
    kept = {name: params[name] for name in ("embed", "layers", "final_norm")}
    kept = cast_matrices(kept, model.config.dtype)  # not under jit, which would copy all arrays
    if layer < model.config.num_layers:
        cut = jax.jit(
            lambda tree: jax.tree.map(lambda x: x[:layer], tree),
            out_shardings=jax.tree.map(lambda x: x.sharding, kept["layers"]),
        )
        kept["layers"] = cut(kept["layers"])
    return lower_blocks(mesh, model, layer), kept


def lower_blocks(mesh: Mesh, model: Decoder, layer: int) -> Decoder:
    """Returns the module of `truncate`."""
    config = dataclasses.replace(model.config, num_layers=layer, trained_layers=0)
    whole = layer == model.config.num_layers
    return with_gather(mesh, model.clone(config=config, norm_last=whole))


@functools.cache
def extract_fn(model: Decoder, pool: str, eos_id: int, micro_batch: int) -> Callable[..., Array]:
    """Returns `extract` jitted for a backbone."""
    return jax.jit(functools.partial(extract, model, pool, eos_id, micro_batch))


def extract(
    model: Decoder, pool: str, eos_id: int, micro_batch: int, params: Params, prompts: Array,
    prompt_mask: Array, tokens: Array, mask: Array,
) -> Array:  # fmt: skip
    """Computes the features of B·M responses; a prompt is read once for its M responses.

    Args:
        model, pool, eos_id, micro_batch, params: of a `HiddenStates`.
        prompts: [B, L] int32, left-padded.
        prompt_mask: [B, L] bool.
        tokens: [B, M, T] int32.
        mask: [B, M, T] bool.

    Returns:
        [B, M, E] f32.
    """
    decoder = model.gather_shared(params["decoder"])
    batch, B = (prompts, prompt_mask, tokens, mask), len(prompts)
    size = next(n for n in range(min(micro_batch or B, B), 0, -1) if B % n == 0)
    if size == B:
        states = pooled(model, decoder, pool, eos_id, *batch)
    else:
        read = lambda rows: pooled(model, decoder, pool, eos_id, *rows)  # noqa: E731
        states = merge_passes(jax.lax.map(read, split_passes(batch, size)))
    features = (states - params["mean"]) * params["scale"]
    return features @ params["projection"] if "projection" in params else features


def pooled(
    model: Decoder, params: Params, pool: str, eos_id: int, prompts: Array, prompt_mask: Array, tokens: Array,
    mask: Array,
) -> Array:  # fmt: skip
    """Pools the states of each response.

    'last' is the state that has read the last token that counts; 'mean' the mean of the states that have
    read one; 'both' has the two in this order. Of an empty response both are the state that has read the
    prompt.

    Args:
        model, params: a decoder without a head.
        pool, eos_id: of a `HiddenStates`.
        prompts, prompt_mask, tokens, mask: as in `extract`.

    Returns:
        [B, M, E'] f32.
    """
    states = _states(model, params, prompts, prompt_mask, tokens, mask).astype(jnp.float32)
    counts = mask & (tokens != eos_id)
    length = counts.sum(-1)[..., None]  # [B, M, 1]; an EOS comes last
    last = jnp.take_along_axis(states, length[..., None], 2)[:, :, 0]
    if pool == "last":
        return last
    total = jnp.sum(states[:, :, 1:] * counts[..., None], 2)
    mean = jnp.where(length > 0, total / jnp.maximum(length, 1), last)
    return mean if pool == "mean" else jnp.concatenate([last, mean], -1)


def _states(
    model: Decoder, params: Params, prompts: Array, prompt_mask: Array, tokens: Array, mask: Array
) -> Array:
    """Computes `response_states`, [B, M, T + 1, W]; without any block they are the tokens' embeddings."""
    if model.config.num_layers > 0:
        return response_states(model, params, prompts, prompt_mask, tokens, mask)
    before = jnp.broadcast_to(prompts[:, None, -1:], (*tokens.shape[:2], 1))
    return model.apply({"params": params}, jnp.concatenate([before, tokens], -1), method="embed_tokens")
