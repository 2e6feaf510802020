"""Disentangled attention: content to content, and content to relative position and back.

References:
    He et al. (2021a), DeBERTa, arXiv:2006.03654, Sec. 3.1.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sea_jax.types import Array, Config

_MASKED = -1e30  # finite: a row of padding alone must not become NaN


def relative_index(length: int, span: int, buckets: int = -1, max_distance: int = -1) -> Array:
    """Computes the embedding row of each relative position, δ(i - j) of He et al. (2021a), Eq. 3.

    With buckets, distances beyond half of them share logarithmic ones, as in version 2 of the code.

    Args:
        length: L, tokens of a sequence.
        span: half the number of embeddings.
        buckets: number of buckets per side; at most 0 means none.
        max_distance: the distance that the last bucket holds.

    Returns:
        [L, L] int32 in [0, 2·span), queries before keys.
    """
    # NumPy in f32, as torch in transformers: the ceilings must agree. Per distance, not per pair of tokens.
    distance = np.arange(-length + 1, length)
    place = distance
    if buckets > 0:
        half = buckets // 2
        far = np.maximum(np.abs(distance), half).astype(np.float32)
        ratio = np.log(far / np.float32(half)) / np.log(np.float32((max_distance - 1) / half))
        beyond = np.ceil(ratio * np.float32(half - 1)) + half
        place = np.where(np.abs(distance) <= half, distance, beyond * np.sign(distance))
    rows = jnp.asarray(np.clip(place + span, 0, 2 * span - 1).astype(np.int32))
    at = jnp.arange(length)
    return rows[at[:, None] - at + length - 1]


class DisentangledAttention(nn.Module):
    """Content-to-content, content-to-position and position-to-content; He et al. (2021a), Eq. 4."""

    config: Config  # a DebertaConfig

    @nn.compact
    def __call__(self, x: Array, mask: Array, relative: Array | None, index: Array | None) -> Array:
        """Attends: x [B, L, W], mask [B, L], relative [2·span, W], index [L, L] -> [B, L, W].

        No array is larger than [B, H, L, max(L, 2·span)]: scores are computed once for each token and
        relative position, and the pairs of tokens gather from them.
        """
        cfg = self.config
        dense = dict(dtype=cfg.dtype, param_dtype=jnp.float32, kernel_init=nn.initializers.normal(0.02))
        heads = functools.partial(nn.DenseGeneral, (cfg.num_heads, cfg.head_dim), **dense)
        meet = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        query, key = heads(name="query"), heads(name="key")
        scale = (cfg.head_dim * (1 + len(set(cfg.pos_att_type)))) ** -0.5
        q, k, v = query(x) * scale, key(x), heads(name="value")(x)
        scores = meet("bqhd,bkhd->bhqk", q, k)
        if relative is not None and index is not None:
            if "c2p" in cfg.pos_att_type:
                positions = (key if cfg.share_att_key else heads(name="pos_key"))(relative)
                by_row = meet("bqhd,shd->bhqs", q, positions)
                scores += jnp.take_along_axis(by_row, index[None, None], axis=-1)
            if "p2c" in cfg.pos_att_type:
                positions = (query if cfg.share_att_key else heads(name="pos_query"))(relative) * scale
                by_row = meet("bkhd,shd->bhks", k, positions)
                scores += jnp.take_along_axis(by_row, index.T[None, None], axis=-1).swapaxes(-1, -2)
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, _MASKED)).astype(cfg.dtype)
        attended = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return nn.DenseGeneral(cfg.width, axis=(-2, -1), name="out", **dense)(attended)
