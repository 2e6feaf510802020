"""Gives runs the labels that exist already: those imported into the work directory, before any is bought."""

from pathlib import Path

import msgpack
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from sea_jax.actors import given
from sea_jax.config.oracle import REMOTE_KINDS
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
    if config.oracle.kind not in REMOTE_KINDS:
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


def number_of(journal: Journal | None, workdir: Path, task: Task) -> int:
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
            _warn(f"{len(found) - kept} of {len(found)} imported labels left out: too long, or equal")
        return msgpack.packb(kept) or b""

    return msgpack.unpackb(bytes_from_main(count))


def hand_out(run: Run) -> None:
    """Places the labels that no step uses yet at the run's next steps, within its budget, and gives all of
    them to its actor."""

    def placed() -> bytes:
        journal, task, size = run.labeller.journal, run.actor.task, run.config.train.batch_size
        if journal is None:
            return msgpack.packb([]) or b""
        duels = imports.duels(journal, run.step)
        fresh = [duel for duel in duels if duel.step == ELSEWHERE]
        fresh = [fresh[row] for row in np.flatnonzero(given.fits(task, fresh))]
        left = run.config.train.query_budget - run.labeller.num_queries - (len(duels) - _count(duels))
        imports.place(journal, [duel.id for duel in fresh[: max(left, 0)]], run.step, size)
        return msgpack.packb([d for d in imports.duels(journal, run.step) if d.step != ELSEWHERE]) or b""

    run.actor.given = given.by_step([Duel(*row) for row in msgpack.unpackb(bytes_from_main(placed))])


def _count(duels: list[Duel]) -> int:
    """Counts the duels that no step uses yet."""
    return sum(duel.step == ELSEWHERE for duel in duels)


def _warn(message: str) -> None:
    logging.warning(message)  # `main` shows warnings only
