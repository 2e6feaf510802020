"""A model's weights in memory shared by two processes: written by the learner, mapped by a sampler.

The memory has no name. It is freed when the last process that has it open ends, however that ends, and two
runs cannot share it by accident. This file needs NumPy only, since the sampler's environment imports it too.
"""

import hashlib
import mmap
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

_ALIGNMENT = 64  # bytes, a cache line


class Manifest(NamedTuple):
    """The contents of the memory, as JSON can represent them.

    Attributes:
        rows: (name, dtype, shape as stored, transposed, offset in bytes) of each tensor.
        digest: of all bytes and rows, see `digest`.
    """

    rows: list[list[Any]]
    digest: str


class SharedWeights:
    """The learner's side: memory for one set of weights, overwritten after each update.

    Attributes:
        fd: the file descriptor that the other process inherits.
        nbytes: size of the weights in bytes; 0 before the first write.
    """

    def __init__(self):
        self.fd = os.memfd_create("sea_jax-weights")
        self.nbytes = 0
        self._memory: mmap.mmap | None = None

    def write(self, views: Iterable[tuple[str, np.ndarray, bool]]) -> Manifest:
        """Copies tensors into the memory, one after the other.

        No process may be reading: the caller has the reader's answer to the previous manifest.

        Args:
            views: (name, array, transposed) of each tensor.

        Returns:
            The manifest of what was written.
        """
        views, rows, end = list(views), [], 0
        for name, array, transposed in views:
            rows.append([name, array.dtype.name, list(array.shape), transposed, end])
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        if end != self.nbytes:
            self._memory = None  # unmapped with its last array
            os.ftruncate(self.fd, end)
            self._memory, self.nbytes = mmap.mmap(self.fd, end), end
        assert self._memory is not None, "no tensors"
        whole = np.frombuffer(self._memory, np.uint8)
        for (_, array, _), (*_, offset) in zip(views, rows, strict=True):
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            np.copyto(whole[offset : offset + flat.size], flat)
        return Manifest(rows, digest(whole, rows))

    def close(self) -> None:
        """Frees the memory once no other process has it open."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd, self._memory = -1, None


def digest(memory: np.ndarray, rows: list[list[Any]]) -> str:
    """Computes a checksum that differs for weights that differ in a bit, a name or a shape.

    It guards against mistakes, not against attackers: sums and exclusive ors read memory at 10 GB/s and more,
    ten times faster than cryptographic hashes.

    Args:
        memory: [nbytes] uint8, all of it.
        rows: see `Manifest`.

    Returns:
        16 hexadecimal digits.
    """
    parts = []
    for name, dtype, shape, transposed, offset in rows:
        size = -(-int(np.prod(shape)) * itemsize(dtype) // 8)
        words = memory[offset : offset + 8 * size].view(np.uint64)
        sums = int(np.add.reduce(words)), int(np.bitwise_xor.reduce(words))
        parts.append(f"{name} {dtype} {shape} {transposed} {offset} {sums}")
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def itemsize(dtype: str) -> int:
    """Returns the bytes of a number; NumPy alone does not know bfloat16."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
