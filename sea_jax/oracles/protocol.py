"""The interface of preference oracles: the only source of true preferences between two responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

# (compute, like) -> the result of compute(), a tree of arrays with the shapes and dtypes of `like`. In a run
# on several hosts only the main process computes (`sea_jax/runtime/mesh.py:broadcast_from_main`).
BroadcastFn = Callable[[Callable[[], Any], Any], Any]


def compute_locally(compute: Callable[[], Any], like: Any) -> Any:
    """Computes in this process, as a `BroadcastFn` for runs of one process."""
    del like
    return compute()


class Oracle(Protocol):
    """A preference oracle P (paper, Sec. 2). It returns probabilities and draws nothing."""

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """Returns P(first ≻ second | x) for B comparisons.

        Args:
            prompts, first, second: B texts each.

        Returns:
            [B] float64 in [0, 1].
        """
        ...


class ArrivedFn(Protocol):
    """Takes answers that have come while others are awaited."""

    def __call__(self, rows: Sequence[int], probability: np.ndarray, by: Sequence[str] = ()) -> None:
        """Takes the answers to n comparisons of a call.

        Args:
            rows: n rows of the call.
            probability: [n] float64, P(first ≻ second | x); NaN where the answer cannot be used.
            by: n names of who answered, where that differs from answer to answer.
        """
        ...


class Places(NamedTuple):
    """Names of a call's duels in the run's journal, for oracles that keep their questions."""

    ids: Sequence[int]  # B ids of the journal
    step: int  # t
    uncertainty: Sequence[float]  # B, of the posterior about each; 0 where there is none


class Answers(NamedTuple):
    """The answers of an oracle to B comparisons."""

    probability: np.ndarray  # [B] float64 in [0, 1] where answered; undefined elsewhere
    answered: np.ndarray  # [B] bool; False: no usable answer


@runtime_checkable
class PartialOracle(Protocol):
    """An oracle that may leave comparisons unanswered, such as a judge whose reply cannot be read."""

    def answers(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Answers:
        """Returns P(first ≻ second | x) for the answered ones of B comparisons.

        Args:
            prompts, first, second: B texts each.
        """
        ...


@runtime_checkable
class QuestionKeeper(Protocol):
    """An oracle that keeps what it was asked, and is answered later, such as people."""

    def offer(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str], places: Places
    ) -> None:
        """Takes B comparisons that it will be asked about; those that it has already stay as they are."""
        ...


def compare(
    oracle: Oracle | PartialOracle,
    prompts: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    arrived: ArrivedFn | None = None,
    places: Places | None = None,
) -> Answers:
    """Asks an oracle of either kind about B comparisons; an `Oracle` answers all of them.

    Args:
        oracle: whom to ask. One with a true attribute `reports_arrivals` sends several requests, and takes
            `arrived` as a keyword.
        prompts, first, second: B texts each.
        arrived: called with each part of the answers as soon as it is there, also if others fail later; never
            called by an oracle that answers all at once.
        places: of the duels in the journal, by which a `QuestionKeeper` knows them, as a keyword.
    """
    reports = arrived is not None and getattr(oracle, "reports_arrivals", False)
    options: Any = dict(arrived=arrived) if reports else {}
    if isinstance(oracle, QuestionKeeper):
        options["places"] = places
    if isinstance(oracle, PartialOracle):
        return oracle.answers(prompts, first, second, **options)
    return Answers(oracle.probability(prompts, first, second, **options), np.ones(len(prompts), bool))
