"""Tasks: prompts, their splits and the tokenizer that policy and task share."""

from sea_jax.tasks.protocol import Task
from sea_jax.tasks.registry import TASKS, RewardFamily, TaskSpec, find, load, same_posts

__all__ = ["TASKS", "RewardFamily", "Task", "TaskSpec", "find", "load", "same_posts"]
