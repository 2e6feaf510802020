"""A sweep of methods × seeds × sizes through XManager, each run a work unit in a folder of its own.

    xmanager launch launch/xm_sweep.py -- --config=configs/tldr.py:size=1b --seeds=3 --methods=passive,sea
    xmanager launch launch/xm_sweep.py -- --config=configs/tldr.py --sizes=1b,2.8b,6.9b --methods=passive,sea
    python -m launch.xm_sweep --config=configs/quickstart.py --seeds=2    # the same, in its environment

On this machine and without containers: XManager's `xm_local` starts `python -m sea_jax.main` for every unit,
one after the other unless --parallel says more. sea_jax/report/sweep.py describes --root. The
first unit of a size trains the parts that its runs share. Called again, the command runs what has not
finished; seeds, methods and sizes may be added. It ends with what `python -m sea_jax.report <root>` shows at
any time, and with status 1 if a run failed.

The first two commands need `pip install -r requirements-launch.txt`, which takes two packages back to older
versions. The third makes an environment for XManager (launch/environments.py), where the units run too.
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
if str(ROOT) not in sys.path:  # `xmanager launch` imports this file by itself, and takes sys.path[0] away
    sys.path.append(str(ROOT))

from launch import environments  # noqa: E402
from sea_jax.config.flags import config_mistake, fail, read_config  # noqa: E402

if __name__ == "__main__":
    environments.xmanager_launch(__file__, sys.argv[1:])
if __name__ == "xm_sweep" and (wrong := config_mistake(sys.argv)):
    fail(wrong)  # `xmanager launch` is about to parse the flags, and would tell it by a traceback

from absl import flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

# xmanager is imported here, and not where it is used, since it defines flags that `xmanager launch` gives.
from xmanager import xm, xm_local  # noqa: E402  # pyright: ignore[reportMissingImports]

from launch import sweeps  # noqa: E402
from sea_jax.errors import InputError  # noqa: E402
from sea_jax.report import report  # noqa: E402
from sea_jax.report.sweep import Sweep, Unit  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "A config, e.g. configs/tldr.py:size=1b.")
_METHODS = flags.DEFINE_list("methods", None, "Rows of sea_jax.methods.METHODS; else the config's.")
_SEEDS = flags.DEFINE_integer("seeds", None, "Replicates of each method; else the config's num_seeds.")
_SIZES = flags.DEFINE_list("sizes", None, "Values of the config's option `size`; else the one it has.")
_WHERE = flags.DEFINE_string("root", None, "Folder of the sweep; else runs/sweep-<config>.")
_PARALLEL = flags.DEFINE_integer("parallel", 1, "Units at a time; two fight for the cores of a laptop.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only print the commands that would run.")


def main(argv: list[str]) -> int:
    """Plans, launches and reports; a mistake is one line and status 2, a failed run status 1."""
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
        sweep = sweeps.plan(file, given, _METHODS.value, _SEEDS.value, _SIZES.value, _WHERE.value)
        if _DRY_RUN.value:
            _print_commands(sweep)
            return 0
        root = sweeps.claim(sweep).root
        launch = _Launch(sweep, _PARALLEL.value)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's kill ends the units too
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
    for first, units in sweeps.to_run(sweep).values():
        for unit in [*([first] if first else []), *units]:
            print(shlex.join(["python", "-m", "sea_jax.main", *sweeps.arguments(sweep, unit)]))


class _UnitsFailedError(Exception):
    pass


class _Launch:
    """The work units of one experiment.

    Args:
        sweep: of which it runs what has not finished.
        parallel: units at a time.

    Attributes:
        failed: a line for each unit that failed, or that its size's first one kept from starting.
    """

    def __init__(self, sweep: Sweep, parallel: int):
        self.failed: list[str] = []
        self._sweep, self._plan = sweep, sweeps.to_run(sweep)
        self._total = sum(len(units) + (first is not None) for first, units in self._plan.values())
        self._begun, self._gate = 0, asyncio.Semaphore(parallel)
        self._experiment: Any = None
        self._executable: Any = None

    async def run(self) -> None:
        """Launches all and waits for them."""
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
            pass  # else the experiment waits for its units once more, and ends in a traceback of each

    async def _size(self, first: Unit | None, units: list[Unit]) -> None:
        if first is None or await self._unit(first):
            await asyncio.gather(*(self._unit(unit) for unit in units))
        else:
            self.failed += [f"{unit.name}: not started, as {first.name} failed" for unit in units]

    async def _unit(self, unit: Unit) -> bool:
        """Whether it succeeded."""
        async with self._gate:
            self._begun += 1
            print(f"[{self._begun}/{self._total}] {unit.name}: {unit.log}", flush=True)
            started = time.monotonic()
            unit.folder.mkdir(parents=True, exist_ok=True)
            # xm_local's jobs are shell commands. It would show their output and not keep it, and of a sweep
            # that is interrupted it ends the shell alone, which has to end the run.
            log = shlex.quote(str(unit.log))
            to_log = xm.ShellSafeArg(f"> {log} 2>&1 & trap 'kill $!' TERM; wait $!")
            job = xm.Job(self._executable, xm_local.Local(experimental_stream_output=False))
            arguments = [*sweeps.arguments(self._sweep, unit), to_log]
            work_unit = await self._experiment.add(job, args={"args": arguments})
            try:
                await work_unit.wait_until_complete()
            except xm.ExperimentUnitError:
                self.failed.append(f"{unit.name}: {unit.last_words()} ({unit.log})")
                print(f"{unit.name}: FAILED: {unit.last_words()}", flush=True)
                return False
            print(f"{unit.name}: done in {time.monotonic() - started:.0f} s", flush=True)
            return True


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
