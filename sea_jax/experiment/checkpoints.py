"""Saves a run and restores it, so that a stopped run goes on as if it had never been stopped.

A checkpoint holds what a step changes. The prompts, keys and batches of step t follow from the run's key and
from t.
"""

import signal
from typing import Any

import jax
import msgpack

from sea_jax.errors import InputError, StoppedError
from sea_jax.experiment.logbook import Logbook
from sea_jax.run import Choice, Run
from sea_jax.runtime.checkpoint_folder import CheckpointFolder
from sea_jax.runtime.mesh import bytes_from_main, to_host
from sea_jax.runtime.stop import StopRequest
from sea_jax.types import Duel, PolicyState, SeaState


def save(folder: CheckpointFolder, run: Run, observed: dict[str, Any], score: float | None = None) -> None:
    """Saves a run between two steps.

    Args:
        folder: of the run.
        run: the run; the responses that its actor sampled ahead go into its journal.
        observed: what the observer needs to go on; JSON.
        score: of an evaluation of this policy that was the best so far; None: another checkpoint.

    Raises:
        StorageError: this checkpoint, or the one before, could not be written.
    """
    folder.wait()
    _keep_proposals(folder, run)
    record = dict(
        idle=run.idle, queries=run.labeller.num_queries, dropped=run.labeller.num_dropped, observed=observed
    )
    chosen = {str(posed.step): _saved(posed.choice) for posed in run.posed}
    trees = {name: tree for name, tree in (("memory", run.memory), ("choices", chosen)) if tree}
    folder.save(run.step, record, score, state=_arrays(run.state), **trees)


def restore(folder: CheckpointFolder, run: Run) -> dict[str, Any] | None:
    """Restores a run from the newest checkpoint that can be read.

    Args:
        folder: of the run.
        run: fresh from `make_run`; its mesh may have other devices than the one that saved.

    Returns:
        What the observer had given `save`; None without a checkpoint, and the run begins anew.

    Raises:
        InputError: a checkpoint was written by a newer version; there are some and none can be read; or the
            journal has fewer labels than the checkpoint.
    """
    found = folder.newest(state=_arrays(run.state), memory=None, choices=None)
    if found is not None:
        record, trees = found
        state = trees["state"]
        run.set_state(SeaState(**state | {"key": jax.random.wrap_key_data(state["key"])}))
        run.memory = dict(trees.get("memory", {}))
        run.choices = {int(step): _choice(tree) for step, tree in trees.get("choices", {}).items()}
        run.step, run.idle = record["step"], record["idle"]
        run.labeller.num_queries, run.labeller.num_dropped = record["queries"], record["dropped"]
        _require_labels(run)
    run.actor.stored = _stored_proposals(run)
    return found[0]["observed"] if found else None


def policy_of(folder: CheckpointFolder, run: Run, step: int) -> PolicyState:
    """Reads the policy and its optimizer's state from the checkpoint of a step, onto the run's devices.

    Raises:
        InputError: there is no such checkpoint, or it cannot be read.
    """
    if step not in folder.steps():
        raise InputError(f"{folder.folder}: no checkpoint of step {step}; valid: one of {folder.steps()}")
    return folder.read(step, state=_arrays(run.state))["state"]["policy"]


def _require_labels(run: Run) -> None:
    """Requires in the journal the labels that a run had bought by its checkpoint: it may be a cut one."""
    journal, bought = run.labeller.journal, run.labeller.num_queries
    if journal is not None and (found := journal.count()) < bought:
        raise InputError(
            f"{journal.file}: {found} labels; valid: the {bought} that the run had bought by its checkpoint. "
            "Without a copy of it, delete the run's folder"
        )


def _stored_proposals(run: Run) -> dict[int, bytes]:
    """Returns what the steps from the run's on proposed before, on all processes, by step."""

    def packed() -> bytes:
        journal = run.labeller.journal
        return bytes(msgpack.packb(journal.proposals(run.step) if journal is not None else {}) or b"")

    return msgpack.unpackb(bytes_from_main(packed), strict_map_key=False)


def _keep_proposals(folder: CheckpointFolder, run: Run) -> None:
    """Writes what was sampled ahead into the journal, and forgets what no checkpoint needs any more."""
    ahead, journal, steps = run.actor.pack_ahead(), run.labeller.journal, folder.newest_steps()
    if journal is None:
        return
    for place, content in enumerate(ahead):
        journal.keep_proposal(run.step + len(run.posed) + place, content)
    if steps:
        journal.forget_proposals(min(steps))


class RunSaver:
    """Saves a run when a checkpoint is due, when somebody asks it to stop, and at its end.

    Args:
        folder: of the run.
        stop: of this process; a request to any process of a run stops all of them at the same step.
    """

    def __init__(self, folder: CheckpointFolder, stop: StopRequest):
        self._folder, self._stop = folder, stop

    @property
    def last(self) -> str:
        """The newest checkpoint; empty without one."""
        steps = self._folder.steps()
        return str(self._folder.folder / str(steps[0])) if steps else ""

    def end_step(self, run: Run, logbook: Logbook, last: bool) -> None:
        """Saves the run where that is due.

        Raises:
            StoppedError: somebody asked for it; the run is saved.
        """
        due, number = self._folder.poll(self._stop)
        score = logbook.new_best(run.step) if self._folder.best else None
        if due or number or last or score is not None:
            save(self._folder, run, logbook.saved(), score)
        if number:  # after the last step too: the command has other runs, or files of this one to write
            self._folder.wait()
            name, bought = signal.Signals(number).name, run.labeller.num_queries
            raise StoppedError(
                f"{run.name}: stopped by {name} after {run.step} steps and {bought} of "
                f"{run.config.train.query_budget} labels, and saved; the same command goes on"
            )

    def between_updates(self, run: Run) -> None:
        """Ends the run where the time that a stop may take is over.

        Raises:
            StoppedError: this step is not saved; its labels are in the journal.
        """
        if number := self._folder.overdue(self._stop, run.config.checkpoint.grace_s):
            self._folder.wait()
            name = signal.Signals(number).name
            place = f"{run.name}: stopped by {name} among the updates of step {run.step}"
            goes_on = f"goes on from {self.last}" if self.last else "begins anew"
            raise StoppedError(f"{place}; the same command {goes_on}, with all labels")

    def during_wait(self, run: Run) -> None:
        """Ends a wait for the oracle where the time that a stop may take is over.

        Raises:
            StoppedError: this step is not saved; the answers that came are in the journal.
        """
        if self._stop.overdue(run.config.checkpoint.grace_s):
            place = f"stopped by {self._stop.signal} while it waited for the oracle in step {run.step}"
            raise StoppedError(f"{run.name}: {place}; the same command goes on, with all answers that came")

    def save(self, run: Run, logbook: Logbook) -> None:
        """Saves the run; it is on the disk when this returns."""
        save(self._folder, run, logbook.saved())
        self._folder.wait()


def _saved(choice: Choice) -> dict[str, Any]:
    """Returns a choice as a tree on the host."""
    kept = {} if choice.kept is None else dict(kept=choice.kept)
    return to_host(dict(rewards=choice.rewards, duel=choice.duel._asdict())) | kept


def _choice(tree: dict[str, Any]) -> Choice:
    return Choice(tree.get("kept"), tree["rewards"], Duel(**tree["duel"]))


def _arrays(state: SeaState) -> dict[str, Any]:
    """Returns the state's arrays by name; a key as its data."""
    return state._asdict() | {"key": jax.random.key_data(state.key)}
