"""Parts that every decoder shares: rotary embedding and attention over a shared prefix."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sea_jax.types import Array

_MASKED = -1e30  # finite: a row without any visible key must not become NaN


class Prefix(NamedTuple):
    """Keys and values of a prompt, stored once for all of its M responses.

    The layouts make both attention products plain batched matrix products, which XLA:CPU runs more
    than twice as fast as einsums over [B, L, H, D].
    """

    keys: Array  # [N, B, H_kv, D, L] (inside a layer: without N)
    values: Array  # [N, B, H_kv, L, D]
    mask: Array  # [B, L] bool


class Past(NamedTuple):
    """One layer's keys and values of the response tokens decoded so far: the first `length` of T slots."""

    keys: Array  # [B, H_kv, M, D, T]
    values: Array  # [B, H_kv, M, T, D]
    length: Array  # [] int32

    def append(self, k: Array, v: Array) -> "Past":
        """With the tokens at hand, k and v [B, M, t, H_kv, D], in the next t slots; in place under jit."""
        at = self.length
        return Past(
            jax.lax.dynamic_update_slice(self.keys, k.transpose(0, 3, 1, 4, 2), (0, 0, 0, 0, at)),
            jax.lax.dynamic_update_slice(self.values, v.transpose(0, 3, 1, 2, 4), (0, 0, 0, at, 0)),
            at + k.shape[2],
        )


