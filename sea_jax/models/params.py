"""The rows of an architecture's PARAMS table, and the conversions that they describe."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np


class Param(NamedTuple):
    """One parameter, in this package and in Hugging Face's layout.

    Attributes:
        path: our path, '/'-separated; under 'layers/' the leaf has a leading layer axis.
        hf_name: Hugging Face's name, with '{i}' for the layer.
        layout: Hugging Face's shape of it: 'none' as ours; 'flat' with our axes merged into one;
            'dense_out' [merged outputs, input]; 'dense_in' [output, merged inputs].
        axes: our logical axes, without the layer axis; the sharding rules read them.
    """

    path: str
    hf_name: str
    layout: str
    axes: tuple[str | None, ...]

    @property
    def stacked(self) -> bool:
        return self.path.startswith("layers/")

    def hf_names(self, num_layers: int) -> Iterator[str]:
        """Yields the name, or one for each layer of a stacked parameter."""
        if not self.stacked:
            yield self.hf_name
        else:
            yield from (self.hf_name.format(i=i) for i in range(num_layers))

    def hf_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns Hugging Face's shape of one (unstacked) array of ours."""
        if self.layout == "none":
            return shape
        if self.layout == "flat":
            return (int(np.prod(shape)),)
        if self.layout == "dense_out":
            return int(np.prod(shape[1:])), shape[0]
        if self.layout == "dense_in":
            return shape[-1], int(np.prod(shape[:-1]))
        raise ValueError(f"layout={self.layout!r} of {self.path}: unknown")

    def view(self, array: np.ndarray) -> tuple[np.ndarray, bool]:
        """Merges the axes of one (unstacked) array of ours; True if Hugging Face stores the transpose."""
        if self.layout == "dense_out":
            return array.reshape(array.shape[0], -1), True
        if self.layout == "dense_in":
            return array.reshape(-1, array.shape[-1]), True
        return array.reshape(self.hf_shape(array.shape)), False

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        """Converts one (unstacked) array of ours to Hugging Face's layout."""
        view, transposed = self.view(array)
        return np.ascontiguousarray(view.T if transposed else view)

    def from_hf(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Inverts `to_hf`; `shape` is ours, unstacked."""
        if self.layout in ("dense_out", "dense_in"):
            array = array.T
        return array.reshape(shape)


# The modules that compute in the config's dtype; reward heads do not.
_DECODER = ("embed/", "layers/", "head/")


def cast_matrices(params: Any, dtype: Any, prefix: str = "") -> Any:
    """Casts a decoder's matrices and embeddings to the dtype that it computes in.

    Its modules cast them before each use, so outputs stay the same to the bit. Norms and biases, which are
    small, keep their dtype, and norms multiply in f32.

    Args:
        params: a model's parameters, or a subtree of them.
        dtype: of the computation.
        prefix: path of the subtree, with a trailing slash.
    """

    def cast(path: Any, x: Any) -> Any:
        names = prefix + "/".join(key.key for key in path)
        is_matrix = names.startswith(_DECODER) and names.endswith(("kernel", "embedding"))
        return x.astype(dtype) if is_matrix else x

    return jax.tree_util.tree_map_with_path(cast, params)


class View(NamedTuple):
    """A view of one tensor in the layout of this package.

    Attributes:
        name: Hugging Face's.
        array: any shape and float dtype, C-contiguous.
        transposed: True if the tensor of that name is its transpose. The reader transposes it, since it
            copies the tensor anyway.
    """

    name: str
    array: np.ndarray
    transposed: bool
