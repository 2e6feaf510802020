"""Which part of a parameter each device holds, and how the parts come together.

A device holds a part along `fsdp` and gets the rest of a layer when it is that layer's turn; along `tensor`
each computes its heads and its part of the MLP. RULES say which logical axis of a PARAMS table lies on which.

References:
    Rajbhandari et al. (2020), ZeRO, arXiv:1910.02054.
    Shoeybi et al. (2019), Megatron-LM, arXiv:1909.08053.
"""

import dataclasses
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sea_jax.errors import InputError
from sea_jax.models.params import cast_matrices
from sea_jax.runtime.mesh import put_on_mesh
from sea_jax.types import BATCH_AXES, Config

# Logical axis -> mesh axis; axes that are not here lie whole on every device.
RULES = {"vocab": "tensor", "embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}


def partition_specs(model: Any, shapes: dict[str, Any]) -> dict[str, PartitionSpec]:
    """How every parameter of a model is split, by path.

    Args:
        model: its config has params_table, whose rows name our logical axes.
        shapes: path -> anything with a shape, of every parameter.

    Raises:
        ValueError: if two axes of one parameter lie on the same mesh axis.
    """
    specs = {}
    for row in model.config.params_table:
        axes = [RULES.get(axis) if axis else None for axis in row.axes]
        used = [axis for axis in axes if axis]
        if len(set(used)) < len(used):
            raise ValueError(f"{row.path}: axes {row.axes} lie on {used}, one mesh axis twice")
        assert len(shapes[row.path].shape) == len(axes) + row.stacked, row.path
        specs[row.path] = PartitionSpec(*[None] * row.stacked, *axes)
    return specs


def checked_specs(mesh: Mesh, model: Any, shapes: dict[str, Any]) -> dict[str, PartitionSpec]:
    """`partition_specs`; an InputError names the first parameter that an axis of the mesh does not divide."""
    specs = partition_specs(model, shapes)
    for path, spec in specs.items():
        for size, axis in zip(shapes[path].shape, spec, strict=True):
            if axis and size % mesh.shape[axis]:
                raise InputError(
                    f"config.mesh.{axis}={mesh.shape[axis]}: valid is a divisor of {size}, "
                    f"an axis of parameter {path} {tuple(shapes[path].shape)}"
                )
    return specs


def shard_params(mesh: Mesh, model: Any, params: Any) -> Any:
    """Parameters, each device holding its part.

    Raises:
        InputError: naming the parameter, where an axis of the mesh does not divide it.
    """
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    specs = checked_specs(mesh, model, flat)
    placed = {path: put_on_mesh(x, NamedSharding(mesh, specs[path])) for path, x in flat.items()}
    return unflatten_dict(placed, sep="/")


@dataclasses.dataclass(frozen=True)
class Gather:
    """Brings together along `fsdp`, in the model's precision, what the devices hold parts of.

    Left to itself the compiler may gather the batch instead, and every device computes all of it. The
    gradient goes the same way back: it is reduced, and split again.
    """

    mesh: Mesh
    config: Config  # of a decoder

    def layer(self, params: Any) -> Any:
        """One layer's parameters, where the scan over the layers comes to it."""
        return self._whole(params, "layers/")

    def gather_shared(self, params: Any) -> Any:
        """A model's parameters: embedding, head and final norm together, the stack of layers as it is."""
        rest = {name: tree for name, tree in params.items() if name != "layers"}
        return self._whole(rest, "") | {"layers": params["layers"]}

    def _whole(self, params: Any, prefix: str) -> Any:
        rows = {row.path: row.axes for row in self.config.params_table}

        def gather(path: str, x: Any) -> Any:
            if prefix + path not in rows:  # a reward's head, of a column or two
                return x
            parts = [RULES.get(axis) if axis else None for axis in rows[prefix + path]]
            for axes in (parts, [None if axis in BATCH_AXES else axis for axis in parts]):
                x = jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*axes)))
            return x

        cast = cast_matrices(params, self.config.dtype, prefix)
        flat: dict[str, Any] = flatten_dict(cast, sep="/")
        return unflatten_dict({path: gather(path, x) for path, x in flat.items()}, sep="/")


def with_gather(mesh: Mesh, model: Any) -> Any:
    """The model for computing with parameters that the mesh splits; itself, where they are whole."""
    if mesh.shape["fsdp"] == 1:
        return model
    return model.clone(gather=Gather(mesh, getattr(model.config, "trunk", model.config)))
