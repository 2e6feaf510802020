"""Batches of one shape over a number of rows that their size need not divide."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class PaddedBatch(NamedTuple):
    """Consecutive rows, filled up to the batch size."""

    start: int  # the first row
    rows: np.ndarray  # [B] int64
    size: int  # rows at the front that count; the rest repeat others


def padded_batches(num_rows: int, batch_size: int) -> Iterator[PaddedBatch]:
    """Yields all rows in order; the last batch is filled up with the first rows, so that one shape compiles.

    Args:
        num_rows: N ≥ 1.
        batch_size: B.
    """
    for start in range(0, num_rows, batch_size):
        rows = np.arange(start, start + batch_size) % num_rows
        yield PaddedBatch(start, rows, min(batch_size, num_rows - start))
