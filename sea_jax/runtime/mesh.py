"""The devices of a run, and which part of an array each of them holds."""

import contextlib
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sea_jax.errors import InputError

DATA = "data"  # the axis that prompts are split along


def make_mesh(data: int = 1) -> Mesh:
    """The first `data` devices, in one axis.

    A CPU is one device unless JAX is told otherwise before its first computation, as this does. Two of two
    cores each work on their half of a batch, where one device's threads would meet at every operation.

    Args:
        data: how many devices share a batch.

    Raises:
        InputError: if there are fewer.
    """
    if data > 1:
        with contextlib.suppress(RuntimeError):  # JAX has begun: then with the devices it has
            jax.config.update("jax_num_cpu_devices", data)
    devices = jax.devices()
    if data > len(devices):
        raise InputError(
            f"config.mesh.data={data}: valid is 1 to {len(devices)}, the {devices[0].platform} devices here"
        )
    return jax.make_mesh((data,), (DATA,), axis_types=(AxisType.Auto,), devices=devices[:data])


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The whole of every array on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split(mesh: Mesh, tree: Any) -> Any:
    """Every array split along its first axis, a part a device; whole on each where it does not divide."""

    def put(x: Any) -> jax.Array:
        spec = PartitionSpec(DATA) if x.shape[0] % mesh.size == 0 else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(put, tree)
