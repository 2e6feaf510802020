"""Gives runs the labels that exist already: those imported into the work directory, before any is bought."""

from pathlib import Path

import msgpack
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from sea_jax.actors import given
from sea_jax.config.oracle import REMOTE_KINDS
from sea_jax.config.people import PEOPLE_KINDS
from sea_jax.errors import InputError
from sea_jax.experiment.oracles import NO_ORACLE
from sea_jax.labels import imports
from sea_jax.labels.imports import Duel
from sea_jax.labels.journal import ELSEWHERE, Journal
from sea_jax.runtime.mesh import bytes_from_main, is_main
from sea_jax.tasks.protocol import Task
from sea_jax.train import Run
from sea_jax.types import Config


def import_into(workdir: Path, source: Path) -> None:
    """Imports the labels of --labels into a work directory; those that it has stay as they are.

    Raises:
        InputError: there is no label.
    """
    if not is_main():
        return
    with imports.open_imported(workdir) as journal:
        added, known = imports.add(journal, imports.read(source))
    if not added + known:
        raise InputError(f"--labels: {source} has no label; valid: a file or folder with at least one")


def without_oracle(config: Config) -> Config:
    """Returns the config of a run that only learns from labels: no service is asked, for evaluation neither.

    Oracles that cost nothing still evaluate.
    """
    if config.oracle.kind not in (*REMOTE_KINDS, *PEOPLE_KINDS):
        return config
    config = ConfigDict(config)
    config.oracle.kind = NO_ORACLE
    return config


def with_budget(config: Config, labels: int) -> Config:
    """Returns a method's config with a budget of so many labels.

    Raises:
        InputError: there is no label that fits the task.
    """
    if not labels:
        raise InputError(
            "--labels: none of them fits the task; valid: prompts and responses within its lengths"
        )
    config = ConfigDict(config)
    config.train.query_budget = labels
    return config


def copy_imported(journal: Journal | None, workdir: Path, task: Task) -> int:
    """Copies the work directory's imported labels into a run's journal; returns how many fit the task.

    Args:
        journal: of the run; None on processes that do not write.
        workdir: of all runs.
        task: whose lengths and tokenizer decide.
    """

    def count() -> bytes:
        assert journal is not None
        imports.add(journal, imports.stored(workdir))
        found = imports.duels(journal, 0)
        kept = int(given.fits(task, found).sum())
        if kept < len(found):
            # A warning, as `main` shows no less.
            left_out = "%d of %d imported labels left out: longer than the task allows, or of equal responses"
            logging.warning(left_out, len(found) - kept, len(found))
        return msgpack.packb(kept) or b""

    return msgpack.unpackb(bytes_from_main(count))


def hand_out(run: Run) -> None:
    """Gives the run's actor its imported labels; those that no step uses yet get the next steps.

    No more are placed than the budget allows.
    """

    def placed() -> bytes:
        journal, task, size = run.labeller.journal, run.actor.task, run.config.train.batch_size
        if journal is None:
            return msgpack.packb([]) or b""
        duels = imports.duels(journal, run.step)
        fresh = [duel for duel in duels if duel.step == ELSEWHERE]
        fresh = [fresh[row] for row in np.flatnonzero(given.fits(task, fresh))]
        waiting = sum(duel.step != ELSEWHERE for duel in duels)
        left = run.config.train.query_budget - run.labeller.num_queries - waiting
        imports.place(journal, [duel.id for duel in fresh[: max(left, 0)]], run.step, size)
        return msgpack.packb([d for d in imports.duels(journal, run.step) if d.step != ELSEWHERE]) or b""

    run.actor.given = given.by_step([Duel(*row) for row in msgpack.unpackb(bytes_from_main(placed))])
