"""Tasks: prompts, their splits and the tokenizer that policy and task share."""

from pathlib import Path

from sea_jax.tasks.protocol import Task
from sea_jax.tasks.text import DEFAULTS as TEXT
from sea_jax.types import Config

NAMES = ("mini_tldr", *TEXT)


def load(config: Config, cache: Path) -> Task:
    """The task that config.task names.

    Args:
        config: the experiment's config; the tokenizer of real text is that of its policy.folder.
        cache: folder of what is made once.

    Raises:
        InputError: on data or a tokenizer that is absent, spoilt or too small.
    """
    from sea_jax.tasks import mini_tldr, text
    from sea_jax.tasks.tokenizer import load_tokenizer

    if config.task.name == "mini_tldr":
        return mini_tldr.load(cache)
    tokenizer = load_tokenizer(config.policy.folder, chat=config.task.chat, eos_token=config.task.eos_token)
    return text.load(config.task, tokenizer)
