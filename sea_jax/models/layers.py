"""Parts that every decoder shares: rotary embedding and attention over a shared prefix."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sea_jax.types import Array

_MASKED = -1e30  # finite: a row without any visible key must not become NaN


class Prefix(NamedTuple):
    """Keys and values of a prompt, stored once for all of its M responses.

    The layouts make both attention products plain batched matrix products, which XLA:CPU runs more
    than twice as fast as einsums over [B, L, H, D].
    """

    keys: Array  # [N, B, H, D, L] (inside a layer: without N)
    values: Array  # [N, B, H, L, D]
    mask: Array  # [B, L] bool


class Past(NamedTuple):
    """Keys and values of the response tokens decoded so far."""

    keys: Array  # [N, B, H, M, D, T] (inside a layer: without N)
    values: Array  # [N, B, H, M, T, D]
    length: Array  # [] int32, how many of the T slots are filled


def rotary_angles(positions: Array, rotary_dim: int, base: float) -> tuple[Array, Array]:
    """Sines and cosines of RoPE (Su et al., 2021, arXiv:2104.09864).

    Args:
        positions: [...] int32.
        rotary_dim: number of rotated features of a head, even.
        base: base of the geometric progression of wavelengths.

    Returns:
        sin, cos: [..., rotary_dim / 2] f32.
    """
    exponent = jnp.arange(0, rotary_dim, 2, dtype=jnp.float32) / rotary_dim
    angles = positions[..., None].astype(jnp.float32) / base**exponent
    return jnp.sin(angles), jnp.cos(angles)


def apply_rotary(x: Array, sin: Array, cos: Array) -> Array:
    """Rotates the first 2·R features of each head, in the half-split order of GPT-NeoX and Llama.

    Args:
        x: [..., H, D].
        sin, cos: [..., R] f32, R ≤ D / 2.

    Returns:
        [..., H, D], dtype of x.
    """
    half = sin.shape[-1]
    sin, cos = sin[..., None, :].astype(x.dtype), cos[..., None, :].astype(x.dtype)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def causal_attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Causal self-attention of whole sequences.

    Args:
        q, k, v: [B, T, H, D].
        mask: [B, T] bool, False on padding.

    Returns:
        [B, T, H, D].
    """
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :], is_causal=True)


def shared_prefix_attention(
    q: Array, k: Array, v: Array, mask: Array, prefix: Prefix, past: Past | None
) -> Array:
    """Attention of M responses to their shared prompt, to their own past and causally to themselves.

    The prompt's keys are never repeated M times: the M·T queries of a prompt meet them in one
    matrix product.

    Args:
        q, k, v: [B, M, T, H, D], the tokens at hand.
        mask: [B, M, T] bool, False on padding.
        prefix: one layer of the prompt's cache.
        past: one layer of the responses' caches, or None.

    Returns:
        [B, M, T, H, D].
    """
    B, M, T, H, D = q.shape
    L = prefix.keys.shape[-1]
    q = q.transpose(0, 3, 1, 2, 4) * D**-0.5  # [B, H, M, T, D]
    k_own, v_own = k.transpose(0, 3, 1, 4, 2), v.transpose(0, 3, 1, 2, 4)

    on_prefix = (q.reshape(B, H, M * T, D) @ prefix.keys).reshape(B, H, M, T, L)
    scores = [jnp.where(prefix.mask[:, None, None, None], on_prefix, _MASKED)]
    if past is not None:
        filled = jnp.arange(past.keys.shape[-1]) < past.length
        scores.append(jnp.where(filled, q @ past.keys, _MASKED))
    visible = mask[:, None, :, None, :] & jnp.tril(jnp.ones((T, T), bool))
    scores.append(jnp.where(visible, q @ k_own, _MASKED))

    weights = jax.nn.softmax(jnp.concatenate(scores, -1).astype(jnp.float32), -1).astype(q.dtype)
    out = (weights[..., :L].reshape(B, H, M * T, L) @ prefix.values).reshape(B, H, M, T, D)
    if past is not None:
        out += weights[..., L:-T] @ past.values
    out += weights[..., -T:] @ v_own
    return out.transpose(0, 2, 3, 1, 4)
