"""Draws binary labels from an oracle's probabilities, counts every label, and keeps the journal of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sea_jax.labels.journal import ANSWERED, ASKED, Answer, Entry, Journal, Question
from sea_jax.oracles import protocol
from sea_jax.oracles.protocol import ArrivedFn, BroadcastFn, Places, compute_locally

MODES = ("threshold", "bernoulli")
_STREAM = 5_180_417  # separates these draws from any other use of the same seed


class Labels(NamedTuple):
    """The labels of B comparisons."""

    prefers_first: np.ndarray  # [B] bool; False where unanswered
    answered: np.ndarray  # [B] bool; False: no label was bought, and the duel is dropped


class _Stored(NamedTuple):
    """Journal entries of B duels, as arrays."""

    waiting: np.ndarray  # [B] bool, True: the oracle is to be asked
    probability: np.ndarray  # [B] float64; NaN without an answer
    prefers_first: np.ndarray  # [B] bool, the label; False without one


class Origin(NamedTuple):
    """Step, tokens and proposals behind the duels of a call, for the journal."""

    step: int  # t
    policy_step: int  # steps that the policy had learned from when it wrote the responses
    rows: np.ndarray  # [B] int, of the step's batch
    tokens: np.ndarray | None = None  # [B, 2, T] int32
    mask: np.ndarray | None = None  # [B, 2, T] bool
    proposal: bytes = b""  # the prompts and responses that they were chosen from
    uncertainty: np.ndarray | None = None  # [B] f32, of the posterior about each duel


class Asked(NamedTuple):
    """Comparisons that were asked, and are yet to be answered."""

    texts: tuple[Sequence[str], Sequence[str], Sequence[str]]  # prompts, first and second responses: B each
    rng_seed: int
    entries: list[Entry] | None  # the journal's; None where nothing is written
    places: Places | None


class Labeller:
    """Asks an oracle P and draws z ∈ {first preferred, second preferred} (paper, Sec. 2).

    Args:
        oracle: the source of P.
        mode: 'threshold' is z = [P > 1/2], an exact tie decided by a fair coin; 'bernoulli' is
            z ~ Bernoulli(P).
        flip_probability: probability in [0, 1] that a label is flipped (App. G.4).
        num_queries: labels bought before, when a run is resumed.
        journal: holds what was asked and answered, of earlier processes too; None: nothing is written. In a
            run on several hosts only the main process has one.
        broadcast: see `BroadcastFn`.

    Attributes:
        num_queries: labels bought so far, in queries.
        num_dropped: comparisons that the oracle left unanswered; they do not count as queries.
    """

    def __init__(
        self,
        oracle: protocol.Oracle | protocol.PartialOracle,
        mode: str = "threshold",
        flip_probability: float = 0.0,
        num_queries: int = 0,
        journal: Journal | None = None,
        broadcast: BroadcastFn = compute_locally,
    ):
        if mode not in MODES:
            raise ValueError(f"mode: {mode!r}, must be one of {MODES}")
        if not 0.0 <= flip_probability <= 1.0:
            raise ValueError(f"flip_probability: {flip_probability}, must lie in [0, 1]")
        if num_queries < 0:
            raise ValueError(f"num_queries: {num_queries}, must be at least 0")
        self.num_queries = num_queries
        self.num_dropped = 0
        self._oracle = oracle
        self._mode = mode
        self._flip_probability = flip_probability
        self.journal, self._broadcast = journal, broadcast

    def label(
        self,
        prompts: Sequence[str],
        first: Sequence[str],
        second: Sequence[str],
        rng_seed: int,
        origin: Origin | None = None,
    ) -> Labels:
        """Calls `ask`, then `wait`."""
        return self.wait(self.ask(prompts, first, second, rng_seed, origin))

    def ask(
        self,
        prompts: Sequence[str],
        first: Sequence[str],
        second: Sequence[str],
        rng_seed: int,
        origin: Origin | None = None,
    ) -> Asked:
        """Asks for B labels, and does not wait for them.

        Args:
            prompts, first, second: B texts each.
            rng_seed: non-negative; the same seed and answers give the same labels.
            origin: of the duels. With it they are written into the journal, and an oracle that keeps
                questions gets them now.

        Returns:
            What `wait` takes.

        Raises:
            ValueError: lengths differ.
        """
        for name, texts in (("first", first), ("second", second)):
            if len(texts) != len(prompts):
                raise ValueError(f"{name}: {len(texts)} given, must be one per prompt, {len(prompts)}")
        texts = prompts, first, second
        entries = self._write_questions(origin, texts) if len(prompts) else None
        places = None if entries is None else _places(entries, origin)
        if places is not None and isinstance(self._oracle, protocol.QuestionKeeper):
            waiting = [row for row, entry in enumerate(entries or ()) if entry.state == ASKED]
            x, y, other = ([column[row] for row in waiting] for column in texts)
            self._oracle.offer(x, y, other, _some(places, waiting))
        return Asked(texts, rng_seed, entries, places)

    def wait(self, asked: Asked) -> Labels:
        """Buys the labels that were asked for, or fewer where the oracle leaves comparisons unanswered.

        Every answer counts as one query, even if it turns out to be unusable; a call that fails costs
        nothing. An unanswered comparison gets no label, not even a random one. What the journal has answered
        is not asked again, and other answers are in it before this returns.

        Args:
            asked: by `ask`.

        Returns:
            Labels of the B comparisons.

        Raises:
            ValueError: the answer is not [B] numbers in [0, 1].
        """
        texts, rng_seed, entries, places = asked
        if not len(texts[0]):
            return Labels(np.zeros(0, bool), np.zeros(0, bool))
        stored = self._stored(entries, len(texts[0]))
        # All three are always drawn, so that a label depends on nothing but its seed and its own answer.
        draws = np.random.default_rng([_STREAM, rng_seed]).random((3, len(texts[0])))
        decide = lambda p, rows: self._decide(p, draws[:, rows])  # noqa: E731
        writer = _AnswerWriter(self.journal, entries, decide, self._spent)
        probability, answered = self._answers(stored, texts, writer, places)
        labels = np.where(stored.waiting, self._decide(probability, draws), stored.prefers_first)
        return Labels(labels & answered, answered)

    def _decide(self, probability: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Returns n labels, bool, of n probabilities and three uniform draws for each, [3, n]."""
        coin, chance, noise = draws
        if self._mode == "threshold":
            labels = np.where(probability == 0.5, coin < 0.5, probability > 0.5)
        else:
            labels = chance < probability
        return labels ^ (noise < self._flip_probability)

    def _spent(self) -> float | None:
        """Returns the US dollars that the oracle says it has cost; None if it does not say."""
        return getattr(self._oracle, "metrics", dict)().get("oracle/cost_usd")

    def _write_questions(self, origin: Origin | None, texts: tuple[Sequence[str], ...]) -> list[Entry] | None:
        """Writes the questions into the journal; returns its entries, None without a journal."""
        if self.journal is None or origin is None:
            return None
        ids = [(np.zeros(0, np.int32),) * 2] * len(origin.rows)
        if origin.tokens is not None and origin.mask is not None:
            pairs = zip(origin.tokens, origin.mask, strict=True)
            ids = [(y[0][keep[0]], y[1][keep[1]]) for y, keep in pairs]
        rows = zip(origin.rows.tolist(), *texts, ids, strict=True)
        questions = [Question(row, *words, *tokens) for row, *words, tokens in rows]
        return self.journal.ask(origin.step, origin.policy_step, questions, origin.proposal)

    def _stored(self, entries: list[Entry] | None, size: int) -> _Stored:
        """Returns what the journal knows of B duels, on all processes; without one all are waiting."""

        def read() -> _Stored:
            known = entries or [Entry(0, ASKED, None, None)] * size
            probability = [entry.probability if entry.state == ANSWERED else np.nan for entry in known]
            return _Stored(
                np.array([entry.state == ASKED for entry in known]),
                np.array(probability, np.float64),
                np.array([bool(entry.prefers_first) for entry in known]),
            )

        return self._broadcast(read, _Stored(np.zeros(size, bool), np.zeros(size), np.zeros(size, bool)))

    def _answers(
        self,
        stored: _Stored,
        texts: tuple[Sequence[str], ...],
        writer: _AnswerWriter,
        places: Places | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Asks the oracle about the duels that are waiting; has each answer written as soon as it is there.

        Returns:
            Probability and answered, [B] each.
        """
        probability, waiting = stored.probability.copy(), stored.waiting
        answered = ~np.isnan(probability)
        self._count(answered[~waiting])
        if waiting.any():
            rows: list[int] = np.flatnonzero(waiting).tolist()
            questions = ([words[row] for row in rows] for words in texts)
            places = None if places is None else _some(places, rows)
            part, found = protocol.compare(self._oracle, *questions, arrived=writer.of(rows), places=places)
            self._count(found)
            probability[rows], answered[rows] = _checked(part, found), found
            writer.write(rows, probability[rows], found)
        return probability, answered

    def _count(self, answered: np.ndarray) -> None:
        self.num_queries += int(answered.sum())
        self.num_dropped += int((~answered).sum())

    def metrics(self) -> dict[str, float]:
        """Returns the number of dropped comparisons and the oracle's own metrics, if it has any."""
        oracle_metrics = getattr(self._oracle, "metrics", dict)
        return {"oracle/dropped": float(self.num_dropped)} | oracle_metrics()


def _places(entries: list[Entry], origin: Origin | None) -> Places:
    """Returns the journal's ids of B duels, and the posterior's uncertainty about them, 0 where unknown."""
    known = None if origin is None else origin.uncertainty
    uncertainty = [0.0] * len(entries) if known is None else known.tolist()
    return Places([entry.id for entry in entries], 0 if origin is None else origin.step, uncertainty)


def _some(places: Places, rows: Sequence[int]) -> Places:
    return Places([places.ids[row] for row in rows], places.step, [places.uncertainty[row] for row in rows])


def _checked(answer: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """Returns the answer as [B] float64; raises ValueError unless it lies in [0, 1] where answered."""
    probability = np.asarray(answer, np.float64)
    if probability.shape != answered.shape:
        raise ValueError(f"oracle: answer of shape {probability.shape}, must be {answered.shape}")
    # A NaN fails both comparisons, so it is caught here too.
    bad = np.flatnonzero(~((probability >= 0.0) & (probability <= 1.0)) & answered)
    if bad.size:
        raise ValueError(f"oracle: probability[{bad[0]}] is {probability[bad[0]]}, must lie in [0, 1]")
    return probability


class _AnswerWriter:
    """Writes the answers of one call into the journal, those that arrive alone too; each once.

    Args:
        journal: None: nothing is written.
        entries: the journal's, of the call's B duels; None: nothing is written.
        decide: (probability, rows of the call) -> labels, bool.
        spent: the US dollars that the oracle has cost so far; None: unknown.
    """

    def __init__(
        self,
        journal: Journal | None,
        entries: list[Entry] | None,
        decide: Callable[[np.ndarray, list[int]], np.ndarray],
        spent: Callable[[], float | None],
    ):
        self._journal, self._entries, self._decide, self._spent = journal, entries, decide, spent
        self._start, self._paid = time.monotonic(), spent()
        self._written: set[int] = set()

    def of(self, asked: list[int]) -> ArrivedFn:
        """Returns the function that an oracle calls with some answers to questions about these rows."""

        def arrived(rows: Sequence[int], probability: np.ndarray, by: Sequence[str] = ()) -> None:
            answered = ~np.isnan(probability)
            self.write([asked[row] for row in rows], _checked(probability, answered), answered, by)

        return arrived

    def write(
        self, rows: list[int], probability: np.ndarray, answered: np.ndarray, by: Sequence[str] = ()
    ) -> None:
        """Writes the answers to rows of the call that are not written yet; they are on the disk then."""
        new = [place for place, row in enumerate(rows) if row not in self._written]
        if self._journal is None or self._entries is None or not new:
            return
        rows, probability, answered = [rows[place] for place in new], probability[new], answered[new]
        labels = self._decide(probability, rows) & answered
        ids = [self._entries[row].id for row in rows]
        names = [by[place] for place in new] if by else [""] * len(new)
        found = zip(ids, answered.tolist(), probability.tolist(), labels.tolist(), names, strict=True)
        paid, self._paid = self._paid, self._spent()
        cost = None if paid is None else (self._paid or 0.0) - paid
        self._journal.answer([Answer(*one) for one in found], time.monotonic() - self._start, cost)
        self._written.update(rows)
