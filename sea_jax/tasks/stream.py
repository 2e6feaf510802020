"""The order in which a run sees its prompts."""

from typing import Any

import grain
import numpy as np


def prompt_rows(num_prompts: int, batch_size: int, seed: int) -> grain.MapDataset:
    """Rows of the train prompts, B a step: line 3 of Alg. 2.

    Indexing is a pure function of (num_prompts, batch_size, seed, step), so the position in the stream is
    the step itself: a run that goes on at step t reads `prompt_rows(...)[t]`, and has nothing else to save.
    Every epoch is a permutation of its own; a batch may reach over two epochs.

    Args:
      num_prompts: how many train prompts there are.
      batch_size: B.
      seed: of the run.

    Returns:
      Endless: [step] is [B] int64 in [0, num_prompts).
    """
    return _shuffled(num_prompts, seed).repeat().batch(batch_size)


def pool_rows(num_prompts: int, pool_size: int, seed: int) -> grain.MapDataset:
    """`prompt_rows` in pools of distinct prompts, of which APL keeps some: each is of one epoch.

    What does not fill a pool at an epoch's end is left out; it is another part of the prompts each time.

    Args:
      num_prompts: how many train prompts there are.
      pool_size: prompts in a pool, at most num_prompts.
      seed: of the run.

    Returns:
      Endless: [step] is [pool_size] int64 in [0, num_prompts), no two equal.
    """
    return _shuffled(num_prompts, seed).batch(pool_size, drop_remainder=True).repeat()


def _shuffled(num_prompts: int, seed: int) -> grain.MapDataset:
    rows: Any = np.arange(num_prompts)
    return grain.MapDataset.source(rows).seed(seed).shuffle()
