"""Splits a batch into the passes of a scan over micro-batches, and merges their outputs.

`optax.microbatching` does the same for supervised training (`pretraining/fit.py`). The policy's update also
needs the log-probs of every row, which a scan stacks per pass.
"""

from typing import Any

import jax


def split_passes(tree: Any, size: int) -> Any:
    """Splits arrays [B, ...] into passes [B / size, size, ...].

    Row i goes to pass i mod (B / size), so that each pass takes rows from every shard of the batch axis.
    """
    return jax.tree.map(lambda x: x.reshape(size, len(x) // size, *x.shape[1:]).swapaxes(0, 1), tree)


def merge_passes(tree: Any) -> Any:
    """Inverts `split_passes`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)
