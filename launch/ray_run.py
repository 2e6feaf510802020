"""Runs a config on a Ray cluster with learners, actors that sample, and oracle workers.

    pip install 'sea_jax[ray]'
    python -m launch.ray_run --config=configs/quickstart.py --workdir=runs/ray --actors=2 --oracles=1
    python -m launch.ray_run --config=configs/tldr.py:size=6.9b --workdir=/shared/runs/tldr --address=auto \
        --learners=1 --learner_gpus=8 --actors=8 --actor_gpus=1 --oracles=2 --oracle_gpus=4

The commands sft and rm stand before the flags, as for sea_jax.main.

Without --address (or RAY_ADDRESS) the cluster is this machine, for the duration of the command. Start a
cluster of several machines with `ray start --head` on one and `ray start --address=<head>` on the others, as
Ray's documentation describes. All machines must have this folder and its environment at the same path, and
--workdir must be on a disk that the learners share.

All processes are reserved together, in one placement group. With --learners=n the learners are the processes
of one run on n hosts, as with `python -m sea_jax.main --coordinator`. A lost actor or oracle worker is
replaced, gets the current weights and repeats the call (at most config.ray.retries times). After the loss of
a learner all learners start again and go on from the last checkpoint, also at most config.ray.retries times.
"""

import os
import socket
from typing import Any

import ray
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from sea_jax.actors import ray_pool, ray_workers
from sea_jax.config.flags import command_of, fail, parse, read_config
from sea_jax.errors import InputError, ServiceError, StorageError, WatchError
from sea_jax.experiment.commands import COMMANDS
from sea_jax.experiment.validate import validate_parts
from sea_jax.runtime.process import meet, prepare_jax
from sea_jax.types import Config

_CONFIG = config_flags.DEFINE_config_file("config", None, "A config, e.g. configs/quickstart.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs, made if absent.", required=True)
_ADDRESS = flags.DEFINE_string(
    "address", "", "Address of the cluster's head, or auto; default: RAY_ADDRESS, or none."
)
_LEARNERS = flags.DEFINE_integer("learners", 1, "Number of learners.", 1)
_ACTORS = flags.DEFINE_integer("actors", None, "Number of actors; default: config.ray.actors.", 0)
_ORACLES = flags.DEFINE_integer("oracles", None, "Number of oracle workers; default: config.ray.oracles.", 0)
_LEARNER_CPUS = flags.DEFINE_float("learner_cpus", 1.0, "CPUs per learner.", 0.0)
_LEARNER_GPUS = flags.DEFINE_float("learner_gpus", 0.0, "GPUs per learner.", 0.0)
_ACTOR_GPUS = flags.DEFINE_float("actor_gpus", None, "GPUs per actor; default: config.ray.actor_gpus.", 0.0)
_ORACLE_GPUS = flags.DEFINE_float(
    "oracle_gpus", None, "GPUs per oracle worker; default: config.ray.oracle_gpus.", 0.0
)


class Learner:
    """A learner's process: the only one, or one of several on different hosts."""

    def coordinator_address(self) -> str:
        """Returns host:port with a free port of this machine, at which learner 0 coordinates the others."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"{host}:{probe.getsockname()[1]}"

    def run(
        self, command: str | None, fields: dict[str, Any], workdir: str, coordinator: str, count: int,
        index: int,
    ) -> str:  # fmt: skip
        """Runs the config, or a command, as learner `index` of `count`; returns the report."""
        config: Config = ConfigDict(fields)
        prepare_jax(config, workdir)
        if count > 1:
            meet(coordinator, count, index)
        from sea_jax.experiment import commands  # this import starts JAX, so it follows prepare_jax and meet
        from sea_jax.experiment import run as experiment

        return commands.run(command, config, workdir) if command else experiment.run(config, workdir)


def main(argv: list[str]) -> None:
    """Reserves the processes and runs the config or a command on them; exits with a status on an error."""
    command = command_of(argv, COMMANDS, "--config, --workdir, --config.<field>, --actors, …")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    config = read_config(_CONFIG)
    for flag in (_ACTORS, _ORACLES, _ACTOR_GPUS, _ORACLE_GPUS):
        if flag.value is not None:
            config.ray[flag.name] = flag.value
    try:
        if command is None:
            validate_parts(config)
        print(_run(command, config))
    except StorageError as error:
        fail(error, os.EX_IOERR)
    except (InputError, FloatingPointError, ServiceError) as error:
        fail(error)
    except WatchError as error:
        fail(error, error.status)
    finally:
        ray.shutdown()


def _run(command: str | None, config: Config) -> str:
    """Starts the learners and waits for them; returns the main learner's report."""
    count, timeout_s = _LEARNERS.value, config.ray.timeout_s
    resources = ray_pool.Resources(_LEARNER_CPUS.value, _LEARNER_GPUS.value)
    bundles = ray_workers.bundles(config, resources, count)
    ray_pool.connect(_ADDRESS.value, sum(bundle["CPU"] for bundle in bundles))
    group = ray_pool.reserve(bundles, timeout_s)
    kind: Any = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus)(Learner)
    strategies = [ray_pool.in_bundle(group, i) for i in range(count)]
    for left in range(config.ray.retries, -1, -1):
        learners = [kind.options(scheduling_strategy=strategy).remote() for strategy in strategies]
        try:
            address = learners[0].coordinator_address.remote()
            [coordinator] = ray_pool.wait_for([address], "learner 0 to start", timeout_s)
            arguments = command, config.to_dict(), _WORKDIR.value, coordinator, count
            runs = [learner.run.remote(*arguments, i) for i, learner in enumerate(learners)]
            return ray_pool.wait_for(runs, "the run to end", None)[0]
        except ray_pool.LostError as error:
            for learner in learners:  # the others wait for the lost one
                ray.kill(learner)
            if not left:
                raise
            logging.warning("%s; all learners start again and go on from the last checkpoint", error)
    raise AssertionError("unreachable: the last loss is raised")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