class RopeScaling(NamedTuple):
    """Llama 3.1's scaling of RoPE to contexts longer than those it was trained on first.

    Wavelengths that fit less than low_freq_factor times into the original context become `factor` times
    longer, those that fit more than high_freq_factor times stay. In between, frequencies are interpolated,
    linearly in how many times theirs fit.

    References:
        Grattafiori et al. (2024), The Llama 3 Herd of Models, arXiv:2407.21783.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int  # tokens

    def stretch(self, period: Array) -> Array:
        """Reciprocal frequencies [...] f32, in tokens a radian, to the scaled ones."""
        fits = self.original_max_position_embeddings / (2 * jnp.pi * period)
        kept = (fits - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = jnp.clip(kept, 0.0, 1.0)
        return period / (kept + (1.0 - kept) / self.factor)


def rotary_angles(
    positions: Array, rotary_dim: int, base: float, scaling: RopeScaling | None = None
) -> tuple[Array, Array]:
    """Sines and cosines of RoPE (Su et al., 2021, arXiv:2104.09864).

    Args:
        positions: [...] int32.
        rotary_dim: number of rotated features of a head, even.
        base: base of the geometric progression of wavelengths.
        scaling: of the wavelengths, or None.

    Returns:
        sin, cos: [..., rotary_dim / 2] f32.
    """
    exponent = jnp.arange(0, rotary_dim, 2, dtype=jnp.float32) / rotary_dim
    period = base**exponent
    if scaling is not None:
        period = scaling.stretch(period)
    angles = positions[..., None].astype(jnp.float32) / period
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


def gelu(x: Array) -> Array:
    """Exact GELU (Hendrycks & Gimpel, 2016, arXiv:1606.08415), x Φ(x), of any shape.

    Checkpointed: the gradient needs x alone and recomputes Φ(x), where keeping what it could reuse
    would write and read three more arrays as wide as the MLP.
    """

    @jax.checkpoint
    def exact(x):
        return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))

    return exact(x)


def _materialize(x: Any) -> Any:
    """On CPUs, arrays that are in memory before they are used: XLA:CPU does not fold how they were made into
    what uses them. Elsewhere, where that is an advantage, as they are."""
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


@jax.custom_vjp
def unstack_axis(x: Array) -> tuple[Array, ...]:
    """[..., n, D] -> n arrays [..., D].

    Its gradient is one stack. That of n slices would be a sum of n padded arrays, which XLA:CPU computes
    element by element, as it does a stack of what is not written down.
    """
    return tuple(x[..., i, :] for i in range(x.shape[-2]))


def _unstack_axis_backward(_: None, g: tuple[Array, ...]) -> tuple[Array]:
    return (jnp.stack(_materialize(g), -2),)


unstack_axis.defvjp(lambda x: (unstack_axis(x), None), _unstack_axis_backward)


@jax.custom_vjp
def matmul(a: Array, b: Array) -> Array:
    """a [..., n, k] @ b [..., k, m] -> [..., n, m].

    Its gradient in b is aᵀ g. XLA:CPU folds the transposition into the matmul, and then has a plain loop for
    it only.
    """
    return a @ b


def _matmul_forward(a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return a @ b, (a, b)


def _matmul_backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    a, b = kept
    return g @ b.mT, _materialize(a.mT) @ g


matmul.defvjp(_matmul_forward, _matmul_backward)


def shared_prefix_attention(
    q: Array, k: Array, v: Array, mask: Array, prefix: Prefix | None = None, past: Past | None = None
) -> Array:
    """Attention of M responses to their shared prompt and causally to themselves.

    The prompt's keys are never repeated M times: the M·T queries of a prompt meet them in one
    matrix product. The two sets of keys share a softmax without being joined: each adds to the
    numerator and to the denominator of

        Σ_j exp(s_j - max) v_j / Σ_j exp(s_j - max).

    H may be a multiple of H_kv (Ainslie et al., 2023, arXiv:2305.13245): query head h reads key head
    h // G, G = H / H_kv. Keys are not repeated G times either: the G·T queries of a response that share a
    key head meet it as the rows of one matrix.

    Args:
        q: [B, M, T, H, D], the last T of the tokens at hand.
        k, v: [B, M, S, H_kv, D], all S ≥ T of them.
        mask: [B, M, S] bool, False on padding; not read with a past, whose tokens are all real.
        prefix: one layer of the prompt's cache, or None.
        past: one layer of the responses' caches, the tokens at hand appended, or None.

    Returns:
        [B, M, T, H, D].
    """
    B, M, T, H, D = q.shape
    S, H_kv = k.shape[2:4]
    G = H // H_kv
    q = q.reshape(B, M, T, H_kv, G, D).transpose(0, 3, 1, 4, 2, 5).reshape(B, H_kv, M, G * T, D) * D**-0.5
    if past is None:
        keys, values = k.transpose(0, 3, 1, 4, 2), v.transpose(0, 3, 1, 2, 4)
        causal = jnp.tril(jnp.ones((T, S), bool), S - T)
        visible = mask[:, None, :, None, :] & jnp.tile(causal, (G, 1))
    else:
        keys, values, length = past
        visible = jnp.arange(keys.shape[-1]) < length - jnp.tile(jnp.arange(T)[::-1, None], (G, 1))
    scores = [jnp.where(visible, matmul(q, keys).astype(jnp.float32), _MASKED)]
    if prefix is not None:
        on_prefix = matmul(q.reshape(B, H_kv, M * G * T, D), prefix.keys)
        on_prefix = jnp.where(prefix.mask[:, None, None], on_prefix.astype(jnp.float32), _MASKED)
        scores.append(on_prefix.reshape(B, H_kv, M, G * T, -1))

    # The maximum cancels out of the quotient: it has no gradient.
    highest = functools.reduce(jnp.maximum, [s.max(-1, keepdims=True) for s in scores])
    weights = [jnp.exp(s - jax.lax.stop_gradient(highest)) for s in scores]
    total = functools.reduce(jnp.add, [w.sum(-1, keepdims=True) for w in weights])
    weights = [w.astype(q.dtype) for w in weights]
    out = matmul(weights[0], values)
    if prefix is not None:
        out += matmul(weights[1].reshape(B, H_kv, M * G * T, -1), prefix.values).reshape(out.shape)
    out = (out / total).astype(q.dtype).reshape(B, H_kv, M, G, T, D)
    return out.transpose(0, 2, 4, 1, 3, 5).reshape(B, M, T, H, D)
