"""Reads a config from the command line and reports each mistake in one line. Imports no JAX."""

from __future__ import annotations

import inspect
import re
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from absl import flags

from sea_jax.config.checks import flat, nearest
from sea_jax.credentials import redact
from sea_jax.errors import InputError

if TYPE_CHECKING:
    from sea_jax.types import Config


def parse(argv: list[str]) -> list[str]:
    """Parses flags as absl does; an unknown flag, field or value is one line and exit status 2."""
    flags.FLAGS.set_gnu_getopt(True)  # a command may stand before the flags
    try:
        return flags.FLAGS(argv)
    except (AttributeError, LookupError, TypeError, ValueError, OSError, flags.Error) as error:
        fail(config_mistake(argv) or error)


def command_of(argv: list[str], commands: tuple[str, ...], valid: str) -> str | None:
    """Returns the command of a parsed command line, None without one; another argument ends the process.

    Args:
        argv: the name of the program, then the arguments that are no flags.
        commands: the valid ones.
        valid: the flags, for the message.
    """
    if len(argv) < 2:
        return None
    unexpected = argv[2:] if argv[1] in commands else argv[1:]
    if unexpected:
        known = f"; or one of the commands {', '.join(commands)}"
        fail(f"unexpected argument {unexpected[0]!r}: valid are {valid}{known}")
    return argv[1]


def read_config(flag: Any) -> Config:
    """Returns the config that a flag names; one that cannot be read is one line and exit status 2."""
    config = flag.value
    try:
        config.keys()  # a file that could not be read is found out here
    except OSError as error:
        fail(error)
    return config


def fail(error: object, status: int = 2) -> NoReturn:
    """Ends the process, and on stderr a line per problem, after their number if it is not 1."""
    problems = error.problems if isinstance(error, InputError) else (error,)
    if len(problems) > 1:
        print(f"{len(problems)} problems:", file=sys.stderr)
    for problem in problems:
        print(f"error: {redact(' '.join(str(problem).split()))}", file=sys.stderr)
    sys.exit(status)


def config_mistake(argv: list[str]) -> str | None:
    """Returns a mistake in the config file or its options, or the first unknown --config.<field>, or None."""
    given = {}
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        if found := re.fullmatch(r"--?(config(?:\.[^=]+)?)(?:=(.*))?", arg, re.DOTALL):
            given[found[1]] = following if found[2] is None else found[2]
    file, _, argument = given.pop("config", "").partition(":")
    if not Path(file).is_file():
        return None
    get_config = runpy.run_path(file)["get_config"]
    if argument and not inspect.signature(get_config).parameters:
        return f"--config={file}:{argument}: this config has no options; valid: --config={file}"
    try:
        config = get_config(argument) if argument else get_config()
    except (LookupError, TypeError, ValueError) as error:
        return f"--config={file}{f':{argument}' if argument else ''}: {error}"
    for name, value in given.items():
        at, node = "config", config
        for part in name.split("[")[0].split(".")[1:]:
            fields = sorted(node) if hasattr(node, "keys") else []
            if part not in fields:
                valid = f"valid fields of {at} are {', '.join(fields)}" if fields else f"{at} has no fields"
                known = [f"config.{field}" for field in flat(config.to_dict())]
                return f"{name}={value!r}: no such field; {valid}{nearest(name, known)}"
            at, node = f"{at}.{part}", node[part]
    return None
