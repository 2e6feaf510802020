"""Flags only: --config, --workdir. See `experiment.run`."""

import sys

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "A config, e.g. configs/quickstart.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs, made if absent.")


def main(argv: list[str]) -> None:
    """Runs the config; a mistake in it is one line on stderr and exit status 2."""
    if len(argv) > 1:
        sys.exit(f"unexpected argument {argv[1]!r}: valid are --config, --workdir, --config.<field>=")
    import jax

    from sea_jax import experiment

    jax.config.update("jax_compilation_cache_dir", f"{_WORKDIR.value}/cache/xla")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    try:
        print(experiment.run(_CONFIG.value, _WORKDIR.value))
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=_parse)
