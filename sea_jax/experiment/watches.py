"""Watches a run by its metrics: each watch warns once where its value passes the bound of section `watch`.

All is plain Python on the rows of metrics.jsonl. The state is JSON, so that a resumed run warns as one that
was never stopped.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sea_jax.methods import Method
from sea_jax.methods.method import num_members
from sea_jax.types import Config

FINITE = "finite"  # the watch without a bound, which always ends the run


class Facts(NamedTuple):
    """The properties of a method that decide which watches apply to it."""

    members: int  # K; 0 without an ensemble
    choice: int  # M, where rewards choose among the responses; else 0
    of_policy: bool  # whether log-ratios are measured on the policy's own responses
    longest: int  # T, tokens


def facts_of(config: Config, method: Method, longest: int) -> Facts:
    """Returns the facts of a method with its config, on a task of responses of at most `longest` tokens."""
    members = num_members(config, method) if method.learns_ensemble else 0
    choice = method.num_responses(config) if method.chooses else 0
    samples = method.improvement is not None and method.improvement.samples(config) is not None
    return Facts(members, choice, samples or method.reference_share(config) < 1, longest)


@dataclasses.dataclass(frozen=True)
class Alarm:
    """The warning of a watch, as warnings.json holds it.

    Attributes:
        watch: its name.
        queries: labels bought when it came.
        value, bound: of the watch; the bound is the field config.watch.<name>.
        said: both in words.
        advice: what to do.
    """

    watch: str
    queries: int
    value: float
    bound: float
    said: str
    advice: str


class MeanWatch(NamedTuple):
    """A watch of the mean of a metric over the last labels or steps.

    Attributes:
        reads: metrics of a row -> the value, None where the row has none.
        over: field of section `watch`: 'labels' or 'accuracy_labels', which weigh a row by the labels that
            it bought after config.watch.after, or 'steps'.
        below: whether the bound is one from below.
        applies: whether the watch applies to a method.
        said: the value in words.
        advice: what to do.
    """

    reads: Callable[[Mapping[str, float]], float | None]
    over: str
    below: bool
    applies: Callable[[Facts], bool]
    said: str
    advice: str


def kl_per_token(metrics: Mapping[str, float]) -> float | None:
    """Returns a sample of KL(π_θ ‖ π_ref) in nats per token; None where a row has none.

    Of a method that learns between labels it is the mean log-ratio of the last update's samples; else that of
    the pairs, which selection and temperature make no fair draw.
    """
    ratio, length = metrics.get("rloo/kl"), metrics.get("rloo/length")
    if ratio is None or length is None:
        ratio, length = (_pair(metrics, name) for name in ("policy/log_ratio", "duel/length"))
    return ratio / length if ratio is not None and length else None


def _pair(metrics: Mapping[str, float], name: str) -> float | None:
    """Returns the mean of a metric over the chosen and the rejected response."""
    chosen, rejected = (metrics.get(f"{name}_{part}") for part in ("chosen", "rejected"))
    return None if chosen is None or rejected is None else (chosen + rejected) / 2


MEANS = {
    "agreement": MeanWatch(
        lambda metrics: metrics.get("ensemble/probability_std"), "labels", True,
        lambda facts: facts.members > 1,
        "the heads' probabilities of new labels differ by {value:.3g} (standard deviation)",
        "labels teach no more than random ones; raise ensemble.prior_scale or lower ensemble.regularization",
    ),
    "distinct": MeanWatch(
        lambda metrics: metrics.get("duel/distinct_responses"), "steps", True,
        lambda facts: facts.choice > 2,
        "{value:.3g} distinct responses to a prompt",
        "there is nothing left to choose; raise train.temperature, sea.reference_share or rloo.kl_weight",
    ),
    "kl": MeanWatch(
        kl_per_token, "steps", False,
        lambda facts: facts.of_policy,
        "KL to the starting policy is {value:.3g} nats per token",
        "read samples.jsonl; lower the learning rate, raise train.beta or rloo.kl_weight, or set rloo.max_kl",
    ),
    "accuracy": MeanWatch(
        lambda metrics: metrics.get("ensemble/accuracy_chosen"), "accuracy_labels", True,
        lambda facts: facts.members > 0,
        "the posterior predicts {value:.3g} of the new labels",
        "its features do not show what the oracle prefers, or the oracle guesses; change section backbone",
    ),
    "drift": MeanWatch(
        lambda metrics: metrics.get("ensemble/nll_chosen"), "labels", False,
        lambda facts: facts.members > 0,
        "the log-loss of new labels under the posterior is {value:.3g} nats",
        "guessing has 0.69: the posterior is sure and wrong, and the policy may exploit it; set "
        "rloo.max_surprise or rloo.max_kl, or lower ensemble.prior_scale",
    ),
}  # fmt: skip
_LENGTH = "eval/mean_length"
_LENGTH_ADVICE = "read samples.jsonl; the oracle may reward length, or the policy exploit it"


class Watches:
    """The watches of one run.

    Args:
        config: section `watch`.
        facts: of the method.
        queries: labels bought so far.
        saved: of a restored run: what `saved` returned; None: the run begins.
    """

    def __init__(self, config: Config, facts: Facts, queries: int, saved: Mapping[str, Any] | None = None):
        self._config, self._facts, self._queries = config, facts, queries
        saved = saved or {}
        self.alarms = [Alarm(**alarm) for alarm in saved.get("alarms", [])]
        self._length: float | None = saved.get("length")  # at the start
        rows = saved.get("rows", {})
        # Of every watch the last rows, as [weight, value].
        self._rows = {name: [list(row) for row in rows.get(name, [])] for name in MEANS}

    def see(self, queries: int, metrics: Mapping[str, float]) -> list[Alarm]:
        """Reads a row of metrics; returns the alarms that it sets off."""
        bought, self._queries = queries - self._queries, queries
        known = {name: value for name, value in metrics.items() if math.isfinite(value)}
        found = [self._mean(name, watch, bought, known) for name, watch in MEANS.items()]
        found.append(self._lengths(known))
        return [alarm for alarm in found if alarm is not None and self._armed(alarm.watch)]

    def note(self, alarm: Alarm) -> None:
        """Keeps an alarm, after which its watch is silent."""
        self.alarms.append(alarm)

    def ending(self) -> Alarm | None:
        """Returns the first alarm of a watch in config.watch.stop, at its present bound: it ends the run."""
        ends = [alarm for alarm in self.alarms if alarm.watch in self._config.stop]
        return next((alarm for alarm in ends if alarm.bound == self._config[alarm.watch]), None)

    def saved(self) -> dict[str, Any]:
        """Returns the state, as JSON."""
        alarms = [dataclasses.asdict(alarm) for alarm in self.alarms]
        return dict(alarms=alarms, rows=self._rows, length=self._length)

    def _armed(self, name: str) -> bool:
        """Tells whether the watch has not warned at its present bound."""
        return (name, self._config[name]) not in {(alarm.watch, alarm.bound) for alarm in self.alarms}

    def _alarm(self, name: str, value: float, said: str, advice: str) -> Alarm:
        return Alarm(name, self._queries, value, self._config[name], said, advice)

    def _mean(self, name: str, watch: MeanWatch, bought: int, metrics: Mapping[str, float]) -> Alarm | None:
        """Returns the alarm of a watch of `MEANS` whose mean has passed its bound; None without one."""
        value, of_labels, least = watch.reads(metrics), watch.over != "steps", self._config[watch.over]
        weight, unit = (bought, "labels") if of_labels else (1, "steps")
        early = of_labels and self._queries <= self._config.after
        if value is None or not weight or early or not watch.applies(self._facts):
            return None
        rows, bound = self._rows[name], self._config[name]
        rows.append([weight, value])
        while sum(weight for weight, _ in rows[1:]) >= least:
            del rows[0]
        total = sum(weight for weight, _ in rows)
        mean = sum(weight * value for weight, value in rows) / total
        if total < least or not (mean < bound if watch.below else mean > bound):
            return None
        passed = "below" if watch.below else "above"
        said = f"{watch.said.format(value=mean)} over the last {least} {unit}, {passed} {bound:g}"
        return self._alarm(name, mean, said, watch.advice)

    def _lengths(self, metrics: Mapping[str, float]) -> Alarm | None:
        """Returns the alarm of the greedy responses' mean length, which every evaluation measures."""
        length, most = metrics.get(_LENGTH), self._config.length
        if length is None:
            return None
        if self._length is None:
            self._length = length
        low, high = length_bounds(self._length, self._facts.longest, most)
        if math.isinf(most) or low <= length <= high:
            return None
        said = f"greedy responses have {length:.3g} tokens, {self._length:.3g} at the start; not in {low:.3g}"
        said += f" to {high:.3g}"
        return self._alarm("length", length / self._length, said, _LENGTH_ADVICE)


def length_bounds(start: float, longest: int, times: float) -> tuple[float, float]:
    """Returns the shortest and the longest mean length that is no alarm, in tokens.

    Where responses had room at the start, most of them at the limit T is an alarm too: they are cut there.
    """
    high = start * times
    if start < 0.9 * longest:
        high = min(high, 0.95 * longest)
    return start / times, high
