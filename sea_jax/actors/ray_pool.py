"""Ray, for runs of several machines: groups of processes that are asked together and replaced when lost.

This file and launch/ray_run.py are all that imports ray.
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

from sea_jax.errors import ServiceError

ROOT = Path(__file__).resolve().parents[2]  # where the package `sea_jax` lies
_REACH = 10.0  # seconds in which a cluster's head takes a connection
_SENT = ("JAX_", "XLA_", "HF_", "TPU_", "LIBTPU_")  # variables that a worker computes as the driver with


class Bounds(NamedTuple):
    """How long a pool is waited for; see sea_jax/config/train.py."""

    timeout_s: float = 600.0  # of an answer, and of the start
    retries: int = 3  # how often a worker may be lost with the same question in hand


class Resources(NamedTuple):
    """What a worker takes of its machine."""

    cpus: float = 1.0
    gpus: float = 0.0

    def bundle(self) -> dict[str, float]:
        """In Ray's words."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def connect(address: str = "", cpus: float = 0.0) -> None:
    """Joins a Ray cluster, or begins one on this machine; does nothing in a process that is in one.

    Args:
        address: of the cluster's head, 'auto' for the one that runs on this machine; empty: RAY_ADDRESS of
            the environment, or a cluster of our own, which ends with this process.
        cpus: logical CPUs of a cluster of our own, if that is more than there are.

    Raises:
        ServiceError: no cluster answers there.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS", "")
    _listen_to(others=bool(address))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    sent = {k: v for k, v in os.environ.items() if k.startswith(_SENT)} | {"PYTHONPATH": path}
    options: dict[str, Any] = dict(logging_level="error", runtime_env={"env_vars": sent})
    if not address:
        count = max(len(os.sched_getaffinity(0)), int(cpus + 0.999))
        options |= dict(num_cpus=count, include_dashboard=False)
    try:
        if found := re.fullmatch(r"(.+):(\d+)", address):  # where nobody listens, Ray would try for minutes
            socket.create_connection((found[1], int(found[2])), timeout=_REACH).close()
        ray.init(address or "local", **options)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"Ray's cluster at {address!r}" if address else "a Ray cluster on this machine"
        raise ServiceError(f"{where}: cannot be joined: {_line(error)}") from None


class Pool:
    """Workers of one class in processes of their own, anywhere in the cluster.

    Ray replaces a worker that is lost by another made with the same arguments, and asks that one again:
    methods must not depend on earlier calls.

    Args:
        what: the workers are, for people.
        worker: their class.
        arguments: of its constructor.
        count: n, how many.
        resources: of each.
        bounds: see `Bounds`.
        first_bundle: index of worker 0's bundle in the placement group that this process is in, if it is in
            one; the others follow.

    Raises:
        ServiceError: they are not there in time, or one cannot begin.
    """

    def __init__(
        self, what: str, worker: type, arguments: tuple, count: int, resources: Resources, bounds: Bounds,
        first_bundle: int,
    ):  # fmt: skip
        self._what, self._bounds = what, bounds
        group = ray.util.get_current_placement_group()
        place = _anywhere if group is None else lambda i: in_bundle(group, first_bundle + i)
        kind = ray.remote(worker)
        self._workers: list[Any] = [
            kind.options(
                num_cpus=resources.cpus, num_gpus=resources.gpus, scheduling_strategy=place(i),
                max_restarts=-1, max_task_retries=bounds.retries,
            ).remote(*arguments)
            for i in range(count)
        ]  # fmt: skip
        self.hear([worker.pid.remote() for worker in self._workers], "to begin")

    def __len__(self) -> int:
        return len(self._workers)

    def ask(self, method: str, questions: Sequence[tuple]) -> list[Any]:
        """Asks worker i the question i, and waits for nobody: what `hear` takes.

        Args:
            method: of the worker's class.
            questions: at most n; arguments, of which those that `share` gave are the same for all.
        """
        workers = zip(self._workers, questions, strict=False)
        return [getattr(worker, method).remote(*question) for worker, question in workers]

    def hear(self, asked: list[Any], awaited: str) -> list[Any]:
        """The answers, in order.

        Args:
            asked: what `ask` returned.
            awaited: what of them, for people.

        Raises:
            ServiceError: not all answered in time, or one was lost too often. What a worker raised is raised
                here.
        """
        return hear(asked, f"{self._what}: {awaited}", self._bounds.timeout_s)

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []


def share(value: Any) -> Any:
    """Puts what many workers need into Ray's object store once, arrays on the host with no copy for each."""
    return ray.put(value)


def hear(asked: list[Any], awaited: str, timeout_s: float | None) -> list[Any]:
    """Answers of workers, in order; the arguments and errors are those of `Pool.hear`. No timeout is None."""
    what = f"Ray: waited for {awaited}"
    try:
        return ray.get(asked, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        _, missing = ray.wait(asked, num_returns=len(asked), timeout=0)
        missed = f"{len(missing)} of {len(asked)} gave no answer within {timeout_s:g} s"
        raise ServiceError(f"{what}: {missed}") from None
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, ServiceError | ValueError | ArithmeticError):
            logging.error("%s", error)  # a mistake of the code: where in the worker it is
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise ServiceError(f"{what}: {_line(error)}") from None


def reserve(bundles: list[dict[str, float]], timeout_s: float) -> PlacementGroup:
    """All of a run's processes at once, close to each other where that can be.

    Raises:
        ServiceError: the cluster has not got them, or not in time.
    """
    group = ray.util.placement_group(bundles, strategy="PACK")
    there = ray.cluster_resources()
    for kind in ("CPU", "GPU"):
        asked, has = sum(bundle.get(kind, 0) for bundle in bundles), there.get(kind, 0)
        if asked > has:
            raise ServiceError(f"Ray's cluster has {has:g} {kind}s, the run asks for {asked:g}")
    hear([group.ready()], "the cluster to reserve the run's processes", timeout_s)
    return group


def _listen_to(others: bool) -> None:
    """Whether Ray's processes that begin here listen beyond this machine, as they do by default.

    Its switch is an environment variable that it reads as it is imported, meant for laptops of another kind.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = str(int(others))
    ray_constants.ENABLE_RAY_CLUSTER = others


def _anywhere(_: int) -> str:
    return "SPREAD"


def in_bundle(group: PlacementGroup, index: int) -> PlacementGroupSchedulingStrategy:
    """The place of one of the reserved processes."""
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)


def _line(error: Exception) -> str:
    """What happened, in one line: where Ray shows a worker's traceback, the last of it."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if "ray::" in text else " ".join(lines)
