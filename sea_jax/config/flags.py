"""Reads a config from the command line and reports mistakes in one line."""

import inspect
import re
import runpy
import sys
from pathlib import Path
from typing import Any, NoReturn

from absl import flags


def parse(argv: list[str]) -> list[str]:
    """absl's parser; an unknown flag, field or value is one line and exit status 2."""
    try:
        return flags.FLAGS(argv)
    except (AttributeError, LookupError, TypeError, ValueError, OSError, flags.Error) as error:
        fail(config_mistake(argv) or error)


def read_config(flag: Any) -> Any:
    """The config that a flag names; one that cannot be read is one line and exit status 2."""
    config = flag.value
    try:
        config.keys()  # a file that could not be read is found out here
    except OSError as error:
        fail(error)
    return config


def fail(error: object) -> NoReturn:
    """Ends the command with one line on stderr and status 2."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def config_mistake(argv: list[str]) -> str | None:
    """What is wrong with the config file's options, or the first unknown --config.<field>, or None."""
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
    except (LookupError, ValueError) as error:
        return f"--config={file}:{argument}: {error}"
    for name, value in given.items():
        at, node = "config", config
        for part in name.split("[")[0].split(".")[1:]:
            fields = sorted(node) if hasattr(node, "keys") else []
            if part not in fields:
                valid = f"valid fields of {at} are {', '.join(fields)}" if fields else f"{at} has no fields"
                return f"{name}={value!r}: no such field; {valid}"
            at, node = f"{at}.{part}", node[part]
    return None
