"""Checks a config before anything expensive runs, and collects all its problems.

Sections check themselves (sea_jax/config); here stand the checks that read tables of other rooms, models'
folders, the machine or the task.
"""

from pathlib import Path

from sea_jax import tasks
from sea_jax.config.checks import Checks, flat, nearest
from sea_jax.config.fields import check_values, declared
from sea_jax.config.overrides import check_overrides
from sea_jax.config.policy import RewardTraining
from sea_jax.config.task import is_text
from sea_jax.credentials import redact
from sea_jax.experiment.base_config import sections_of
from sea_jax.experiment.validate_methods import check_methods, check_methods_on_task, check_names
from sea_jax.experiment.validate_parts import (
    check_oracle,
    check_oracle_seeds,
    check_policy_on_task,
    check_ray,
    check_sampler,
)
from sea_jax.methods import METHODS
from sea_jax.methods import SECTIONS as OF_METHODS
from sea_jax.tasks.protocol import Task
from sea_jax.types import Config

# Sections that single methods may have otherwise; all else is the experiment's.
OVERRIDABLE = ("train", "ensemble", "sea", "watch", *(section.section_name for section in OF_METHODS))


def check_fields(config: Config) -> Checks:
    """Checks every field by itself: that it is there, has the right type and a valid value."""
    checks = Checks(config)
    fields = [field for section in sections_of(config) for field in declared(section)]
    check_values(checks, fields)
    _check_no_credentials(checks)
    _check_unknown(checks, [field.name for field in fields])
    if checks.has("overrides"):
        check_overrides(checks, tuple(METHODS), OVERRIDABLE, fields)
    return checks


def _check_no_credentials(checks: Checks) -> None:
    """Adds a problem for every field that holds a key of the environment or a URL's password."""
    for name, value in flat(checks.config.to_dict()).items():
        if redact(str(value)) != str(value):
            valid = "a value without keys, tokens and passwords, since a config is written to disk"
            checks.require(False, name, f"{valid}; they are in the environment", redact(str(value)))


def _check_unknown(checks: Checks, names: list[str]) -> None:
    """Adds a problem for every field that no section declares."""
    for name, value in flat(checks.config.to_dict(), empty=True).items():
        if name in names or name.split(".")[0] == "overrides":
            continue
        section = name.rpartition(".")[0]
        valid = sorted(n.removeprefix(f"{section}.") for n in names if n.rpartition(".")[0] == section)
        at = f"config.{section}" if section else "config"
        said = f"valid fields of {at} are {', '.join(valid)}" if valid else f"{at} is no section"
        checks.add(f"config.{name}={value!r}: no such field; {said}{nearest(name, names)}", name)


def check(config: Config) -> Checks:
    """Checks all that can be known before the task is loaded; of models only config.json is read."""
    checks = check_fields(config)
    for section in sections_of(config):
        if section is not RewardTraining:  # the command `rm` alone reads it
            section.check(checks)
    check_ray(checks)
    check_sampler(checks)
    check_oracle(checks)
    check_oracle_seeds(checks)
    overridable = [section for section in sections_of(config) if section.section_name in OVERRIDABLE]
    check_methods(checks, overridable)
    return checks


def check_on_task(checks: Checks, task: Task) -> None:
    """Checks that the task has the prompts that are asked of it, and that the policy can hold it."""
    check_methods_on_task(checks, task)
    _check_splits(checks, task)
    check_policy_on_task(checks, task)


def _check_splits(checks: Checks, task: Task) -> None:
    """Requires enough prompts in every split."""
    if checks.sound("eval.split"):
        splits = {"eval.num_prompts": checks.config.eval.split, "eval.num_pairs": "tuning"}
        for name, split in splits.items():
            check_size(checks, task, name, split)
    names = "backbone.kind", "backbone.num_prompts", "backbone.batch_size"
    if checks.sound(*names) and (kind := checks.config.backbone.kind) != "encoder":
        n, most = checks.config.backbone.num_prompts, len(task.prompts["train"])
        least, why = (checks.config.backbone.batch_size, " (its batch_size)") if kind == "ranker" else (1, "")
        checks.require(least <= n <= most, "backbone.num_prompts", f"{least}{why} to {most}")


def check_size(checks: Checks, task: Task, name: str, split: str) -> None:
    """Requires that a split has as many prompts as a field asks for."""
    if checks.sound(name):
        most = len(task.prompts[split])
        checks.require(checks.get(name) <= most, name, f"at most {most} ({split} split)")


def validate_fields(config: Config) -> None:
    """Raises InputError at fields that cannot work, whatever models and task are; for plans and sweeps."""
    checks = check_fields(config)
    check_names(checks)
    checks.raise_problems()


def validate_parts(config: Config) -> None:
    """Raises InputError with all problems that can be known before the task is loaded."""
    check(config).raise_problems()


def validate(config: Config, task: Task) -> None:
    """Raises InputError with all problems of a config on its task."""
    checks = check(config)
    check_on_task(checks, task)
    checks.raise_problems()


def load_task(config: Config, cache: Path) -> Task:
    """Loads the task of a config that has been checked, with it and without.

    The embedded task is loaded even if there are problems, so that those with the task are named too; real
    text is not, as that may take a download.

    Raises:
        InputError: with all problems.
    """
    checks = check(config)
    if not checks.sound("task", "policy.folder") or is_text(config):
        checks.raise_problems()
    task = tasks.load(config, cache / "task")
    check_on_task(checks, task)
    checks.raise_problems()
    return task
