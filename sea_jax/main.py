"""Flags only: --config, --workdir. See `experiment.run`."""

import re

from absl import app, flags, logging
from ml_collections import config_flags

from sea_jax.config.flags import fail, parse, read_config
from sea_jax.errors import InputError, ServiceError
from sea_jax.runtime.process import meet, prepare_jax

_CONFIG = config_flags.DEFINE_config_file("config", None, "A config, e.g. configs/quickstart.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs, made if absent.", required=True)
_PREPARE = flags.DEFINE_bool("prepare", False, "Only train the parts that runs share, into the cache.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "",
    "Of a run on several hosts: host:port of process 0, or 'auto' where the cluster tells (TPU pods, Slurm, "
    "MPI). Every host runs the same command; --workdir is on a disk that all of them see.",
)  # fmt: skip
_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many, with --coordinator=host:port.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def main(argv: list[str]) -> None:
    """Runs the config; a mistake in it is one line on stderr and exit status 2, one of ours a traceback."""
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}: valid are --config, --workdir, --config.<field>=<value>")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # JAX tells at INFO which accelerators it did not find
    config = read_config(_CONFIG)
    prepare_jax(config, _WORKDIR.value)
    _join()
    from sea_jax.experiment import run as experiment

    try:
        print((experiment.prepare if _PREPARE.value else experiment.run)(config, _WORKDIR.value))
    except (InputError, FloatingPointError, ServiceError) as error:
        fail(error)


def _join() -> None:
    """Meets the processes of the other hosts, if there are any, before JAX begins."""
    if not _COORDINATOR.value:
        if _PROCESSES.value is not None or _PROCESS.value is not None:
            fail("--num_processes and --process_id: valid only with --coordinator=<host>:<port>")
        return
    if _COORDINATOR.value == "auto":
        import jax

        jax.distributed.initialize()
        return
    address, count, index = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    if not re.fullmatch(r".+:\d+", address):
        fail(f"--coordinator={address!r}: valid is <host>:<port>, or auto")
    if count is None or count < 1:
        fail(f"--num_processes={count}: valid with --coordinator is at least 1")
    if index is None or not 0 <= index < count:
        fail(f"--process_id={index}: valid with --coordinator is 0 to {count - 1}")
    try:
        meet(address, count, index)
    except ServiceError as error:
        fail(f"--coordinator={error}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
