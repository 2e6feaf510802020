"""Tasks: prompts, their splits and the tokenizer that policy and task share."""

from pathlib import Path

from sea_jax.tasks.protocol import Task

NAMES = ("mini_tldr",)


def load(config, cache: Path) -> Task:
    """The task that config.task names.

    Args:
        config: the experiment's config.
        cache: folder of what is made once.
    """
    from sea_jax.tasks import mini_tldr

    return mini_tldr.load(cache)
