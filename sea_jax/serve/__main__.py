"""Serves a chat whose policy learns from its users, and operates it.

python -m sea_jax.serve --config=<file> --workdir=<folder>           # the chat page and OpenAI's API
python -m sea_jax.serve status --workdir=<folder>                    # pairs, choices, online win rate
python -m sea_jax.serve pause --workdir=<folder>                     # learns no more until resumed
python -m sea_jax.serve resume --workdir=<folder>
python -m sea_jax.serve rollback --workdir=<folder> --version=<n>    # takes up an earlier version again

The commands work while the chat runs, and where it does not they are done when it is started. Exit status:
2 on a mistake in the input; 74 on a disk that cannot be written; 75 after SIGTERM or Ctrl-C, when the run has
been saved and the same command goes on.
"""

import os
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from sea_jax.config.flags import command_of, fail, parse, read_config
from sea_jax.errors import InputError, ServiceError, StoppedError, StorageError
from sea_jax.labels.chat import FILE, ChatDuels

_CONFIG = config_flags.DEFINE_config_file("config", None, "A config, e.g. configs/chat.py.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run and of the users' choices, made if absent."
)
_VERSION = flags.DEFINE_integer(
    "version", None, "Of `rollback`: the version, as the status page lists them.", 0
)
_COMMANDS = ("status", "pause", "resume", "rollback")


def main(argv: list[str]) -> None:
    """Serves, or runs a command; a mistake in the flags is one line and exit status 2."""
    command = command_of(argv, _COMMANDS, "--config, --workdir, --config.<field>=<value>")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    if not _WORKDIR.value:
        fail("--workdir: absent; valid: a folder for the run, made if absent")
    if (_VERSION.value is not None) != (command == "rollback"):
        fail("--version: valid with `rollback`, which needs it")
    try:
        if command is None:
            _serve(_WORKDIR.value)
        else:
            print(_operate(command, Path(_WORKDIR.value)))
    except (InputError, ServiceError) as error:
        fail(error)
    except StorageError as error:
        fail(error, os.EX_IOERR)
    except StoppedError as stop:
        print(stop, file=sys.stderr)
        sys.exit(os.EX_TEMPFAIL)


def _serve(workdir: str) -> None:
    if _CONFIG.value is None:
        fail("--config: absent; valid: a config, as configs/chat.py")
    from sea_jax.runtime.process import prepare_jax
    from sea_jax.serve.server import serve

    config = read_config(_CONFIG)
    prepare_jax(config, workdir)
    serve(config, workdir)


def _operate(command: str, folder: Path) -> str:
    """Does what an operator asks for; returns what to say."""
    if not (folder / FILE).exists():
        raise InputError(f"--workdir: {folder} has no {FILE}; valid: the work directory of a chat")
    with ChatDuels(folder) as duels:
        if command == "rollback":
            duels.ask_rollback(_VERSION.value or 0)
            return f"{folder}: version {_VERSION.value} is taken up again before the next step"
        if command != "status":
            duels.set_paused(command == "pause")
        totals, online = duels.totals(), duels.online()
        learning = "paused" if duels.paused() else "goes on"
        rate = "unknown yet" if online.rate is None else f"{online.rate:.3f} of {online.compared} comparisons"
        return (
            f"{folder}: learning {learning}; {totals.shown} pairs shown, {totals.answered} choices, of them "
            f"{totals.ties} ties, {totals.learned} learned from; online win rate {rate}"
        )


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
