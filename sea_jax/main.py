"""Runs a config, one of the commands `sft` and `rm`, or prints a config; flags and their mistakes only.

python -m sea_jax.main --config=<file> --workdir=<folder>         # the experiment: methods times seeds
python -m sea_jax.main sft --config=<file> --workdir=<folder>     # supervised fine-tuning of the policy
python -m sea_jax.main rm --config=<file> --workdir=<folder>      # training of a reward model
python -m sea_jax.main --config=<file> --print_config             # every field and its meaning
python -m sea_jax.main --config=<file> --workdir=<folder> --labels=<folder>   # learn from these labels alone

Exit status: 0 at the end; 2 on a mistake in the input or a service that failed; 69 where another process of
the run is lost; 74 on a disk that cannot be written; 75 after SIGTERM or Ctrl-C, when the run has been saved
and the same command goes on; 76 where a watch ended a run (config.watch.stop), which was saved and goes on
with another bound; 77 where a run with config.oracle.kind='inbox' has asked questions that nobody has
answered yet; 78 where a judge has cost what it may (config.oracle.max_calls, max_usd).
"""

import os
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from sea_jax.config.flags import command_of, fail, parse, read_config
from sea_jax.errors import InputError, ServiceError, StoppedError, StorageError, WatchError
from sea_jax.experiment.commands import COMMANDS
from sea_jax.runtime.process import end_where_another_is_lost, meet, prepare_jax
from sea_jax.runtime.supervisor import go_on_in_child
from sea_jax.types import Config

_STORAGE_STATUS = os.EX_IOERR  # 74: a disk is full or read-only; what was saved before stays
_STOPPED_STATUS = os.EX_TEMPFAIL  # 75: stopped by a signal and saved; the same command goes on
_CONFIG = config_flags.DEFINE_config_file("config", None, "A config, e.g. configs/quickstart.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs, made if absent.")
_PREPARE = flags.DEFINE_bool("prepare", False, "Only train the parts that runs share, into the cache.")
_PRINT = flags.DEFINE_bool("print_config", False, "Print every field with its meaning, and train nothing.")
_EXTEND = flags.DEFINE_bool("extend", False, "Go on with finished runs whose query budget was raised.")
_LABELS = flags.DEFINE_string(
    "labels", "",
    "Labels to learn from, and no others: a file .jsonl, .csv or .parquet, or a folder of runs.",
)  # fmt: skip
_PARTIAL = flags.DEFINE_bool(
    "partial", False, "config.oracle.kind='inbox': learn from a batch that is answered in part."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "",
    "Of a run on several hosts: host:port of process 0, or 'auto' where the cluster tells (TPU pods, Slurm, "
    "MPI). Every host runs the same command; --workdir is on a disk that all of them see.",
)  # fmt: skip
_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many, with --coordinator=host:port.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def main(argv: list[str]) -> None:
    """Runs the config; mistakes in it are lines on stderr and exit status 2, one of ours a traceback."""
    command = command_of(argv, COMMANDS, "--config, --workdir, --config.<field>=<value>")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # JAX tells at INFO which accelerators it did not find
    config, workdir = read_config(_CONFIG), _WORKDIR.value
    if _PRINT.value:
        print(_described(config))
        return
    if not workdir:
        fail("--workdir: absent; valid: a folder for the runs, made if absent")
    if command and _PREPARE.value:
        fail(f"--prepare: valid without a command, not with {command!r}")
    if _EXTEND.value and (command or _PREPARE.value):
        fail("--extend: valid without a command and without --prepare")
    if _PARTIAL.value and config.oracle.kind != "inbox":
        fail(f"--partial: valid with config.oracle.kind='inbox', not {config.oracle.kind!r}")
    if _LABELS.value and (command or _PREPARE.value or _EXTEND.value):
        fail("--labels: valid without a command, --prepare and --extend")
    prepare_jax(config, workdir)
    _join()
    try:
        with end_where_another_is_lost():
            print(_run(command, config, workdir))
    except (InputError, FloatingPointError, ServiceError) as error:
        fail(error)
    except StorageError as error:
        fail(error, _STORAGE_STATUS)
    except WatchError as error:
        fail(error, error.status)
    except StoppedError as stop:
        print(stop, file=sys.stderr)
        sys.exit(getattr(stop, "status", _STOPPED_STATUS))


def _described(config: Config) -> str:
    from sea_jax.config.printing import describe
    from sea_jax.experiment.base_config import sections_of

    return describe(config, sections_of(config))


def _run(command: str | None, config: Config, workdir: str) -> str:
    from sea_jax.experiment import commands
    from sea_jax.experiment import run as experiment

    if command:
        return commands.run(command, config, workdir)
    if _PREPARE.value:
        return experiment.prepare(config, workdir)
    return experiment.run(config, workdir, _EXTEND.value, _LABELS.value, _PARTIAL.value)


def _join() -> None:
    """Meets the processes of the other hosts, if there are any, before JAX begins, and goes on in a child."""
    address, count, index = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    if not address:
        if count is not None or index is not None:
            fail("--num_processes and --process_id: valid only with --coordinator=<host>:<port>")
        return
    if address == "auto":
        import jax

        go_on_in_child()
        jax.distributed.initialize()
        return
    if not re.fullmatch(r".+:\d+", address):
        fail(f"--coordinator={address!r}: valid is <host>:<port>, or auto")
    if count is None or count < 1:
        fail(f"--num_processes={count}: valid with --coordinator is at least 1")
    if index is None or not 0 <= index < count:
        fail(f"--process_id={index}: valid with --coordinator is 0 to {count - 1}")
    go_on_in_child()
    try:
        meet(address, count, index)
    except ServiceError as error:
        fail(f"--coordinator={error}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
