"""Bytes of collectives in programs compiled for eight devices equal hand calculations."""

import helpers
import pytest

from launch import hlo


def test_bytes_of_compiled_programs():
    """The check runs in a separate process, since JAX fixes the number of devices at its start."""
    assert "bytes agree" in helpers.in_own_process(__file__, devices=8)


def main():
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, PartitionSpec

    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    part = 16 * 4  # bytes of a device's part of x

    def traffic(f):
        spec = PartitionSpec("b")
        g = jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        text = jax.jit(g).lower(jnp.ones((64,), jnp.float32)).compile().as_text()
        return hlo.collectives(text, 8)

    def only(found, kind, sent, count=1):
        assert found.sent == dict.fromkeys(hlo.KINDS, 0.0) | {kind: sent}, found
        assert found.count[kind] == count, found

    gather = lambda x: jax.lax.all_gather(x, "b")  # noqa: E731
    only(traffic(lambda x: gather(x).sum(0)), "all-gather", 3 * part)
    only(traffic(lambda x: jax.lax.psum(x, "b")), "all-reduce", 2 * part * 3 / 4)
    only(traffic(lambda x: jax.lax.psum(x, ("a", "b"))), "all-reduce", 2 * part * 7 / 8)
    only(traffic(lambda x: jax.lax.psum_scatter(x, "b", tiled=True)), "reduce-scatter", part * 3 / 4)
    only(traffic(lambda x: jax.lax.ppermute(x, "b", [(0, 1), (1, 0)])), "collective-permute", part)
    only(
        traffic(lambda x: jax.lax.all_to_all(x.reshape(4, 4), "b", 0, 0).reshape(-1)),
        "all-to-all",
        part * 3 / 4,
    )

    def turns(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(gather(x)).sum(0), None), x, None, length=5)[0]

    only(traffic(turns), "all-gather", 5 * 3 * part, count=5)

    def nested(x):
        return jax.lax.scan(lambda x, _: (turns(x), None), x, None, length=3)[0]

    only(traffic(nested), "all-gather", 15 * 3 * part, count=15)
    assert not traffic(nested).bounded

    def until(x):
        """Runs a loop of at most six iterations; their number depends on x."""
        go = lambda s: (s[0] < 6) & (s[1].sum() < 1e9)  # noqa: E731
        return jax.lax.while_loop(go, lambda s: (s[0] + 1, jnp.sin(gather(s[1])).sum(0)), (0, x))[1]

    found = traffic(until)
    assert found.bounded and found.sent["all-gather"] == 6 * 3 * part, found
    print("bytes agree")


def test_shapes():
    assert hlo.num_bytes("(f32[8,2]{1,0}, bf16[3]{0}, pred[], s4[4])") == 64 + 6 + 1 + 2
    assert hlo.num_bytes("f8e4m3fn[10]") == 10


@pytest.mark.parametrize(
    ("rest", "size"),
    [
        (", replica_groups={{0,1,2,3},{4,5,6,7}}, x", 4),
        (", replica_groups=[2,4]<=[8]", 4),
        (", replica_groups={}, x", 8),
        (", replica_groups=mesh['x'=4,'y'=2] {'x'}", 4),
        (", replica_groups=mesh['x'=4,'y'=2] {'x','y'}", 8),
        (", replica_groups=mesh['x'=8] {'x':(1)2}", 2),
    ],
)
def test_groups(rest, size):
    assert hlo._group_size(rest, 8) == size


def test_groups_in_an_unknown_notation_are_an_error():
    with pytest.raises(ValueError, match="groups of a collective"):
        hlo._group_size("replica_groups=@new", 8)


if __name__ == "__main__":
    main()
