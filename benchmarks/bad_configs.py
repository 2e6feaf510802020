"""Makes bad configs of the base config and the config files, and judges what their checks say."""

import importlib
import math
import random
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from benchmarks.damage import ODD_NUMBERS, ODD_TEXTS, spoil_value
from sea_jax.config.fields import Field, declared
from sea_jax.errors import InputError
from sea_jax.experiment import finetune, reward_training, validate
from sea_jax.experiment.base_config import base_config, sections_of
from sea_jax.experiment.validate_parts import check_policy_on_task
from sea_jax.methods import METHODS
from sea_jax.tasks.protocol import Task

OPTIONS = {
    "base": (), "quickstart": (), "sample_efficiency": (), "fewer_labels": (), "smollm2": ("critics", "sentiment"),
    "tldr": ("size=1b", "size=2.8b,dap=ipo", "method=posterior_rl"), "ultrafeedback": (),
}  # fmt: skip
# Values that are valid alone and contradict each other; the problem must name one of the fields.
CONTRADICTIONS: tuple[dict[str, Any], ...] = (
    {"train.batch_size": 6, "train.micro_batch": 4},
    {"train.batch_size": 4, "sampler.micro_batch": 3},
    {"train.batch_size": 4, "mesh.data": 3},
    {"train.batch_size": 2, "ray.actors": 3},
    {"train.batch_size": 30_000, "train.micro_batch": 0, "methods": ("apl",)},
    {"sampler.devices": 2, "ray.actors": 2, "train.batch_size": 4},
    {"train.per_token": True, "train.dap": "dpo"},
    {"methods": ("xpo",), "train.dap": "ipo"},
    {"methods": ("sea", "sea")},
    {"methods": ("passive",), "eval.best_of": 4},
    {"methods": ("sea",), "sea.num_responses": 1},
    {"methods": ("sea",), "ensemble.capacity": 1, "train.batch_size": 8},
    {"methods": ("sea",), "sea.gamma": 1e-9},
    {"ensemble.kind": "linear", "ensemble.prior_scale": 0.0},
    {"prior_heads.num_heads": 300, "backbone.num_rewards": 256},
    {"policy.width": 100, "policy.num_heads": 3},
    {"policy.folder": "", "policy.num_layers": 2, "policy.trained_layers": 3},
    {"backbone.kind": "encoder", "encoder.folder": ""},
    {"encoder.markers": ("<|source|>",)},
    {"sft.prompt_weight": 0.1, "sft.token_chunk": 8},
    {"oracle.kind": "function", "oracle.function": "no:such"},
    {"oracle.kind": "task", "oracle.function": "rules.py:score"},
    {"oracle.kind": "judge", "oracle.base_url": "", "oracle.model": ""},
    {"oracle.kind": "remote", "oracle.url": "127.0.0.1:8000"},
    {"oracle.kind": "reward_model", "oracle.folder": ""},
    {"oracle.kind": "remote", "ray.oracles": 2},
    {"seed": 2**31 - 1, "num_seeds": 2},
    {"task.oracle_seed": 2**31 - 1, "num_seeds": 2},
    {"oracle.kind": "judge", "oracle.base_url": "http://a", "oracle.model": "m", "methods": ("ceiling",)},
)  # fmt: skip


class BadConfig(NamedTuple):
    """A config, and what was done to it.

    Attributes:
        config: with bad values.
        names: the fields, as 'train.beta'.
        certain: whether it is invalid for certain; else its values are odd, and checks may accept them.
        how: the kind of mistake, for the table.
        source: the config file.
        command: that reads it: 'sft', 'rm', or '' for the experiment.
    """

    config: Any
    names: tuple[str, ...]
    certain: bool
    how: str
    source: str
    command: str


class Mistake(NamedTuple):
    """One mistake; the fields as in `BadConfig`."""

    names: tuple[str, ...]
    certain: bool
    how: str


def load(name: str, option: str = "") -> Any:
    """Returns the base config, or that of a file of configs/."""
    if name == "base":
        return base_config()
    get_config = importlib.import_module(f"configs.{name}").get_config
    return get_config(option) if option else get_config()


def use_folders(config: Any, folders: dict[str, str]) -> None:
    """Replaces the models and data of a config by small ones that are there."""
    for name, folder in folders.items():
        section, _, field = name.partition(".")
        if field in config[section] and (config[section][field] or name == "task.path"):
            config[section][field] = folder
    if folders and config.policy.folder:
        config.policy.trained_layers, config.rm.length = min(config.policy.trained_layers, 1), 64


