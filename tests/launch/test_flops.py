"""The counted operations equal hand calculations."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from launch import flops

X, W = jnp.ones((5, 7)), jnp.ones((7, 7))
PRODUCT = 2 * 5 * 7 * 7


def count(f, *args, **options):
    return flops.count(jax.make_jaxpr(f)(*args), **options)


def scanned(x, w):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=3)[0]


def looped(x, w):
    return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ w, x)


def branched(x, w):
    return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)


@pytest.mark.parametrize(
    ("f", "products"),
    [(jnp.matmul, 1), (jax.jit(lambda x, w: (x + x) @ w), 1), (scanned, 3), (looped, 10), (branched, 2)],
)
def test_products_are_counted_as_often_as_they_run(f, products):
    assert count(f, X, W, while_turns=10) == products * PRODUCT


def test_batch_dimensions_count_once():
    assert count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), jnp.ones((3, 5, 7)), jnp.ones((3, 7, 2))) == (
        2 * 3 * 5 * 7 * 2
    )


def test_operations_cost_by_their_precision():
    half = X.astype(jnp.bfloat16)
    f = lambda x, w: (x @ w).astype(jnp.bfloat16) @ half.T  # noqa: E731
    cost = lambda dtype: 1.0 if dtype.itemsize > 2 else 0.5  # noqa: E731
    assert count(f, X, W, cost=cost) == PRODUCT + 2 * 5 * 7 * 5 / 2


def test_what_remat_computes_again_is_counted():
    """x ↦ sin(xW)W has 2 products forward and 4 backward; remat repeats the first product."""
    f = lambda w: jnp.sin(jnp.sin(X @ w) @ w).sum()  # noqa: E731
    assert count(jax.grad(f), W) == 5 * PRODUCT  # X's gradient is not computed
    assert count(jax.grad(jax.checkpoint(f)), W) == 7 * PRODUCT


def test_a_devices_part_counts_for_all():
    abstract = jax.sharding.AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    f = jax.shard_map(
        jnp.matmul, mesh=abstract, in_specs=(spec, PartitionSpec()), out_specs=spec, check_vma=False
    )
    assert count(f, jnp.ones((8, 7)), W) == 2 * 8 * 7 * 7
