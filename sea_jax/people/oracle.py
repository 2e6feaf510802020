"""People as the oracle: duels become questions of the work directory, verdicts become probabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from sea_jax.errors import OpenQuestionsError
from sea_jax.labels.questions import Closed, Question, Questions
from sea_jax.oracles import patience
from sea_jax.oracles.protocol import Answers, ArrivedFn, Places
from sea_jax.people.verdicts import probability
from sea_jax.types import Config

_POLL_S = 0.1


class PeopleOracle:
    """P(y ≻ y' | x) of people, who answer when they like to.

    A duel stays a question of the work directory until it is answered, also while no process of the run
    exists. Each is known by its place in the run's journal, so that none is asked twice.

    Args:
        questions: of the work directory.
        run: name of the run's folder.
        config: the method's; its section `people`, oracle.ties and train.query_budget.
        watch: called while people are waited for, ten times a second; None: nobody waits, and questions that
            are open end the run.
        partial: where nobody waits, a batch with an answer is learned from, and its open questions are
            withdrawn.
    """

    reports_arrivals = True

    def __init__(
        self,
        questions: Questions,
        run: str,
        config: Config,
        watch: Callable[[], None] | None = None,
        partial: bool = False,
    ):
        self._partial = partial
        self._questions, self._run, self._watch = questions, run, watch
        self._config, self._ties = config.people, config.oracle.ties
        self._verdicts, self._names = 0, set()
        questions.set_budget(run, config.train.query_budget)

    def offer(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str], places: Places
    ) -> None:
        """Makes questions of B comparisons; those that are questions already stay as they are."""
        rows = zip(places.ids, prompts, first, second, places.uncertainty, strict=True)
        duels = [
            Question(duel, prompt, one, other, places.step, uncertainty, self._votes(duel))
            for duel, prompt, one, other, uncertainty in rows
        ]
        self._questions.offer(self._run, duels)

    def answers(
        self,
        prompts: Sequence[str],
        first: Sequence[str],
        second: Sequence[str],
        arrived: ArrivedFn | None = None,
        places: Places | None = None,
    ) -> Answers:
        """Returns P(first ≻ second | x) where people said which is better.

        Raises:
            OpenQuestionsError: nobody waits, and questions are open.
        """
        assert places is not None, "people answer duels that have a place in a journal"
        self.offer(prompts, first, second, places)
        found, waiting = np.full(len(prompts), np.nan), {duel: row for row, duel in enumerate(places.ids)}
        while True:
            closed = self._questions.take(self._run, [*waiting])
            for one in closed:
                row = waiting.pop(one.duel)
                found[row] = self._read(one)
                if arrived is not None:
                    arrived([row], found[[row]], [", ".join(name for name, _ in one.verdicts) or "people"])
            if not waiting:
                break
            if self._watch is None:
                if self._partial and not np.isnan(found).all():
                    self._questions.withdraw(self._run, [*waiting])
                    break
                raise OpenQuestionsError(
                    f"{self._run}: {len(waiting)} questions are open in {self._questions.file}; the same "
                    "command goes on when they are answered"
                )
            patience.pause(_POLL_S)
            self._watch()
        return Answers(found, ~np.isnan(found))

    def metrics(self) -> dict[str, float]:
        """Returns the verdicts read and the annotators who gave them, of this process."""
        return {"oracle/verdicts": float(self._verdicts), "oracle/annotators": float(len(self._names))}

    def _votes(self, duel: int) -> int:
        """Returns how many people answer a duel; the same at each call, as a resumed run asks again."""
        digest = hashlib.sha256(f"{self._run}\0{duel}".encode()).digest()
        several = int.from_bytes(digest[:4]) < self._config.overlap * 2**32
        return self._config.votes if several else 1

    def _read(self, closed: Closed) -> float:
        """Returns the probability of a question's verdicts; NaN without a label."""
        self._verdicts += len(closed.verdicts)
        self._names.update(name for name, _ in closed.verdicts)
        verdicts = [verdict for _, verdict in closed.verdicts]
        return probability(verdicts, self._config.combine, self._ties)