def draw(rng: random.Random, folders: dict[str, str] | None = None) -> BadConfig:
    """Draws a config with one to three mistakes.

    Args:
        rng: of all draws.
        folders: field -> folder of a small model or data set that is there; None: as the files have them.
    """
    source = rng.choice(sorted(OPTIONS))
    config = load(source, rng.choice(OPTIONS[source] or ("",)))
    use_folders(config, folders or {})
    mistakes = [rng.choice(_MISTAKES)(rng, config) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    names = tuple(name for mistake in mistakes for name in mistake.names)
    command, last = rng.choice(("", "", "", "sft", "rm")), mistakes[-1]  # which may mend an earlier one
    certain = last.certain and not (
        command and last.how == "unknown name"
    )  # a command does not read them all
    return BadConfig(config, names, certain, " + ".join(sorted({m.how for m in mistakes})), source, command)


def _fields(config: Any) -> list[Field]:
    return [field for section in sections_of(config) for field in declared(section)]


def put(config: Any, name: str, value: Any) -> None:
    """Sets a field of a config to a value of any type, in a section that is made if there is none."""
    *sections, field = name.split(".")
    node = config
    for section in sections:
        if section not in node or not isinstance(node[section], ConfigDict):
            put(node, section, ConfigDict())
        node = node[section]
    if field in node:
        del node[field]  # which has a type
    node[field] = value


def _wrong_type(rng: random.Random, config: Any) -> Mistake:
    field, value = rng.choice(_fields(config)), spoil_value(rng)
    valid = not isinstance(value, dict) and _is_kind(field.kind, value)
    put(config, field.name, value)
    return Mistake((field.name,), not valid, "another type")


def _is_kind(kind: Any, value: Any) -> bool:
    if items := typing.get_args(kind):
        return isinstance(value, list) and all(_is_kind(items[0], item) for item in value)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def _out_of_range(rng: random.Random, config: Any) -> Mistake:
    fields = [f for f in _fields(config) if f.kind in (int, float) or f.rule.one_of]
    field = rng.choice(fields)
    rule, values = field.rule, []
    if rule.one_of:
        values.append("unknown")
    if rule.at_least is not None:
        values.append(field.kind(rule.at_least - 1))
    if rule.above is not None:
        values.append(field.kind(rule.above))
    if rule.at_most is not None:
        values.append(field.kind(rule.at_most + 1))
    values += [10**30, 2**31] if field.kind is int else [1e39, -1e300, 1e-45, math.nan, -math.inf]
    value = rng.choice(values)
    put(config, field.name, value)
    return Mistake((field.name,), True, "out of range")


def _odd(rng: random.Random, config: Any) -> Mistake:
    field = rng.choice(_fields(config))
    item = (typing.get_args(field.kind) or (field.kind,))[0]
    value: Any = rng.choice(ODD_TEXTS) if item is str else rng.choice(ODD_NUMBERS)
    if typing.get_args(field.kind):
        value = tuple([value] * rng.randrange(3))
    put(config, field.name, value)
    never = any(part in repr(value) for part in ("\\x00", "\\ud83d")) or (
        item is float and "nan" in repr(value)
    )
    return Mistake((field.name,), never, "odd value")


def _no_such_name(rng: random.Random, config: Any) -> Mistake:
    name = rng.choice(("methods", "task.name", "sampler.kind", "oracle.labels", "backbone.family"))
    value = rng.choice(("unknown", "SEA", "sea ", "jax2"))
    put(config, name, (value,) if name == "methods" else value)
    return Mistake((name,), True, "unknown name")


def _unknown_field(rng: random.Random, config: Any) -> Mistake:
    sections = [name for name, value in config.items() if isinstance(value, ConfigDict)]
    name = rng.choice(
        (f"{rng.choice(sections)}.lerning_rate", "batch_size", "trian.beta", "overrides.sea.train.lr")
    )
    value = spoil_value(rng)
    put(config, name, value)
    return Mistake((name,), value not in ({}, {"": {}}) or not name.startswith("overrides"), "unknown field")


def _absent(rng: random.Random, config: Any) -> Mistake:
    name = rng.choice([field.name for field in _fields(config)])
    section, _, field = name.rpartition(".")
    if section and rng.random() < 0.2 and section in config:
        del config[section]
        return Mistake((section,), True, "absent")
    node = config[section] if section and section in config else config
    if isinstance(node, ConfigDict) and field in node:
        del node[field]
    return Mistake((name,), True, "absent")


def _section(rng: random.Random, config: Any) -> Mistake:
    name = rng.choice(sorted({field.name.partition(".")[0] for field in _fields(config)} | {"overrides"}))
    section = isinstance(config.get(name), ConfigDict)
    put(config, name, rng.choice((None, 3, "text", [], (), [{}])))
    return Mistake((name,), section, "no section")


def _override(rng: random.Random, config: Any) -> Mistake:
    method = rng.choice((*sorted(METHODS), "unknown"))
    field = rng.choice(_fields(config))
    name = rng.choice(
        (f"overrides.{method}", f"overrides.{method}.train", f"overrides.{method}.{field.name}")
    )
    value = spoil_value(rng)
    put(config, name, value)
    return Mistake((name, f"overrides.{method}", field.name), False, "override")


def _contradiction(rng: random.Random, config: Any) -> Mistake:
    fields = rng.choice(CONTRADICTIONS)
    for name, value in fields.items():
        put(config, name, value)
    # With another task or policy some of them are no contradiction.
    return Mistake(tuple(fields), False, "contradiction")


_MISTAKES: tuple[Callable[[random.Random, Any], Mistake], ...] = (
    _wrong_type, _wrong_type, _out_of_range, _out_of_range, _odd, _no_such_name, _unknown_field, _absent,
    _section, _override, _contradiction,
)  # fmt: skip


def check(bad: BadConfig, task: Task | None) -> None:
    """Checks a config as `sea_jax.main` does before it trains; loads no model.

    Args:
        bad: the config.
        task: the embedded one; None: what is checked on the task is left out.

    Raises:
        InputError: on a mistake.
    """
    before, on_task = {
        "": (validate.check, validate.check_on_task),
        "sft": (finetune.check, check_policy_on_task),
        "rm": (reward_training.check, reward_training.check_embedded),
    }[bad.command]
    checks = before(bad.config)
    if task is not None and checks.sound("task", "policy.folder") and bad.config.task.name == task.name:
        on_task(checks, task)
    checks.raise_problems()


def named(error: InputError, bad: BadConfig) -> bool:
    """Returns whether a problem names one of the bad fields."""
    shown = [f"config.{name}" for name in bad.names] + [name for name in bad.names if "." in name]
    shown += [f"config.{name.partition('.')[0]}=" for name in bad.names]  # a whole section, with all values
    if "contradiction" in bad.how:  # it may be another one, with the fields of the config file
        shown.append("config.")
    return any(name in line for line in error.problems for name in shown)
