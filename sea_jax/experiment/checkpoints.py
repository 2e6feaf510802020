"""Saves a run and restores it, so that a stopped run goes on as if it had never been stopped.

A checkpoint is written by Orbax beside the steps that follow, under another name until it is whole. It holds
what a step changes; the prompts, keys and batches of step t follow from the run's key and from t.
"""

import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy

from sea_jax import __version__
from sea_jax.errors import InputError, StoppedError, StorageError
from sea_jax.experiment.logbook import Logbook
from sea_jax.runtime.mesh import from_all, is_main, wait_for_all
from sea_jax.runtime.stop import StopRequest
from sea_jax.train import Run
from sea_jax.types import Config, SeaState

LAYOUT = 1  # of what is saved
_ARGS = ocp.args


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: of the run.
        config: section `checkpoint`.
    """

    def __init__(self, folder: Path, config: Config):
        self._folder, self._config = folder / "checkpoints", config
        self._saved = time.monotonic()
        if is_main():
            self._folder.mkdir(parents=True, exist_ok=True)
        wait_for_all("the folder of checkpoints")
        kept = preservation_policy.LatestN(config.keep)
        self._manager = ocp.CheckpointManager(
            self._folder.absolute(),
            options=ocp.CheckpointManagerOptions(preservation_policy=kept, cleanup_tmp_directories=True),
        )

    def due(self) -> bool:
        """Tells whether config.checkpoint.every_s have passed since the last one."""
        return time.monotonic() - self._saved >= self._config.every_s

    def save(self, run: Run, observed: dict[str, Any]) -> None:
        """Saves a run between two steps; the files are written while the next steps run.

        Args:
            run: the run; the responses that its actor sampled ahead go into its journal.
            observed: what the observer needs to go on; JSON.

        Raises:
            StorageError: this checkpoint, or the one before, could not be written.
        """
        if self._manager.latest_step() == run.step:
            return
        self.wait()
        self._keep_proposals(run)
        done = dict(
            layout=LAYOUT,
            version=__version__,
            step=run.step,
            idle=run.idle,
            queries=run.labeller.num_queries,
            dropped=run.labeller.num_dropped,
            remembers=bool(run.memory),
            observed=observed,
        )
        items = dict(state=_ARGS.StandardSave(_arrays(run.state)), done=_ARGS.JsonSave(done))
        if run.memory:
            items["memory"] = _ARGS.StandardSave(run.memory)
        try:
            self._manager.save(run.step, args=_ARGS.Composite(**items))
        except (OSError, ValueError) as error:
            raise StorageError(f"{self._folder}: step {run.step} was not saved ({error})") from error
        self._saved = time.monotonic()

    def wait(self) -> None:
        """Waits until the last checkpoint is on the disk."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise StorageError(f"{self._folder}: a checkpoint was not saved ({error})") from error

    def restore(self, run: Run) -> dict[str, Any] | None:
        """Restores a run from the newest checkpoint that can be read.

        Args:
            run: fresh from `make_run`; its mesh may have other devices than the one that saved.

        Returns:
            What the observer had given `save`; None without a checkpoint, and the run begins anew.

        Raises:
            InputError: a checkpoint was written by a newer version, or there are some and none can be read.
        """
        observed, steps = None, sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                observed = self._restore(run, step)
                break
            except (OSError, ValueError, KeyError, TypeError) as error:
                if isinstance(error, InputError):
                    raise
                reason = (str(error).splitlines() or [repr(error)])[0]
                logging.warning("%s cannot be read, and is deleted: %s", self._folder / str(step), reason)
                self._manager.delete(step)
        if steps and observed is None:
            raise InputError(f"{self._folder}: none of its checkpoints can be read; valid: delete the folder")
        if run.labeller.journal is not None:
            run.actor.stored = run.labeller.journal.proposals(run.step)
        return observed

    def _restore(self, run: Run, step: int) -> dict[str, Any]:
        done = self._manager.restore(step, args=_ARGS.Composite(done=_ARGS.JsonRestore()))["done"]
        if done["layout"] > LAYOUT:
            raise InputError(
                f"{self._folder / str(step)}: layout {done['layout']}, written by a newer version; "
                f"valid: at most {LAYOUT}"
            )
        items = dict(state=_ARGS.StandardRestore(jax.tree.map(_abstract, _arrays(run.state))))
        if done["remembers"]:
            items["memory"] = _ARGS.StandardRestore()
        found = self._manager.restore(step, args=_ARGS.Composite(**items))
        arrays = found["state"]
        run.set_state(SeaState(**arrays | {"key": jax.random.wrap_key_data(arrays["key"])}))
        run.memory = dict(found["memory"]) if done["remembers"] else {}
        run.step, run.idle = done["step"], done["idle"]
        run.labeller.num_queries, run.labeller.num_dropped = done["queries"], done["dropped"]
        return done["observed"]

    def _keep_proposals(self, run: Run) -> None:
        """Writes what was sampled ahead into the journal, and forgets what no checkpoint needs any more."""
        ahead, journal, oldest = run.actor.pack_ahead(), run.labeller.journal, self._manager.all_steps()
        if journal is None:
            return
        for place, content in enumerate(ahead):
            journal.keep_proposal(run.step + place, content)
        if oldest:
            journal.forget_proposals(min(oldest))

    def close(self) -> None:
        """Waits for the last checkpoint and closes."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._manager.close()


class RunSaver:
    """Saves a run when a checkpoint is due, when somebody asks it to stop, and at its end.

    Args:
        checkpoints: of the run.
        stop: of this process; a request to any process of a run stops all of them at the same step.
    """

    def __init__(self, checkpoints: Checkpoints, stop: StopRequest):
        self._checkpoints, self._stop = checkpoints, stop

    def end_step(self, run: Run, logbook: Logbook, last: bool) -> None:
        """Saves the run where that is due.

        Raises:
            StoppedError: somebody asked for it; the run is saved.
        """
        flags = from_all(np.array([self._checkpoints.due(), self._stop.number], np.int32))
        due, number = bool(flags[0, 0]), int(flags[:, 1].max())  # whether it is due, the main process decides
        if due or number or last:
            self._checkpoints.save(run, logbook.saved())
        if number and not last:
            self._checkpoints.wait()
            name, bought = signal.Signals(number).name, run.labeller.num_queries
            raise StoppedError(
                f"{run.name}: stopped by {name} after {run.step} steps and {bought} of "
                f"{run.config.train.query_budget} labels, and saved; the same command goes on"
            )


def _arrays(state: SeaState) -> dict[str, Any]:
    """Returns the state's arrays by name; a key as its data."""
    return state._asdict() | {"key": jax.random.key_data(state.key)}


def _abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
