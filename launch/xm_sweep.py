"""Launches a sweep of methods × seeds × sizes through XManager; each run is a work unit with its own folder.

    xmanager launch launch/xm_sweep.py -- --config=configs/tldr.py:size=1b --seeds=3 --methods=passive,sea
    xmanager launch launch/xm_sweep.py -- --config=configs/tldr.py --sizes=1b,2.8b,6.9b --methods=passive,sea
    python -m launch.xm_sweep --config=configs/quickstart.py --seeds=2    # makes the environment itself

XManager's `xm_local` starts `python -m sea_jax.main` on this machine for every unit, without containers;
--parallel units run at a time, one by default. The first unit of a size trains the parts that its runs
share. sea_jax/report/sweep.py describes the folder --root.

The same command, run again, runs the unfinished units; seeds, methods and sizes may be added. At its end it
prints the report of `python -m sea_jax.report <root>`; its status is 1 if a run failed.

The first two commands need `pip install -r requirements-launch.txt`, which downgrades two packages. The third
makes an environment for XManager (launch/environments.py), in which the units run too.
"""

import asyncio
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `xmanager launch` imports this file alone and removes sys.path[0]
    sys.path.append(str(ROOT))

from launch import environments  # noqa: E402
from sea_jax.config.flags import config_mistake, fail, read_config  # noqa: E402

if __name__ == "__main__":
    environments.xmanager_launch(__file__, sys.argv[1:])
if __name__ == "xm_sweep" and (wrong := config_mistake(sys.argv)):
    fail(wrong)  # else `xmanager launch`, which parses the flags next, prints a traceback

from absl import flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

# This import is at the top because xmanager defines flags that `xmanager launch` passes.
from xmanager import xm, xm_local  # noqa: E402  # pyright: ignore[reportMissingImports]

from launch import sweeps  # noqa: E402
from sea_jax.errors import InputError  # noqa: E402
from sea_jax.report import report  # noqa: E402
from sea_jax.report.sweep import Sweep, Unit  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "A config, e.g. configs/tldr.py:size=1b.")
_METHODS = flags.DEFINE_list("methods", None, "Names in sea_jax.methods.METHODS; else the config's.")
_SEEDS = flags.DEFINE_integer("seeds", None, "Replicates of each method; else the config's num_seeds.")
_SIZES = flags.DEFINE_list("sizes", None, "Values of the config's option `size`; else the one it has.")
_SWEEP_ROOT = flags.DEFINE_string("root", None, "Folder of the sweep; else runs/sweep-<config>.")
_PARALLEL = flags.DEFINE_integer("parallel", 1, "Units at a time; two compete for the cores of a laptop.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only print the commands that would run.")


def main(argv: list[str]) -> int:
    """Plans, launches and reports; exits with 2 and one line on a wrong flag, returns 1 if a run failed."""
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}: valid are --config, --config.<field>, --methods, --seeds, …")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    if _CONFIG.value is None:
        fail("--config: absent; valid: a config file, as configs/quickstart.py")
    read_config(_CONFIG)
    if _PARALLEL.value < 1:
        fail(f"--parallel={_PARALLEL.value}: valid is at least 1")
    try:
        file = config_flags.get_config_filename(flags.FLAGS["config"])
        given = sweeps.overrides(sys.argv)
        sweep = sweeps.plan(file, given, _METHODS.value, _SEEDS.value, _SIZES.value, _SWEEP_ROOT.value)
        if _DRY_RUN.value:
            _print_commands(sweep)
            return 0
        root = sweeps.claim(sweep).root
        launch = _Launcher(sweep, _PARALLEL.value)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM also ends the units
        asyncio.run(launch.run())
        print("\n" + report.write_sweep(root), flush=True)
    except InputError as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with what has not finished", file=sys.stderr)
        return 130
    for line in launch.failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if launch.failed else 0


def _print_commands(sweep: Sweep) -> None:
    for first, units in sweeps.unfinished_units(sweep).values():
        for unit in [*([first] if first else []), *units]:
            print(shlex.join(["python", "-m", "sea_jax.main", *sweeps.unit_arguments(sweep, unit)]))


class _UnitsFailedError(Exception):
    """Leaves the experiment's context after its units have ended."""


class _Launcher:
    """Runs the unfinished units of a sweep as the work units of one experiment.

    Args:
        sweep: the sweep.
        parallel: units at a time.

    Attributes:
        failed: one line per unit that failed, or that did not start because its size's first unit failed.
    """

    def __init__(self, sweep: Sweep, parallel: int):
        self.failed: list[str] = []
        self._sweep, self._plan = sweep, sweeps.unfinished_units(sweep)
        self._total = sum(len(units) + (first is not None) for first, units in self._plan.values())
        self._begun, self._gate = 0, asyncio.Semaphore(parallel)
        self._experiment: Any = None
        self._executable: Any = None

    async def run(self) -> None:
        """Launches all units and waits for them."""
        if not self._total:
            return
        try:
            async with xm_local.create_experiment(f"sea_jax {self._sweep.root.name}") as self._experiment:
                python = xm.binary(
                    xm_local.LocalSpec(), sys.executable, args=["-m", "sea_jax.main"],
                    env_vars={"PYTHONPATH": _python_path()},
                )  # fmt: skip
                [self._executable] = self._experiment.package([python])
                await asyncio.gather(*(self._size(*part) for part in self._plan.values()))
                if self.failed:
                    raise _UnitsFailedError
        except _UnitsFailedError:
            pass  # leaves the experiment at once: a regular exit prints a traceback of each failed unit

    async def _size(self, first: Unit | None, units: list[Unit]) -> None:
        if first is None or await self._unit(first):
            await asyncio.gather(*(self._unit(unit) for unit in units))
        else:
            self.failed += [f"{unit.name}: not started, as {first.name} failed" for unit in units]

    async def _unit(self, unit: Unit) -> bool:
        """Runs one unit and returns whether it succeeded."""
        async with self._gate:
            self._begun += 1
            print(f"[{self._begun}/{self._total}] {unit.name}: {unit.log}", flush=True)
            started = time.monotonic()
            unit.folder.mkdir(parents=True, exist_ok=True)
            # A job of xm_local is a shell command, whose output is shown but not kept. An interrupted sweep
            # ends only the shell, so the shell must end the run.
            log = shlex.quote(str(unit.log))
            to_log = xm.ShellSafeArg(f"> {log} 2>&1 & trap 'kill $!' TERM; wait $!")
            job = xm.Job(self._executable, xm_local.Local(experimental_stream_output=False))
            arguments = [*sweeps.unit_arguments(self._sweep, unit), to_log]
            work_unit = await self._experiment.add(job, args={"args": arguments})
            try:
                await work_unit.wait_until_complete()
            except xm.ExperimentUnitError:
                self.failed.append(f"{unit.name}: {unit.last_log_line()} ({unit.log})")
                print(f"{unit.name}: FAILED: {unit.last_log_line()}", flush=True)
                return False
            print(f"{unit.name}: done in {time.monotonic() - started:.0f} s", flush=True)
            return True


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
