"""Plans a sweep: turns a command into units and their commands, and checks it before any unit starts.

This module does not depend on the launcher; launch/xm_sweep.py starts the units through XManager.
"""

import json
import re
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from sea_jax.config.flags import config_mistake
from sea_jax.errors import InputError
from sea_jax.experiment.commands import COMMANDS
from sea_jax.experiment.validate import validate_fields
from sea_jax.experiment.workdir import difference, require_writable
from sea_jax.methods import METHODS
from sea_jax.report import sweep as sweeps
from sea_jax.report.sweep import Sweep, Unit
from sea_jax.types import Config

# Fields that a sweep sets for each unit, and what to give instead. A sweep also derives the seed and the
# oracle seed, which may be given: the given values are those of replicate 0.
SET_BY_SWEEP = {
    "methods": "--methods",
    "num_seeds": "--seeds",
    "progress": "to leave it out, since units write logs",
}


def overrides(argv: list[str]) -> tuple[str, ...]:
    """Returns the --config.<field>=<value> arguments of a command line unchanged.

    Raises:
        InputError: the sweep itself sets one of the fields.
    """
    found = []
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := re.match(r"--?(no)?config\.([\w.]+)", arg):
            if match[2] in SET_BY_SWEEP:
                raise InputError(f"--config.{match[2]}: a sweep sets it; valid: {SET_BY_SWEEP[match[2]]}")
            found.append(arg if "=" in arg or match[1] else f"{arg}={following}")
    return tuple(found)


def plan(
    file: str,
    given: tuple[str, ...],
    methods: list[str] | None,
    seeds: int | None,
    sizes: list[str] | None,
    root: str | None,
) -> Sweep:
    """Returns the sweep that a command describes.

    Args:
        file: config file with its options, such as 'configs/tldr.py:size=1b,dap=ipo'.
        given: the result of `overrides`.
        methods, seeds, sizes, root: flags of launch/xm_sweep.py; None where they were left out.

    Raises:
        InputError: a flag or field is invalid; the message names the first one.
    """
    files = _files(file, sizes)
    configs = {size: read_config(name, given) for size, name in files.items()}
    first = next(iter(configs.values()))
    chosen = tuple(dict.fromkeys(first["methods"] if methods is None else methods))
    wrong = [method for method in chosen if method not in METHODS]
    if wrong or not chosen:
        alone = f"; {wrong[0]} is a command of sea_jax.main" if set(wrong) & {*COMMANDS} else ""
        raise InputError(f"--methods={','.join(wrong)}: valid are {', '.join(METHODS)}{alone}")
    count: int = first["num_seeds"] if seeds is None else seeds
    if count < 1:
        raise InputError(f"--seeds={count}: valid is at least 1")
    folder = Path(root or f"runs/sweep-{_stem(file)}")
    return Sweep(folder, files, given, configs, chosen, tuple(range(count)))


def _files(file: str, sizes: list[str] | None) -> dict[str, str]:
    """Returns size -> config file with options; a config without sizes has one size, named after its file."""
    name, _, options = file.partition(":")
    parts = [part for part in options.split(",") if part]
    if sizes is None:
        own = [part.removeprefix("size=") for part in parts if part.startswith("size=")]
        return {own[-1] if own else _stem(file): file}
    if not sizes or not all(re.fullmatch(r"\w[\w.-]*", size) for size in sizes):
        raise InputError(f"--sizes={','.join(sizes)}: valid are values of the option size of {name}")
    rest = [part for part in parts if not part.startswith("size=")]
    return {size: f"{name}:{','.join([f'size={size}', *rest])}" for size in sizes}


def _stem(file: str) -> str:
    return Path(file.partition(":")[0]).stem


def read_config(file: str, given: tuple[str, ...]) -> dict[str, Any]:
    """Reads a config with the parser and the arguments of a unit.

    Returns:
        The config as parsed JSON.

    Raises:
        InputError: the config lacks an option or a field, or a name is unknown.
    """
    arguments = [f"--config={file}", *given]
    if wrong := config_mistake(arguments):
        raise InputError(wrong)
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    values(["", *arguments])
    config: Config = holder.value
    validate_fields(config)
    return json.loads(config.to_json())


def claim(sweep: Sweep) -> Sweep:
    """Merges a sweep with the one in its root and writes it there; refuses the root of another sweep.

    Returns:
        The sweep with the sizes, methods and replicates of earlier calls.

    Raises:
        InputError: the root holds another sweep; the message names the first field that differs.
    """
    root = sweep.root
    require_writable("--root", root)
    if (root / "config.json").exists():
        raise InputError(f"--root={root}: holds the runs of one command, no sweep; valid: another --root")
    old = sweeps.read(root) if (root / sweeps.FILE).exists() else sweep
    for size, theirs in old.configs.items():
        if found := difference(_config_of(sweep, size), theirs):
            name, here, there = found
            raise InputError(
                f"--root={root}: holds a sweep of {size} with {name}={there!r}, not {here!r}; "
                "valid: that config, or another --root"
            )
    merged = Sweep(
        root, old.files | sweep.files, sweep.overrides, old.configs | sweep.configs,
        tuple(dict.fromkeys((*old.methods, *sweep.methods))),
        tuple(sorted({*old.replicates, *sweep.replicates})),
    )  # fmt: skip
    merged.write()
    return merged


def _config_of(sweep: Sweep, size: str) -> dict[str, Any]:
    """Returns this command's config for any size, requested or not; {} if the size is invalid."""
    if size in sweep.configs:
        return sweep.configs[size]
    try:
        return read_config(_files(next(iter(sweep.files.values())), [size])[size], sweep.overrides)
    except InputError:
        return {}


def unit_arguments(sweep: Sweep, unit: Unit) -> list[str]:
    """Returns the arguments of `python -m sea_jax.main` for one unit."""
    config = sweep.configs[unit.size]
    replicate = unit.seed - config["seed"] if unit.method else 0
    fields = {
        "methods": (unit.method,) if unit.method else sweep.methods, "num_seeds": 1, "progress": False,
        "seed": config["seed"] + replicate, "task.oracle_seed": config["task"]["oracle_seed"] + replicate,
        "cache_dir": config["cache_dir"] or sweep.root / "cache",
    }  # fmt: skip
    return [
        f"--config={sweep.files[unit.size]}", *sweep.overrides,
        *(f"--config.{name}={value}" for name, value in fields.items()),
        f"--workdir={unit.folder}", *([] if unit.method else ["--prepare"]),
    ]  # fmt: skip


def unfinished_units(sweep: Sweep) -> dict[str, tuple[Unit | None, list[Unit]]]:
    """Returns size -> (the unit that trains the shared parts, the unfinished runs).

    The first is None if the policy is given and the encoder is pretrained, so that nothing is prepared,
    and if at most one run is unfinished, which then trains its own parts.
    """
    found = {}
    for size, config in sweep.configs.items():
        units = [unit for unit in sweep.units(size) if not unit.finished]
        trains = not config["policy"]["folder"] or config["backbone"]["kind"] != "encoder"
        found[size] = (Unit(sweep.root, size) if trains and len(units) > 1 else None), units
    return found
