"""Length-controlled win rate: what a model's win rate would be if its outputs were as long as the baseline's.

A logistic model of the preferences has a term of the model, of the difference of lengths, and of the
instruction; the win rate is its mean prediction without the second.

Reference: Dubois, Galambosi, Liang and Hashimoto (2024), Length-Controlled AlpacaEval, arXiv:2404.04475. The
penalty and the way to choose it are those of the package alpaca_eval 0.6.6, whose numbers these are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from sea_jax.errors import InputError
from sea_jax.tasks import sources

FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)  # C, of the losses against the penalty
GAMED_WEIGHT = 0.2 / 2  # of an annotation of either model that was told to be verbose or concise
_DIFFICULTY, _INDEX = "instruction_difficulty", "index"
_GAMED = ("preference", "std_delta_len", "not_gamed_baseline")
_VALID = "instruction_difficulty.csv or df_gamed.csv of the data set tatsu-lab/alpaca_eval"
_CLIP = 1e-15


class Rows(NamedTuple):
    """What the model is fitted to, N rows."""

    features: np.ndarray  # [N, F] f64: length, instruction where its difficulty is known, model
    preference: np.ndarray  # [N] f64 in [0, 1]
    weight: np.ndarray  # [N] f64

    def part(self, keep: np.ndarray) -> Rows:
        """Returns the rows that are kept, [N] bool."""
        return Rows(*(column[keep] for column in self))


class Difficulty(NamedTuple):
    """Published difficulties of the instructions, and annotations of models that were told how long to be."""

    of: Mapping[int, float]  # by the instruction's place in the published prompts
    gamed: Rows | None  # None: the file has none


class Score(NamedTuple):
    """Win rates in percent, with standard errors over instructions."""

    win_rate: float
    standard_error: float
    length_controlled: float
    length_controlled_error: float
    strength: float  # C that cross-validation chose; NaN where nothing was fitted
    coefficients: tuple[float, ...]  # length, instruction (if its difficulty is known), model


def read_difficulty(file: Path) -> Difficulty:
    """Reads difficulties of instructions, and the annotations of gamed models where the file has them.

    Args:
        file: csv with the columns index and instruction_difficulty; with preference (in [0, 1]),
            std_delta_len and not_gamed_baseline too, its rows are fitted along with the model's.

    Raises:
        InputError: it cannot be read, a column is missing, or a value is no number.
    """
    table = sources.read_file(file, {_INDEX, _DIFFICULTY, *_GAMED})
    for name in (_INDEX, _DIFFICULTY):
        if name not in table.columns or not table.rows:
            raise InputError(f"{file}: no column {name} with a row; valid is {_VALID}")
    difficulty: dict[int, float] = {}
    for row in table.rows:  # the first row of an instruction counts, as in the package
        difficulty.setdefault(int(_number(row, _INDEX)), _number(row, _DIFFICULTY))
    return Difficulty(difficulty, _gamed(table.rows) if table.columns.issuperset(_GAMED) else None)


def _number(row: sources.Row, name: str) -> float:
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{row.place}: {name}={row[name]!r}; valid is a number")
    return value


def _gamed(rows: Sequence[sources.Row]) -> Rows:
    """Returns the annotations of gamed models in a csv, without those that have no preference."""
    rows = [row for row in rows if row["preference"] not in ("", "nan", "NaN")]
    column = lambda name: np.array([_number(row, name) for row in rows])  # noqa: E731
    usual = np.array([row["not_gamed_baseline"] == "True" for row in rows], float)
    features = np.stack([np.tanh(column("std_delta_len")), column(_DIFFICULTY), usual], -1)
    return Rows(features, column("preference"), np.where(usual, 1.0, GAMED_WEIGHT))


def score(
    preference: np.ndarray, model_length: np.ndarray, baseline_length: np.ndarray,
    instructions: Sequence[int] | None = None, difficulty: Difficulty | None = None,
) -> Score:  # fmt: skip
    """Computes the win rate and the length-controlled win rate of a model against a baseline.

    P(model ≻ baseline) = σ(θ + φ tanh((len_baseline − len_model) / s) + ψ d), with s the standard deviation
    of the difference of lengths and d the instruction's difficulty; the length-controlled win rate is the
    mean of σ(θ + ψ d) over the instructions.

    Args:
        preference: [N] f64, P(model ≻ baseline); NaN where there is none. Such a row is not fitted, but is
            predicted, as in the package.
        model_length, baseline_length: [N] characters.
        instructions: N keys of `difficulty.of`; not read without difficulties.
        difficulty: None: no term of the instruction, as the package's length_controlled_minimal. Without
            gamed annotations: length_controlled_noreg. With both: length_controlled_v1, the published score.

    Returns:
        The score.

    Raises:
        InputError: fewer preferences than folds, all outputs differ from the baseline's by the same length,
            or an instruction has no difficulty.
    """
    known = ~np.isnan(preference)
    if known.sum() < FOLDS:
        raise InputError(f"annotations: {known.sum()} with a preference; valid is at least {FOLDS}")
    difference = np.asarray(baseline_length, float) - np.asarray(model_length, float)
    spread = difference.std(ddof=1)
    if not spread > 0:
        said = "all outputs differ from the baseline's by the same length"
        raise InputError(f"annotations: {said}; valid are outputs of which some differ by more")
    neutral, gamed = (
        _without_length(len(preference), instructions, difficulty),
        difficulty and difficulty.gamed,
    )
    features = neutral.copy()
    features[:, 0] = np.tanh(difference / spread)
    rows = Rows(features, preference, np.ones(len(preference))).part(known)
    if gamed is not None:
        rows = Rows(*(np.concatenate(both) for both in zip(gamed, rows, strict=True)))
    strength = choose_strength(rows)
    coefficients = fit(rows, strength)
    predicted = expit(neutral @ coefficients)
    return Score(
        *_mean_and_error(preference[known]),
        *_mean_and_error(predicted),
        strength,
        tuple(coefficients.tolist()),
    )


def _without_length(
    size: int, instructions: Sequence[int] | None, difficulty: Difficulty | None
) -> np.ndarray:
    """Returns the features [N, F] of the model's rows, with 0 as the difference of lengths."""
    columns = [np.zeros(size), np.ones(size)]
    if difficulty is not None:
        missing = [index for index in instructions or () if index not in difficulty.of]
        if missing:
            valid = f"one of the {len(difficulty.of)} instructions with a difficulty"
            raise InputError(
                f"annotations: instruction {missing[0]} of the prompts (from 0); valid is {valid}"
            )
        columns.insert(1, np.array([difficulty.of[index] for index in instructions or ()]))
    return np.stack(columns, -1)


