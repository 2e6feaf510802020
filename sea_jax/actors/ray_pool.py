"""Ray, for runs on several machines: pools of worker processes that Ray replaces when they are lost.

Only this file and launch/ray_run.py import ray.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray
import ray.exceptions
import ray.util
from absl import logging
from ray._private import ray_constants
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sea_jax.credentials import redact, without_credentials
from sea_jax.errors import ServiceError, WatchError

ROOT = Path(__file__).resolve().parents[2]  # the folder of the package `sea_jax`
_CONNECT_TIMEOUT_S = 10.0
# Environment variables that a worker gets from the driver, so that it computes as the driver does.
_FORWARDED_PREFIXES = ("JAX_", "XLA_", "HF_", "TPU_", "LIBTPU_")


class LostError(ServiceError):
    """A process of the cluster has died."""


class PoolLimits(NamedTuple):
    """Limits of waiting for a pool; see config.ray in configs/quickstart.py."""

    timeout_s: float = 600.0  # of an answer, and of the start
    retries: int = 3  # how often a worker may be lost during one call


class Resources(NamedTuple):
    """The resources of one worker."""

    cpus: float = 1.0
    gpus: float = 0.0

    def bundle(self) -> dict[str, float]:
        """Returns the resources as a bundle of a placement group."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def connect(address: str = "", cpus: float = 0.0) -> None:
    """Joins a Ray cluster, or starts one on this machine; does nothing in a process that has joined one.

    Args:
        address: of the cluster's head, or 'auto' for the one that runs on this machine; empty: RAY_ADDRESS of
            the environment, or else a new cluster, which ends with this process.
        cpus: logical CPUs of a new cluster, if more than there are.

    Raises:
        ServiceError: no cluster answers at the address.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS", "")
    _set_cluster_mode(several_machines=bool(address))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    runtime_env = {"env_vars": _forwarded() | {"PYTHONPATH": path}}
    options: dict[str, Any] = dict(logging_level="error", runtime_env=runtime_env)
    if not address:
        count = max(len(os.sched_getaffinity(0)), int(cpus + 0.999))
        options |= dict(num_cpus=count, include_dashboard=False)
    try:
        if match := re.fullmatch(r"(.+):(\d+)", address):  # ray.init would try for minutes if nobody listens
            socket.create_connection((match[1], int(match[2])), timeout=_CONNECT_TIMEOUT_S).close()
        ray.init(address or "local", **options)
    except (OSError, RuntimeError, ValueError) as error:
        cluster = f"Ray's cluster at {address!r}" if address else "a Ray cluster on this machine"
        raise ServiceError(f"{cluster}: cannot be joined: {_one_line(error)}") from None


def _forwarded() -> dict[str, str]:
    """Returns the variables that workers get. No key or token: Ray writes them to its logs."""
    variables = without_credentials(os.environ)
    return {name: value for name, value in variables.items() if name.startswith(_FORWARDED_PREFIXES)}


class Pool:
    """Workers of one class, each in a process of its own, on any machine of the cluster.

    Ray replaces a lost worker by a new one with the same arguments and repeats the call, so methods must not
    depend on earlier calls.

    Args:
        name: of the workers, for messages.
        worker: their class.
        arguments: of its constructor.
        count: number of workers.
        resources: of each worker.
        limits: see `PoolLimits`.
        first_bundle: index of worker 0's bundle in the placement group of this process, if it is in one; the
            other workers follow.

    Raises:
        ServiceError: a worker does not start, or not in time.
    """

    def __init__(
        self, name: str, worker: type, arguments: tuple, count: int, resources: Resources, limits: PoolLimits,
        first_bundle: int,
    ):  # fmt: skip
        self._name, self._limits = name, limits
        group = ray.util.get_current_placement_group()
        kind = ray.remote(worker)
        self._workers: list[Any] = [
            kind.options(
                num_cpus=resources.cpus, num_gpus=resources.gpus,
                scheduling_strategy="SPREAD" if group is None else in_bundle(group, first_bundle + i),
                max_restarts=-1, max_task_retries=limits.retries,
            ).remote(*arguments)
            for i in range(count)
        ]  # fmt: skip
        self.wait_for([worker.pid.remote() for worker in self._workers], "to start")

    def __len__(self) -> int:
        return len(self._workers)

    def submit(self, method: str, calls: Sequence[tuple]) -> list[Any]:
        """Calls a method of worker i with the arguments calls[i]; does not wait.

        Args:
            method: of the workers' class.
            calls: arguments for at most as many workers as there are; values from `put` are passed by
                reference.

        Returns:
            References for `wait_for`.
        """
        workers = zip(self._workers, calls, strict=False)
        return [getattr(worker, method).remote(*arguments) for worker, arguments in workers]

    def wait_for(self, references: list[Any], awaited: str) -> list[Any]:
        """Waits for the results of `submit`.

        Args:
            references: the result of `submit`.
            awaited: what the calls compute, for messages.

        Returns:
            The results, in order.

        Raises:
            ServiceError: some did not answer in time, or a worker was lost too often. Errors of the workers
                are raised again here.
        """
        return wait_for(references, f"{self._name}: {awaited}", self._limits.timeout_s)

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []


def put(value: Any) -> Any:
    """Puts a value into Ray's object store; returns a reference that many workers can read."""
    return ray.put(value)


def wait_for(references: list[Any], awaited: str, timeout_s: float | None) -> list[Any]:
    """Waits for results of workers; see `Pool.wait_for`. A timeout of None is no limit."""
    prefix = f"Ray: waited for {awaited}"
    try:
        return ray.get(references, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        _, missing = ray.wait(references, num_returns=len(references), timeout=0)
        count = f"{len(missing)} of {len(references)}"
        raise ServiceError(f"{prefix}: {count} gave no answer within {timeout_s:g} s") from None
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, ServiceError | WatchError | ValueError | ArithmeticError):
            logging.error("%s", redact(str(error)))  # a mistake in the code: shows the worker's traceback
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        raise LostError(f"{prefix}: {_one_line(error)}") from None
    except ray.exceptions.RayError as error:
        raise ServiceError(f"{prefix}: {_one_line(error)}") from None


def reserve(bundles: list[dict[str, float]], timeout_s: float) -> PlacementGroup:
    """Reserves all processes of a run at once, on few machines where possible.

    Args:
        bundles: the resources of each process.
        timeout_s: seconds for the reservation.

    Returns:
        The placement group.

    Raises:
        ServiceError: the cluster lacks the resources, or does not reserve them in time.
    """
    group = ray.util.placement_group(bundles, strategy="PACK")
    available = ray.cluster_resources()
    for kind in ("CPU", "GPU"):
        wanted, present = sum(bundle.get(kind, 0) for bundle in bundles), available.get(kind, 0)
        if wanted > present:
            raise ServiceError(f"Ray's cluster has {present:g} {kind}s, the run asks for {wanted:g}")
    wait_for([group.ready()], "the cluster to reserve the run's processes", timeout_s)
    return group


def in_bundle(group: PlacementGroup, index: int) -> PlacementGroupSchedulingStrategy:
    """Returns the scheduling strategy that places a process in a bundle of a group."""
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)


def _set_cluster_mode(several_machines: bool) -> None:
    """Makes the Ray processes that start here listen on all interfaces (Ray's default), or on loopback only.

    Ray reads this environment variable on import and offers no option for it, so its constant is set too.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = str(int(several_machines))
    ray_constants.ENABLE_RAY_CLUSTER = several_machines


def _one_line(error: Exception) -> str:
    """Returns an error's message in one line; of a worker's traceback the last line."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if "ray::" in text else " ".join(lines)
