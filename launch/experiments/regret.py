"""Regret of the strategies on dueling bandits, where Algorithm 1 is tractable (Sec. 2)."""

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sea_jax.bandits import (
    Agent,
    FinitePosterior,
    Problem,
    Rounds,
    from_preferences,
    from_rewards,
    linear,
    simulate,
)
from sea_jax.ensemble.linear import LinearPosterior
from sea_jax.ensemble.posterior import Posterior
from sea_jax.types import Array, Params

STRATEGIES = {  # row of ensemble.STRATEGIES -> its name in the report
    "ee_ts": "E&E-TS",
    "bai_ts": "BAI-TS",
    "uncertainty": "Uncertainty",
    "infomax": "InfoMax",
    "i_optimal": "I-optimal",
    "double_reverse_ts": "DRTS",
    "delta_ucb": "DeltaUCB",
    "passive": "random pair",
}
DRAWS, SCALE, ARMS, CONTEXTS, WIDTH, HYPOTHESES = 64, 3.0, 10, 4, 8, 64


class Case(NamedTuple):
    """A family of problems, and the posterior that learns it."""

    about: str
    draw: Callable[[Array], tuple[Problem, Params | None]]  # keys [S] -> problems and priors, leaves [S, ...]
    posterior: Posterior
    num_rounds: int


def _draw(key: Array, num_rewards: int) -> tuple[Array, Array]:
    """Draws features [X, A, E] and the weights [H, E] of H linear rewards, as `bandits.linear` does."""
    feature_key, weight_key = jax.random.split(key)
    features = jax.random.normal(feature_key, (CONTEXTS, ARMS, WIDTH))
    return features, jax.random.normal(weight_key, (num_rewards, WIDTH)) * SCALE / WIDTH**0.5


@jax.vmap
def _linear(key: Array) -> tuple[Problem, None]:
    return linear(key, CONTEXTS, ARMS, WIDTH, SCALE), None


@jax.vmap
def _bounded(key: Array) -> tuple[Problem, None]:
    """Draws rewards between 0 and SCALE, a logistic function of w · φ, which no linear reward equals."""
    features, weights = _draw(key, 1)
    return from_rewards(features, SCALE * jax.nn.sigmoid(features @ weights[0])), None


@jax.vmap
def _finite(key: Array) -> tuple[Problem, Params]:
    """Draws one of 64 reward functions, which the posterior knows."""
    features, weights = _draw(key, HYPOTHESES)
    return from_rewards(features, features @ weights[0]), {"weights": weights}


def _cycle(keys: Array) -> tuple[Problem, None]:
    """Takes three arms that beat each other in a circle, and a fourth that loses to all."""
    table = np.full((4, 4), 0.5)
    for winner, loser in ((0, 1), (1, 2), (2, 0), (0, 3), (1, 3), (2, 3)):
        table[winner, loser], table[loser, winner] = 0.8, 0.2
    problem = from_preferences(table[None])
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (len(keys), *x.shape)), problem), None


# One label moves the mode little, so that one step of Newton's method finds it.
LAPLACE = LinearPosterior(DRAWS, SCALE, newton_steps=1, step_lengths=4)
CASES = {
    "linear": Case("linear rewards, Laplace posterior", _linear, LAPLACE, 200),
    "finite": Case("64 reward functions, exact posterior", _finite, FinitePosterior(DRAWS), 100),
    "bounded": Case("bounded rewards, Laplace posterior", _bounded, LAPLACE, 200),
    "cycle": Case("preferences in a circle, Laplace posterior", _cycle, LAPLACE, 200),
}
Results = dict[str, dict[str, Any]]  # case -> strategy -> Rounds of NumPy arrays [S, T] f32


def run(folder: Path, num_seeds: int, num_rounds: int | None = None) -> str:
    """Runs every strategy on the same problems, and writes figure.png and data.csv.

    Args:
        folder: what is written.
        num_seeds: S, at least 2; seed s has the same problem and the same keys under every strategy.
        num_rounds: T; None: each case's own.

    Returns:
        Tables and what they say.
    """
    results: Results = {}
    seconds = 0.0
    for name, case in CASES.items():
        results[name] = {}
        for strategy in STRATEGIES:
            start = time.monotonic()
            rounds = one(case, strategy, num_seeds, num_rounds or case.num_rounds)
            results[name][strategy] = jax.tree.map(np.asarray, rounds)
            seconds += time.monotonic() - start
    _figure(results, folder / "figure.png")
    _data(results, folder / "data.csv")
    parts = [f"{num_seeds} seeds, mean ± standard error; {seconds:.0f} s with compiling\n"]
    return "\n".join([*parts, *(_tables(CASES[name].about, found) for name, found in results.items())])


