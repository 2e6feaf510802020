"""Runs many runs side by side: each a work directory of `sea_jax.main`, skipped where it has finished."""

import contextlib
import dataclasses
import multiprocessing
import os
import runpy
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from sea_jax.runtime.run_folder import is_finished, run_folder
from sea_jax.types import Config


@dataclasses.dataclass(frozen=True)
class Unit:
    """One method on one seed.

    Attributes:
        folder: its work directory.
        file: config file with options, as 'configs/mini_experiments.py:dap=ipo'.
        method: a row of `METHODS`.
        seed: of the run, and of its oracle.
        fields: of the config, by dotted name.
    """

    folder: Path
    file: str
    method: str
    seed: int
    fields: Mapping[str, Any]

    @property
    def run_folder(self) -> Path:
        return run_folder(self.folder, self.method, self.seed)

    @property
    def finished(self) -> bool:
        return is_finished(self.run_folder)

    def all_fields(self, cache: Path) -> dict[str, Any]:
        """Returns the fields that the unit's run has otherwise than the config file."""
        own = dict(methods=(self.method,), num_seeds=1, seed=self.seed, cache_dir=str(cache))
        return own | {"task.oracle_seed": self.seed} | dict(self.fields)

    def config(self, cache: Path) -> Config:
        """Returns the config of the unit's run."""
        file, _, options = self.file.partition(":")
        config = runpy.run_path(file)["get_config"](options)
        config.update_from_flattened_dict(self.all_fields(cache))
        return config

    def command(self, cache: Path) -> str:
        """Returns the command that makes the same run."""
        fields = (f"--config.{name}={value}" for name, value in self.all_fields(cache).items())
        arguments = [f"--config={self.file}", *fields, f"--workdir={self.folder}"]
        return shlex.join(["python", "-m", "sea_jax.main", *arguments])


def run_units(units: Sequence[Unit], cache: Path, parallel: int) -> list[str]:
    """Runs the units that have not finished, in their order, and says on stderr which ended.

    The processes live as long as there are units, so that each traces and compiles a program once.

    Args:
        units: work directories that no other process uses.
        cache: trained parts and compiled programs, which all runs share.
        parallel: processes at a time.

    Returns:
        A line for every unit that failed.

    Raises:
        KeyboardInterrupt: by Ctrl-C or SIGTERM, after the runs were saved.
    """
    left = [unit for unit in units if not unit.finished]
    if not left:
        return []
    cache.mkdir(parents=True, exist_ok=True)
    _say(f"{len(left)} of {len(units)} runs to make, {parallel} at a time")
    methods = tuple(dict.fromkeys(unit.method for unit in left))
    parts = dataclasses.replace(left[0], fields=dict(left[0].fields) | dict(methods=methods))
    with _sigterm_as_interrupt():
        failed = _in_turn([_Call(parts, cache, prepare=True)], 1)
        return failed or _in_turn([_Call(unit, cache) for unit in left], parallel)


@dataclasses.dataclass(frozen=True)
class _Call:
    """A unit to run, or to prepare the parts of, in a process."""

    unit: Unit
    cache: Path
    prepare: bool = False

    @property
    def name(self) -> str:
        if self.prepare:
            return "the parts that all runs share"
        return "/".join(self.unit.folder.parts[-2:])


def _in_turn(calls: Sequence[_Call], parallel: int) -> list[str]:
    failed, done = [], 0
    # Fork would copy JAX's threads. In a group of its own a process does not get the terminal's Ctrl-C: the
    # signal of `terminate` would be its second, at which a run ends unsaved.
    context = multiprocessing.get_context("spawn")
    places = context.Queue()
    for place in shares(sorted(os.sched_getaffinity(0)), parallel):
        places.put(place)
    with ProcessPoolExecutor(parallel, mp_context=context, initializer=_begin, initargs=(places,)) as pool:
        try:
            waiting = {pool.submit(_run, call): call for call in calls}
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    call, done = waiting.pop(future), done + 1
                    try:
                        said, seconds = future.result()
                    except BrokenProcessPool:
                        said, seconds = "its process was lost; the same command goes on", 0.0
                    _say(f"[{done}/{len(calls)}] {call.name}: {said or f'{seconds:.0f} s'}")
                    if said:
                        failed.append(f"{call.name}: {said} ({call.unit.folder / 'log.txt'})")
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()  # the run saves itself and ends
            raise
    return failed


def shares(cores: Sequence[int], parallel: int) -> list[Sequence[int]]:
    """Shares cores among processes; with fewer cores than processes, each has all of them."""
    if len(cores) < parallel:
        return [cores] * parallel
    return [cores[i::parallel] for i in range(parallel)]


def _begin(places: Any) -> None:
    """Begins a process: in a group of its own, on its own cores.

    Two processes whose threads share two cores take twice as long as two of one thread each.
    """
    os.setpgrp()
    os.sched_setaffinity(0, places.get())


def _run(call: _Call) -> tuple[str, float]:
    """Runs a unit in this process; returns what went wrong, '' if nothing did, and the seconds."""
    start, unit = time.monotonic(), call.unit
    unit.folder.mkdir(parents=True, exist_ok=True)
    with open(unit.folder / "log.txt", "a") as log:
        for descriptor in (1, 2):  # also of the loggers that were made before
            os.dup2(log.fileno(), descriptor)
    said = _said(call)
    return said, time.monotonic() - start


def _said(call: _Call) -> str:
    """Makes the call's run; returns the error that ended it, '' without one."""
    config = call.unit.config(call.cache)
    from sea_jax.runtime.process import prepare_jax

    prepare_jax(config, str(call.unit.folder))
    # After JAX is prepared, which these import.
    from sea_jax.errors import InputError, ServiceError, StoppedError, StorageError, WatchError
    from sea_jax.experiment import run as experiment

    try:
        make = experiment.prepare if call.prepare else experiment.run
        print(make(config, str(call.unit.folder)), flush=True)
    except (InputError, ServiceError, StorageError, WatchError, FloatingPointError) as error:
        print(error, file=sys.stderr, flush=True)
        return str(error)
    except StoppedError as stop:
        print(stop, file=sys.stderr, flush=True)
        os._exit(os.EX_TEMPFAIL)  # else the process would begin the next run
    return ""


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def cores() -> int:
    """Returns the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
