"""Makes meshes of devices and moves arrays between host and mesh.

A mesh has three axes: batches are split along `data` and `fsdp`, parameters along `fsdp` and `tensor` by the
rules of `runtime/sharding.py`.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sea_jax.errors import InputError, ServiceError, StoppedError
from sea_jax.types import BATCH_AXES

AXES = ("data", "fsdp", "tensor")


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, extra: int = 0) -> Mesh:
    """Makes a mesh of the first data · fsdp · tensor devices.

    Splits the CPU into as many JAX devices as are asked for, if JAX has not been initialised yet. Two devices
    on two cores each compute half of a batch; one device's threads would synchronise at every operation.

    Args:
        data, fsdp, tensor: sizes of the axes.
        extra: further devices, which `sampling_mesh` takes.

    Raises:
        InputError: if there are fewer devices.
    """
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    count = math.prod(sizes.values())
    if count + extra > 1:
        with contextlib.suppress(RuntimeError):  # JAX is initialised: its devices stay as they are
            jax.config.update("jax_num_cpu_devices", count + extra)
    devices = jax.devices()
    if count + extra > len(devices):
        given = ", ".join(f"config.mesh.{axis}={size}" for axis, size in sizes.items())
        given += f", config.sampler.devices={extra}" if extra else ""
        valid = "a product of 1" if not extra else f"a product, and {extra} more, of at least {extra + 1}"
        kind = devices[0].platform
        raise InputError(f"{given}: valid is {valid} to {len(devices)}, the {kind} devices here")
    return _mesh(devices[:count], *sizes.values())


def sampling_mesh(mesh: Mesh, count: int) -> Mesh:
    """Makes a mesh of the next `count` devices, which share batches and hold whole parameters."""
    return _mesh(jax.devices()[mesh.size : mesh.size + count], count, 1, 1)


def _mesh(devices: Sequence[Any], *sizes: int) -> Mesh:
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_shards(mesh: Mesh) -> int:
    """Returns the number of parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Copies every array to every device."""
    return jax.tree.map(lambda x: put_on_mesh(x, NamedSharding(mesh, PartitionSpec())), tree)


def ensure_on_mesh(mesh: Mesh, tree: Any) -> Any:
    """Returns the tree with the arrays that are not on the mesh replicated; the others stay as they are."""
    on_mesh = lambda x: isinstance(x.sharding, NamedSharding) and x.sharding.mesh == mesh  # noqa: E731
    return jax.tree.map(lambda x: x if on_mesh(x) else replicate(mesh, x), tree)


def shard_batch(mesh: Mesh, tree: Any) -> Any:
    """Splits every array along its first axis; replicates those whose first axis the shards do not divide."""

    def put(x: Any) -> jax.Array:
        spec = PartitionSpec(BATCH_AXES) if x.shape[0] % batch_shards(mesh) == 0 else PartitionSpec()
        return put_on_mesh(x, NamedSharding(mesh, spec))

    return jax.tree.map(put, tree)


def put_on_mesh(x: Any, sharding: NamedSharding) -> jax.Array:
    """Puts an array on the mesh; in a run on several hosts every process passes the same whole array."""
    if sharding.is_fully_addressable or not isinstance(x, jax.Array):
        return jax.device_put(x, sharding)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put_on_mesh(jax.random.key_data(x), sharding))
    if not x.is_fully_addressable:  # on the mesh already: the devices exchange the parts
        return jax.jit(lambda x: x, out_shardings=sharding)(x)
    return jax.device_put(np.asarray(x), sharding)


def to_host(tree: Any) -> Any:
    """Copies whole arrays to NumPy on every process; all processes must call it with the same arrays."""

    def get(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return np.asarray(multihost_utils.process_allgather(x, tiled=True))
        return np.asarray(x)

    return jax.tree.map(get, tree)


def is_main() -> bool:
    """Returns True on the process that writes files, logs and asks the oracle.

    A single process does not ask JAX, which would fix the number of devices before `make_mesh` sets it.
    """
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def broadcast_from_main(compute: Callable[[], Any], like: Any) -> Any:
    """Runs a function on the main process and returns its arrays on all processes.

    For side effects that must happen once, such as asking an oracle. The other processes wait.

    Args:
        compute: returns a tree of host arrays.
        like: a tree of the same structure, whose leaves have the arrays' shapes and dtypes.

    Raises:
        ServiceError: on the other processes, if the function raised; the main process raises its own error.
        StoppedError: on all processes, if that is what the function raised.
    """
    if not jax.distributed.is_initialized():
        return compute()
    leaves, tree = jax.tree.flatten(like)
    sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves]
    # As 32-bit words: JAX would round float64, and sums bytes in a wider type.
    failure, words = None, np.zeros(-(-sum(sizes) // 4) + 1, np.uint32)
    if is_main():
        try:
            found = zip(tree.flatten_up_to(compute()), leaves, strict=True)
            data = b"".join(_bytes(array, leaf) for array, leaf in found)
            words[1:].view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
        except Exception as error:  # raised below, once the other processes know
            failure, words[0] = error, 1 + isinstance(error, StoppedError)
    words = np.asarray(multihost_utils.broadcast_one_to_all(words, is_source=is_main()))
    if failure is not None:
        raise failure
    if words[0] == 1:
        raise ServiceError("the main process failed; its log says why")
    if words[0]:
        raise StoppedError("the main process was stopped; the same command on all hosts goes on")
    data, ends = words[1:].astype(np.uint32).view(np.uint8), np.cumsum([0, *sizes])
    parts = [data[start : start + size] for start, size in zip(ends[:-1], sizes, strict=True)]
    arrays = [part.view(leaf.dtype).reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(tree, arrays)


def _bytes(array: Any, like: Any) -> bytes:
    array = np.asarray(array, like.dtype)
    if array.shape != like.shape:
        raise ValueError(f"an array of shape {array.shape}, must be {like.shape}")
    return array.tobytes()


def bytes_from_main(compute: Callable[[], bytes]) -> bytes:
    """Runs a function on the main process and returns its bytes on all processes."""
    if not jax.distributed.is_initialized():
        return compute()
    data = compute() if is_main() else b""
    size = int(broadcast_from_main(lambda: np.int64(len(data)), np.int64(0)))
    array = broadcast_from_main(lambda: np.frombuffer(data, np.uint8), np.zeros(size, np.uint8))
    return np.asarray(array).tobytes()


def from_all(array: np.ndarray) -> np.ndarray:
    """Returns the host array of every process: [processes, ...], the same on all of them."""
    if not jax.distributed.is_initialized():
        return array[None]
    return np.asarray(multihost_utils.process_allgather(array))


def wait_for_all(what: str) -> None:
    """Waits until every process has reached this barrier, named `what`."""
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices(what)
