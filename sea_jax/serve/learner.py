"""Learns from the choices of users while the chat goes on: a run whose duels arrive with their labels."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from sea_jax.actors.actor import Actor
from sea_jax.actors.sampler import VersionedParams
from sea_jax.errors import InputError, StoppedError, WatchError
from sea_jax.experiment import checkpoints
from sea_jax.experiment.run import OpenRun
from sea_jax.labels.chat import ChatDuels, Rollback
from sea_jax.labels.imports import Duel
from sea_jax.oracles.protocol import Answers, ArrivedFn, Places
from sea_jax.people.verdicts import probability
from sea_jax.run import Observer, Record, Run
from sea_jax.serve.engine import Engine
from sea_jax.train import train
from sea_jax.types import Array

_POLL_S = 0.1


class ChatOracle:
    """P(y ≻ y' | x) of the users of a chat, whose choices are there before a step asks.

    Args:
        duels: of the work directory.
        ties: as config.oracle.ties.
    """

    reports_arrivals = True

    def __init__(self, duels: ChatDuels, ties: str):
        self._duels, self._ties = duels, ties

    def offer(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str], places: Places
    ) -> None:
        """Does nothing: users have chosen before."""

    def answers(
        self,
        prompts: Sequence[str],
        first: Sequence[str],
        second: Sequence[str],
        arrived: ArrivedFn | None = None,
        places: Places | None = None,
    ) -> Answers:
        """Returns what users chose; B comparisons of one step."""
        assert places is not None, "the choices of users belong to a step of a journal"
        chosen: dict[tuple[str, str, str], list[Any]] = {}
        for one in self._duels.of_step(places.step):
            chosen.setdefault((one.prompt, one.first, one.second), []).append(one)
        found, names = np.full(len(prompts), np.nan), []
        for row, texts in enumerate(zip(prompts, first, second, strict=True)):
            one = chosen[texts].pop(0)
            found[row] = probability([one.verdict], ties=self._ties)
            names.append(f"user {one.user}")
        if arrived is not None and names:
            arrived(range(len(prompts)), found, names)
        return Answers(found, ~np.isnan(found))


class ChatActor(Actor):
    """Hands out the pairs that users chose from, B at a time, in place of samples.

    Args:
        run: whose actor it becomes.
        duels: of the work directory.
        learner: does what operators ask for while choices are waited for.
    """

    def __init__(self, run: Run, duels: ChatDuels, learner: Learner):
        sampler, ref_params = run.actor.sampler, run.ref_params
        super().__init__(run.config, run.actor.task, sampler, run.mesh, run.method, ref_params, run.seed)
        self.given, self._run, self._duels, self._learner = run.actor.given, run, duels, learner
        self._versions: dict[int, int] = {}

    def begin(self, policy: VersionedParams, step: int, key: Array) -> None:
        """Waits for the choices of step t; imported labels come first."""
        self._learner.begin_step(step)
        while step not in self.given:
            self._learner.operate()
            left = self.config.train.query_budget - self._run.labeller.num_queries
            size, with_ties = min(self.config.train.batch_size, left), self.config.oracle.ties == "coin"
            chosen = [] if self._duels.paused() else self._duels.take(step, size, with_ties)
            if chosen:
                self._versions[step] = min(one.version for one in chosen)
                self.given[step] = [
                    Duel(c.id, step, c.row, c.prompt, c.first, c.second, c.first_tokens, c.second_tokens)
                    for c in chosen
                ]
            else:
                time.sleep(_POLL_S)
        super().begin(policy, step, key)

    def policy_step(self, step: int) -> int:
        """Returns the oldest version that wrote an answer of step t."""
        return self._versions.get(step, step)


class Learner(Observer):
    """Runs Algorithm 2 on users' choices, publishes each version, and does what operators ask for.

    Args:
        opened: the run; its actor is replaced.
        duels: of the work directory.
        engine: gets each version of the policy.
    """

    def __init__(self, opened: OpenRun, duels: ChatDuels, engine: Engine):
        self._opened, self._duels, self._engine = opened, duels, engine
        self.run = opened.run
        self.run.actor = ChatActor(self.run, duels, self)
        self.ended = ""  # why nothing is learned any more
        self._publish()

    @property
    def asks(self) -> bool:
        """Tells whether a choice would be learned from."""
        return not self.ended and not self._duels.paused()

    def versions(self) -> list[int]:
        """Returns the versions that can be taken up again, the newest first."""
        return self._opened.saved.steps()

    def learn(self) -> None:
        """Learns until the budget is spent, then waits for a signal.

        Raises:
            StoppedError: a signal came; the run is saved.
        """
        try:
            train(self.run, self)
            self.ended = f"the budget of {self.run.config.train.query_budget} labels is spent"
        except (FloatingPointError, WatchError) as error:
            self.ended = str(error)
        logging.warning("%s: learns no more, and goes on answering: %s", self.run.name, self.ended)
        while True:
            self._stop_if_asked()
            time.sleep(_POLL_S)

    # Observer

    def begin(self, run: Run) -> None:
        """Lets the logbook begin."""
        self._opened.logbook.begin(run)

    def flush(self) -> None:
        """Lets the logbook write the metrics of the last step."""
        self._opened.logbook.flush()

    def end_step(self, run: Run, record: Record, last: bool) -> None:
        """Publishes the new version, and lets the logbook end the step."""
        self._publish()
        self._opened.logbook.end_step(run, record, last)

    # While choices are waited for

    def begin_step(self, step: int) -> None:
        """Repeats the rollbacks that were done before this step: a checkpoint of it does not have them."""
        for rollback in self._duels.rollbacks(step):
            self._roll_back(rollback, step)

    def operate(self) -> None:
        """Does what operators ask for.

        Raises:
            StoppedError: a signal came; the run is saved.
        """
        self._stop_if_asked()
        for rollback in self._duels.rollbacks():
            self._roll_back(rollback, self.run.step)

    def _stop_if_asked(self) -> None:
        if not self._opened.stop.number:
            return
        if not self.ended:
            self._opened.saver.save(self.run, self._opened.logbook)
        name, bought = signal.Signals(self._opened.stop.number).name, self.run.labeller.num_queries
        raise StoppedError(
            f"{self.run.name}: stopped by {name} after {self.run.step} steps and {bought} labels, and saved; "
            "the same command goes on"
        )

    def _roll_back(self, rollback: Rollback, step: int) -> None:
        """Takes up the policy of an earlier version; posterior, labels and steps stay."""
        try:
            self.run.set_state(
                self.run.state._replace(
                    policy=checkpoints.policy_of(self._opened.saved, self.run, rollback.version)
                )
            )
        except InputError as error:
            logging.warning("no rollback to version %d: %s", rollback.version, error)
            self._duels.end_rollback(rollback, step, "it has no checkpoint that can be read")
            return
        self._duels.end_rollback(rollback, step)
        self._publish()
        logging.warning("%s: version %d is taken up again", self.run.name, rollback.version)

    def _publish(self) -> None:
        heads = None if self.run.state.ensemble is None else self.run.state.ensemble.params
        self._engine.publish(self.run.step, self.run.state.policy.params, heads)