def _mean_and_error(share: np.ndarray) -> tuple[float, float]:
    """Returns mean and standard error in percent."""
    return 100 * float(share.mean()), 100 * float(share.std(ddof=1) / math.sqrt(len(share)))


def choose_strength(rows: Rows) -> float:
    """Chooses C by the held-out loss in five folds; row i is in fold i mod 5.

    The fold's loss is the mean of weighted log losses, and the smallest C of equal ones is taken.
    """
    fold = np.arange(len(rows.preference)) % FOLDS
    losses = np.zeros(len(STRENGTHS))
    for held in range(FOLDS):
        train, test = rows.part(fold != held), rows.part(fold == held)
        for place, strength in enumerate(STRENGTHS):
            p = np.clip(expit(test.features @ fit(train, strength)), _CLIP, 1 - _CLIP)
            loss = test.preference * np.log(p) + (1 - test.preference) * np.log(1 - p)
            losses[place] -= (test.weight * loss).mean()
    return float(STRENGTHS[losses.argmin()])


def fit(rows: Rows, strength: float) -> np.ndarray:
    """Fits w, [F]: minimises |w|₁ + C Σ weight · log loss of σ(x·w), by Newton steps with a line search."""
    x, y, weight = rows.features, rows.preference, strength * rows.weight
    objective = lambda w: float(np.abs(w).sum() + weight @ (np.logaddexp(0, x @ w) - y * (x @ w)))  # noqa: E731
    w = np.zeros(x.shape[1])
    for _ in range(100):
        p = expit(x @ w)
        gradient = x.T @ (weight * (p - y))
        step = _newton_step(w, gradient, (x.T * (weight * p * (1 - p))) @ x)
        if np.abs(step).max() < 1e-9:
            break
        now, size = objective(w), 1.0
        promised = gradient @ step + np.abs(w + step).sum() - np.abs(w).sum()
        while objective(w + size * step) > now + 1e-4 * size * promised and size > 1e-8:
            size /= 2
        w = w + size * step
    return w


def _newton_step(w: np.ndarray, gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """Minimises g·s + s·H·s / 2 + |w + s|₁ over the step s: the best of the minima for the signs of w + s."""
    hessian = hessian + 1e-10 * np.eye(len(w))
    best, least = np.zeros(len(w)), float(np.abs(w).sum())
    for signs in itertools.product((-1.0, 0.0, 1.0), repeat=len(w)):
        free, step = np.array(signs) != 0, -w  # where the sign is 0, w + s is 0
        known = gradient + np.array(signs) + hessian[:, ~free] @ step[~free]
        step[free] = np.linalg.solve(hessian[np.ix_(free, free)], -known[free])
        value = float(gradient @ step + step @ hessian @ step / 2 + np.abs(w + step).sum())
        if value < least:
            best, least = step, value
    return best
