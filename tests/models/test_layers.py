"""Attention and GELU against the plain formulas, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sea_jax.models.layers import Past, Prefix, gelu, matmul, shared_prefix_attention, unstack_axis

B, M, T, H, D, L = 2, 3, 4, 2, 8, 5


@pytest.fixture(scope="module")
def arrays():
    """q, k, v [B, M, T, H, D] of the responses, k and v [B, L, H, D] of the prompts, and the masks."""
    rng = np.random.default_rng(0)
    own = [rng.normal(size=(B, M, T, H, D)).astype(np.float32) for _ in range(3)]
    shared = [rng.normal(size=(B, L, H, D)).astype(np.float32) for _ in range(2)]
    mask = np.arange(T) < np.array([[4, 2, 1], [3, 4, 4]])[..., None]
    return (*own, *shared), mask, np.arange(L) >= np.array([[2], [0]])


def plain(q, k, v, prompt_k, prompt_v, mask, prompt_mask):
    """The prompt repeated before every response, one softmax over the joined scores."""

    def with_prompt(shared, own):
        repeated = jnp.broadcast_to(shared[:, None], (B, M, *shared.shape[1:]))
        return jnp.concatenate([repeated, own], 2)

    k, v = with_prompt(prompt_k, k), with_prompt(prompt_v, v)
    visible = np.concatenate([np.broadcast_to(prompt_mask[:, None], (B, M, L)), mask], -1)
    visible = visible[:, :, None, None] & np.tril(np.ones((T, L + T), bool), L)[:, None]
    scores = jnp.einsum("bmthd,bmshd->bmths", q, k) / D**0.5
    weights = jax.nn.softmax(jnp.where(visible, scores, -1e9), -1)
    return jnp.einsum("bmths,bmshd->bmthd", weights, v)


def ours(q, k, v, prompt_k, prompt_v, mask, prompt_mask):
    prefix = Prefix(prompt_k.transpose(0, 2, 3, 1), prompt_v.transpose(0, 2, 1, 3), prompt_mask)
    return shared_prefix_attention(q, k, v, mask, prefix)


def test_attention_and_its_gradients_equal_the_plain_formula(arrays):
    """M = 3, padding left of the prompts and right of the responses; padding's outputs do not count."""
    inputs, mask, prompt_mask = arrays

    def value_and_grads(attend):
        def f(*inputs):
            out = attend(*inputs, mask, prompt_mask) * mask[..., None, None]
            return jnp.sum(jnp.sin(out) * jnp.arange(out.size).reshape(out.shape)), out

        return jax.jit(jax.grad(f, range(5), has_aux=True))(*inputs)

    (expected, value), (found, out) = value_and_grads(plain), value_and_grads(ours)
    np.testing.assert_allclose(out, value, atol=1e-5)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_attention_without_a_prompt_is_dot_product_attention(arrays):
    (q, k, v, *_), mask, _ = arrays
    flat = lambda x: x.reshape(B * M, T, H, D)  # noqa: E731
    expected = jax.nn.dot_product_attention(
        flat(q), flat(k), flat(v), mask=mask.reshape(B * M, 1, 1, T), is_causal=True
    )
    found = shared_prefix_attention(q, k, v, mask)
    np.testing.assert_allclose(flat(found), expected, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_tokens_appended_to_a_past_see_what_came_before(arrays, size):
    """One and two tokens at a time, in a cache with a slot to spare: as all four at once."""
    (q, k, v, prompt_k, prompt_v), _, prompt_mask = arrays
    prefix = Prefix(prompt_k.transpose(0, 2, 3, 1), prompt_v.transpose(0, 2, 1, 3), prompt_mask)
    real = np.ones((B, M, T), bool)
    past = Past(jnp.zeros((B, H, M, D, T + 1)), jnp.zeros((B, H, M, T + 1, D)), jnp.int32(0))
    out = []
    for t in range(0, T, size):
        at = np.s_[:, :, t : t + size]
        past = past.append(k[at], v[at])
        out.append(shared_prefix_attention(q[at], k[at], v[at], real[at], prefix, past))
    expected = shared_prefix_attention(q, k, v, real, prefix)
    np.testing.assert_allclose(np.concatenate(out, 2), expected, atol=1e-5)


def test_attention_keeps_half_precision(arrays):
    inputs, mask, prompt_mask = arrays
    half = ours(*(x.astype(jnp.bfloat16) for x in map(jnp.asarray, inputs)), mask, prompt_mask)
    assert half.dtype == jnp.bfloat16
    expected = ours(*inputs, mask, prompt_mask)
    np.testing.assert_allclose(half[mask].astype(np.float32), expected[mask], atol=0.05)


def test_gelu_and_its_gradient_are_exact():
    """x Φ(x) of jax.nn, and Φ(x) + x φ(x)."""
    x = jnp.linspace(-8, 8, 321)
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    expected = jax.scipy.stats.norm.cdf(x) + x * jax.scipy.stats.norm.pdf(x)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), expected, atol=1e-6)


def test_products_and_parts_have_the_gradients_of_their_plain_forms():
    """JAX's own gradients of a @ b and of slices, which `matmul` and `unstack_axis` write otherwise."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in [(2, 3, 4, 5), (2, 3, 5, 6)])
    for of, plain, inputs in [
        (matmul, lambda a, b: a @ b, (a, b)),
        (lambda x: sum(i * p**2 for i, p in enumerate(unstack_axis(x))),
         lambda x: sum(i * x[..., i, :] ** 2 for i in range(4)), (a,)),
    ]:  # fmt: skip
        every = range(len(inputs))
        found, expected = (
            jax.grad(lambda *x, f=f: jnp.sum(jnp.sin(f(*x))), every)(*inputs) for f in (of, plain)
        )
        np.testing.assert_allclose(of(*inputs), plain(*inputs), rtol=1e-6)
        for got, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-5)
