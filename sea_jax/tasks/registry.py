"""The table of tasks: how each is loaded and, if it is embedded, which hidden rewards it has.

A new embedded task is a file of its own and a row here.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sea_jax.errors import InputError
from sea_jax.tasks import mini_tldr, text
from sea_jax.tasks.mini_tldr_rewards import LinearRewards, RegisterRewards
from sea_jax.tasks.protocol import Task
from sea_jax.tasks.tokenizer import load_tokenizer
from sea_jax.types import Config

RewardFn = Callable[[Sequence[str], Sequence[str]], np.ndarray]  # B prompts, B responses -> [B] f32


class RewardFamily(NamedTuple):
    """Random rewards that a backbone is pretrained on, one a seed; by default r(x, y) = basis(x, y) · w.

    Attributes:
        basis: N prompts, N responses -> [N, F] f32, what the rewards depend on.
        draw: seed -> all that distinguishes its reward: w, [F] f32, or an array [..., F].
        combine: rows [N, F] of the basis, S draws [..., F, S] -> rewards [N, S]; the default is linear.
        version: of basis and combine; raise it where they give other rewards to the same texts and draws.
    """

    basis: RewardFn
    draw: Callable[[int], np.ndarray]
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.matmul
    version: int = 1

    def rewards(self, prompts: Sequence[str], responses: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """Returns the rewards [N, S] f32 of N responses, one to each of N prompts, under S seeds."""
        draws = np.stack([self.draw(seed) for seed in seeds], axis=-1)
        return self.combine(self.basis(prompts, responses), draws)


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """Describes a task before it is loaded.

    Attributes:
        load: (config, cache folder) -> the task.
        prompt_length, response_length: tokens; None: config.task has them.
        vocab_size: tokens of the task's own tokenizer; None: the policy brings the tokenizer.
        reward_fn: oracle seed -> hidden reward, for oracle.kind='task'; None: there is none.
        reward_family: for backbone.kind='ranker'; None: there is none.
    """

    load: Callable[[Config, Path], Task]
    prompt_length: int | None = None
    response_length: int | None = None
    vocab_size: int | None = None
    reward_fn: Callable[[int], RewardFn] | None = None
    reward_family: RewardFamily | None = None

    @property
    def is_text(self) -> bool:
        """True for real text, which the policy's tokenizer reads; False for an embedded task."""
        return self.vocab_size is None


def _load_text(config: Config, cache: Path) -> Task:
    del cache  # the hub has a cache of its own
    fields = config.task
    tokenizer = load_tokenizer(config.policy.folder, chat=fields.chat, eos_token=fields.eos_token)
    return text.load(fields, tokenizer)


def _miniature(data: mini_tldr.MiniTldr, rewards: LinearRewards | RegisterRewards, name: str) -> TaskSpec:
    return TaskSpec(
        load=lambda config, cache: dataclasses.replace(data.load(cache), name=name),
        prompt_length=data.prompt_tokens[1],
        response_length=mini_tldr.RESPONSE_LENGTH,
        vocab_size=data.vocab_size,
        reward_fn=rewards.reward_fn,
        reward_family=RewardFamily(rewards.basis, rewards.draw, rewards.combine),
    )


# name -> data and rewards
_MINIATURES = {
    "mini_tldr": (mini_tldr.V1, mini_tldr.REWARDS),
    "mini_tldr_v2": (mini_tldr.V2, mini_tldr.REWARDS_V2),
    "mini_tldr_v2_register": (mini_tldr.V2, mini_tldr.REGISTER_REWARDS_V2),
}
TASKS: dict[str, TaskSpec] = {
    **{name: _miniature(data, rewards, name) for name, (data, rewards) in _MINIATURES.items()},
    **{name: TaskSpec(load=_load_text) for name in text.DEFAULTS},
}


def same_posts(name: str) -> tuple[str, ...]:
    """Returns the tasks whose prompts are those of a task with a family of rewards, itself included."""
    data = _MINIATURES[name][0] if name in _MINIATURES else None
    return tuple(other for other, (posts, _) in _MINIATURES.items() if posts is data)


def find(name: str) -> TaskSpec:
    """Returns a row of TASKS.

    Raises:
        InputError: if there is none of that name.
    """
    if name not in TASKS:
        raise InputError(f"config.task.name={name!r}: valid is one of {tuple(TASKS)}")
    return TASKS[name]


def load(config: Config, cache: Path) -> Task:
    """Loads the task that config.task names.

    Args:
        config: the experiment's config; the tokenizer of real text is that of its policy.folder.
        cache: folder of data and parts that are made once.

    Raises:
        InputError: on an unknown task, or on data or a tokenizer that is absent, broken or too small.
    """
    return find(config.task.name).load(config, cache)
