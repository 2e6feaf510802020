"""Flags only: --config, --workdir. See `experiment.run`."""

import re
import runpy
import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from sea_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "A config, e.g. configs/quickstart.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs, made if absent.", required=True)


def main(argv: list[str]) -> None:
    """Runs the config; a mistake in it is one line on stderr and exit status 2, one of ours a traceback."""
    if len(argv) > 1:
        _fail(f"unexpected argument {argv[1]!r}: valid are --config, --workdir, --config.<field>=<value>")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # JAX tells at INFO which accelerators it did not find
    config = _CONFIG.value
    try:
        config.keys()  # a file that could not be read is found out here
    except OSError as error:
        _fail(error)
    from sea_jax.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    import jax

    from sea_jax import experiment

    jax.config.update("jax_compilation_cache_dir", f"{_WORKDIR.value}/cache/xla")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    try:
        print(experiment.run(config, _WORKDIR.value))
    except (InputError, FloatingPointError) as error:
        _fail(error)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (AttributeError, LookupError, TypeError, ValueError, OSError, flags.Error) as error:
        _fail(_unknown_field(argv) or error)


def _unknown_field(argv: list[str]) -> str | None:
    """What to say of the first --config.<field> that the config file lacks; None if it lacks none."""
    given = {}
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        if found := re.fullmatch(r"--?(config(?:\.[^=]+)?)(?:=(.*))?", arg, re.DOTALL):
            given[found[1]] = following if found[2] is None else found[2]
    file, _, argument = given.pop("config", "").partition(":")
    if not Path(file).is_file():
        return None
    get_config = runpy.run_path(file)["get_config"]
    config = get_config(argument) if argument else get_config()
    for name, value in given.items():
        at, node = "config", config
        for part in name.split("[")[0].split(".")[1:]:
            fields = sorted(node) if hasattr(node, "keys") else []
            if part not in fields:
                valid = f"valid fields of {at} are {', '.join(fields)}" if fields else f"{at} has no fields"
                return f"{name}={value!r}: no such field; {valid}"
            at, node = f"{at}.{part}", node[part]
    return None


def _fail(error: object) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=_parse)