def one(case: Case, strategy: str, num_seeds: int, num_rounds: int) -> Rounds:
    """Runs one strategy on one case: arrays [S, T]."""
    problem_keys, keys = (jax.random.split(jax.random.key(i), num_seeds) for i in range(2))
    problems, priors = case.draw(problem_keys)
    return simulate(keys, problems, Agent(strategy, case.posterior), num_rounds, priors)


def _mean(values: np.ndarray, digits: int = 1) -> str:
    error = values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"


def _tables(about: str, found: dict[str, Any]) -> str:
    total = {name: rounds.regret.sum(1) for name, rounds in found.items()}
    last = {name: rounds.simple_regret[:, -1] for name, rounds in found.items()}
    num_rounds = next(iter(found.values())).regret.shape[1]
    at = [num_rounds // 4 - 1, num_rounds // 2 - 1, num_rounds - 1]
    head = ["strategy", "cumulative regret", "second half's share"]
    lines = [[*head, *(f"simple, {t + 1} rounds" for t in at), "void rounds"]]
    for name, rounds in found.items():
        second_half = rounds.regret[:, num_rounds // 2 :].sum(1).mean() / max(total[name].mean(), 1e-9)
        simple = [_mean(rounds.simple_regret[:, t], 4) for t in at]
        line = [STRATEGIES[name], _mean(total[name]), f"{second_half:.2f}", *simple]
        lines.append([*line, f"{rounds.void.mean():.3f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(
        [about, *rows, _lowest("cumulative regret", total, 1), _lowest("simple regret", last, 4), ""]
    )


def _lowest(what: str, values: dict[str, np.ndarray], digits: int) -> str:
    """Says which strategy has the lowest mean, and how far the next is, paired over seeds."""
    best, second = sorted(values, key=lambda name: values[name].mean())[:2]
    ahead = _mean(values[second] - values[best], digits)
    return f"lowest {what}: {STRATEGIES[best]}; next {STRATEGIES[second]}, by {ahead}"


def _figure(results: Results, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, panels = plt.subplots(2, len(results), figsize=(5 * len(results), 8), layout="constrained")
    for column, (name, found) in zip(panels.T, results.items(), strict=True):
        for i, (strategy, rounds) in enumerate(found.items()):
            for axes, values in zip(column, (rounds.regret.cumsum(1), rounds.simple_regret), strict=True):
                _band(axes, values, STRATEGIES[strategy], f"C{i}")
        column[0].set(title=CASES[name].about, ylabel="cumulative regret")
        column[1].set(xlabel="rounds", ylabel="simple regret", yscale="log", ylim=(1e-4, 1))
    panels[0, 0].legend()
    fig.savefig(file, dpi=100)
    plt.close(fig)


def _band(axes: Any, values: np.ndarray, label: str, color: str) -> None:
    """Draws the mean over seeds with a band of 95 %."""
    x, mean = np.arange(1, values.shape[1] + 1), values.mean(0)
    error = 1.96 * values.std(0, ddof=1) / len(values) ** 0.5
    axes.plot(x, mean, label=label, color=color)
    axes.fill_between(x, np.maximum(mean - error, 1e-4), mean + error, alpha=0.2, color=color)
    axes.grid(alpha=0.3)


def _data(results: Results, file: Path) -> None:
    """Writes mean and standard error over seeds after every fifth round."""
    with open(file, "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(
            ["case", "strategy", "round", "cumulative", "cumulative_se", "simple", "simple_se", "void"]
        )
        for case, found in results.items():
            for strategy, rounds in found.items():
                total, simple = rounds.regret.cumsum(1), rounds.simple_regret
                root = len(total) ** 0.5
                for t in range(4, total.shape[1], 5):
                    numbers = [values[:, t] for values in (total, simple)]
                    cells = [f"{f:.5g}" for v in numbers for f in (v.mean(), v.std(ddof=1) / root)]
                    writer.writerow([case, strategy, t + 1, *cells, f"{rounds.void[:, t].mean():.4g}"])
