"""Records in a work directory what its runs are made from, so that a run never goes on with another model.

A config names a policy by its folder, whose content can change. `inputs.json` holds hashes of the contents.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from sea_jax.config.task import is_text
from sea_jax.errors import InputError
from sea_jax.experiment import assets
from sea_jax.pretraining import content
from sea_jax.pretraining.policy import policy_recipe
from sea_jax.runtime.mesh import bytes_from_main
from sea_jax.tasks.protocol import Task
from sea_jax.types import Config

FILE = "inputs.json"
_BEGUN = ("runs", "checkpoints", "labels.sqlite")  # what a work directory has where something was begun


def of_run(config: Config, task: Task) -> dict[str, str]:
    """Returns the contents that the runs of a config depend on, by config field or kind of cached part."""
    found = _named(config, labels=True)
    if config.backbone.kind == "encoder" and assets.learns_ensemble(config):
        found["encoder.folder"] = content.of_model(config.encoder.folder)
    found["task.name"] = _of_task(task)
    if not config.policy.folder:
        found["sft"] = policy_recipe(config, task).name
    return found | {recipe.kind: recipe.name for recipe in assets.recipes(config, task)}


def of_sft(config: Config, task: Task) -> dict[str, str]:
    """Returns the contents that the command `sft` depends on."""
    return _named(config, labels=False) | {"task.name": _of_task(task)}


def of_rm(config: Config, task: Task | None) -> dict[str, str]:
    """Returns the contents that the command `rm` depends on; its task is None with a preference set."""
    if task is None:
        return _named(config, labels=False)
    return _named(config, labels=True) | {
        "task.name": _of_task(task),
        "sft": policy_recipe(config, task).name,
    }


def _named(config: Config, labels: bool) -> dict[str, str]:
    """Returns the contents of policy, data files and, where labels are bought, a reward model."""
    found = {}
    if config.policy.folder:
        found["policy.folder"] = content.of_model(config.policy.folder)
    if labels and config.oracle.kind == "reward_model":
        found["oracle.folder"] = content.of_model(config.oracle.folder)
    if is_text(config) and config.task.path:
        found["task.path"] = content.of_data(config.task.path)
    return found


def _of_task(task: Task) -> str:
    return content.of_value([task.fingerprint, task.prompts, task.references])


def claim(config: Config, folder: Path, contents: Mapping[str, str]) -> None:
    """Writes the contents into a work directory; refuses one that something else was begun from.

    Args:
        config: of this call.
        folder: the work directory.
        contents: of `of_run`, `of_sft` or `of_rm`.

    Raises:
        InputError: naming the first content that has changed since a run or a training was begun.
    """
    bytes_from_main(lambda: _claim(config, folder, contents))


def _claim(config: Config, folder: Path, contents: Mapping[str, str]) -> bytes:
    file = folder / FILE
    before = _read(file) if any((folder / name).exists() for name in _BEGUN) else {}
    for name, found in contents.items():
        if before.get(name, found) != found:
            raise InputError(f"workdir {folder}: {_changed(config, name, before[name], found)}")
    part = file.with_name(f"{FILE}.part")
    part.write_text(json.dumps(before | dict(contents), indent=2) + "\n")
    part.replace(file)
    return b""


def _changed(config: Config, name: str, before: str, found: str) -> str:
    """Says that a content has changed, and what is valid."""
    begun, elsewhere = "has changed since its runs were begun", "or another --workdir"
    if "." not in name:
        return f"its runs were begun with part {before}, not {found}; valid: the sea_jax of then, {elsewhere}"
    section, _, field = name.partition(".")
    return (
        f"the content of config.{name}={config[section][field]!r} {begun}; valid: that of then, {elsewhere}"
    )


def _read(file: Path) -> dict[str, str]:
    """Returns the recorded contents; {} for a work directory of an earlier version, which has none."""
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{file}: no record of contents; valid: delete it, or another --workdir")
    return found
