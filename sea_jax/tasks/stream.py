"""Orders the prompts of a run."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import grain


def prompt_rows(num_prompts: int, batch_size: int, seed: int) -> "grain.MapDataset":
    """Returns the rows of train prompts, B per step (Alg. 2, line 3).

    Indexing is a pure function of (num_prompts, batch_size, seed, step), so the position in the stream is the
    step itself: a run that resumes at step t reads `prompt_rows(...)[t]` and saves nothing else. Every epoch
    is a new permutation; a batch may reach over two epochs.

    Args:
      num_prompts: how many train prompts there are.
      batch_size: B.
      seed: of the run.

    Returns:
      Endless: [step] is [B] int64 in [0, num_prompts).
    """
    return _shuffled(num_prompts, seed).repeat().batch(batch_size)


def pool_rows(num_prompts: int, pool_size: int, seed: int) -> "grain.MapDataset":
    """Returns pools of distinct rows, of which APL keeps some; each pool lies within one epoch.

    Rows that do not fill a pool at an epoch's end are left out, others in each epoch.

    Args:
      num_prompts: how many train prompts there are.
      pool_size: prompts in a pool, at most num_prompts.
      seed: of the run.

    Returns:
      Endless: [step] is [pool_size] int64 in [0, num_prompts), no two equal.
    """
    return _shuffled(num_prompts, seed).batch(pool_size, drop_remainder=True).repeat()


def _shuffled(num_prompts: int, seed: int) -> "grain.MapDataset":
    import grain  # takes most of a second, which commands that only check or print a config need not wait

    rows: Any = np.arange(num_prompts)
    return grain.MapDataset.source(rows).seed(seed).shuffle()
