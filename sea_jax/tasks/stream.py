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
    rows: Any = np.arange(num_prompts)
    return grain.MapDataset.source(rows).seed(seed).shuffle().repeat().batch(batch_size)
