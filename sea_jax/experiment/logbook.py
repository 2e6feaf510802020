"""Watches a run: writes its metrics and samples, evaluates it, and saves the inputs of a step that failed."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from sea_jax import models
from sea_jax.errors import WatchError
from sea_jax.evaluate import Evaluator
from sea_jax.experiment.online import OnlineMeter
from sea_jax.experiment.watches import FINITE, Alarm, Watches, facts_of
from sea_jax.methods.scorers import member_rewards
from sea_jax.runtime.mesh import is_main, to_host
from sea_jax.runtime.metrics import MetricWriter
from sea_jax.runtime.progress import bar as progress_bar
from sea_jax.runtime.run_folder import write_warnings
from sea_jax.train import Record, Run


class Saver(Protocol):
    """Saves a run between steps."""

    @property
    def last(self) -> str:
        """The newest checkpoint; empty without one."""
        ...

    def end_step(self, run: Run, logbook: "Logbook", last: bool) -> None:
        """Saves the run where that is due, or asked for."""
        ...

    def save(self, run: Run, logbook: "Logbook") -> None:
        """Saves the run now, and waits until it is on the disk."""
        ...


class Logbook:
    """The observer of `train.train` that an experiment uses.

    Args:
        folder: the run's; also gets the inputs of a step that is not finite.
        writer: of the metrics and samples.
        evaluator: measures the policy every config.eval.every_queries labels.
        saver: keeps checkpoints; None: there are none, and nobody can stop the run.
        restored: of a restored run: what `saved` returned for its checkpoint.
    """

    def __init__(
        self, folder: Path, writer: MetricWriter, evaluator: Evaluator, saver: "Saver | None" = None,
        restored: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        self._folder, self._writer, self._evaluator = folder, writer, evaluator
        self._saver, self._restored = saver, restored
        self._pending: tuple[Record, int] | None = None  # a step, and the labels bought by its end
        self._online = OnlineMeter()
        self.best: dict[str, Any] | None = None  # evaluation: metric, value, step, queries
        self._shown: dict[str, str] = {}  # at the end of the progress bar

    def begin(self, run: Run) -> None:
        """Evaluates the starting policy, unless the run was restored.

        Raises:
            WatchError: a watch ended the restored run, and would again.
        """
        self._run, self._queries = run, run.labeller.num_queries
        watches = None if self._restored is None else self._restored.get("watches")
        facts = facts_of(run.config, run.method, run.actor.task.response_length)
        self._watches = Watches(run.config.watch, facts, self._queries, watches)
        total = run.config.train.query_budget
        self._bar = progress_bar(None, run.name, "query", run.config.progress, total, self._queries)
        if self._restored is not None:
            self._online.restore(self._restored)
            self.best = self._restored.get("best")
            self._evaluator.evaluated = [
                (texts, None if rewards is None else np.array(rewards, np.float32))
                for texts, rewards in self._restored["evaluated"]
            ]
            self._keep_alarms()
            alarm = self._watches.ending()
            if alarm is not None and self._queries < total and run.idle < run.config.train.max_idle_steps:
                raise self._ended(alarm)
            self._bar.compiling("the next step")
            return
        self._keep_alarms()
        self._bar.compiling("the evaluation")
        self._evaluate(0, None)
        self._bar.compiling("the first step")

    def flush(self) -> None:
        """Writes the metrics of the last step; waits until they are computed.

        Raises:
            FloatingPointError: the step's loss or gradient is not finite; its inputs are saved.
        """
        if self._pending is None:
            return
        (record, queries), self._pending = self._pending, None
        start = time.perf_counter()
        metrics = {name: float(value) for name, value in to_host(record.metrics).items()}
        learned = time.perf_counter() - start + record.seconds.get("learn", 0.0)
        if not (metrics["step/finite"] and metrics.get("improve/finite", 1.0)):
            self._tell(_not_finite(record.step, queries))
            last = self._saver.last if self._saver is not None else ""
            _save_inputs(self._run, record, metrics, self._folder / f"non_finite_step_{record.step}", last)
        seconds = {f"time/{stage}_s": value for stage, value in (record.seconds | {"learn": learned}).items()}
        self._write(record.step, queries, metrics | seconds)

    def end_step(self, run: Run, record: Record, last: bool) -> None:
        """Keeps the step's metrics until they are computed; evaluates where that is due.

        Raises:
            WatchError: a watch ended the run, which was saved. The step that set it off is this one or, as
                metrics are read one step late, the one before.
        """
        before, self._queries = self._queries, run.labeller.num_queries
        record = record._replace(metrics=record.metrics | self._online.measure(run, record))
        self._pending = record, self._queries
        self._bar.update(self._queries - before)
        every = run.config.eval.every_queries
        if self._queries // every > before // every or last:
            self.flush()
            self._evaluate(record.step + 1, record)
        if last:
            self._warn_of_early_end()
            self._writer.write_responses(self._evaluator.before_and_after())
            self._bar.close()
        if self._saver is not None:
            self._saver.end_step(run, self, last)
        alarm = self._watches.ending()
        if alarm is not None and not last:
            if self._saver is not None:
                self._saver.save(run, self)
            raise self._ended(alarm)

    def _warn_of_early_end(self) -> None:
        """Warns if the run ends before its budget is spent."""
        budget, dropped = self._run.config.train.query_budget, self._run.labeller.num_dropped
        if self._queries < budget and is_main():
            unanswered = f", or duels without an answer ({dropped} in all)" if dropped else ""
            said = "%s: ended after %d of %d queries, since %d steps in a row had only equal responses%s"
            logging.warning(said, self._run.name, self._queries, budget, self._run.idle, unanswered)

    def saved(self) -> dict[str, Any]:
        """Writes what is pending; returns what a restored run needs to go on, as JSON."""
        self.flush()
        evaluated = [
            (list(texts), None if rewards is None else rewards.tolist())
            for texts, rewards in self._evaluator.evaluated
        ]
        observed = dict(evaluated=evaluated, best=self.best, watches=self._watches.saved())
        return self._online.saved() | observed | dict(files=self._writer.positions())

    def new_best(self, step: int) -> float | None:
        """Returns the value of the evaluation after so many steps if it was the best so far, else None."""
        return self.best["value"] if self.best is not None and self.best["step"] == step else None

    def _evaluate(self, step: int, record: Record | None) -> None:
        start, run = time.perf_counter(), self._run
        metrics = self._evaluator(run.state, run.policy, step)
        if record is not None:
            self._writer.write_samples(completions(run, record, self._queries))
        metrics["time/evaluate_s"] = time.perf_counter() - start
        self._shown |= shown(metrics)
        self._write(step, self._queries, metrics)
        self._bar.set_postfix(self._shown)
        if (name := headline(metrics)) and (self.best is None or metrics[name] > self.best["value"]):
            self.best = dict(metric=name, value=float(metrics[name]), step=step, queries=self._queries)

    def _write(self, step: int, queries: int, metrics: dict[str, float]) -> None:
        """Writes a row of metrics, and tells what the watches say of it."""
        self._writer.write(step, queries, metrics)
        for alarm in self._watches.see(queries, metrics):
            self._tell(alarm)

    def _tell(self, alarm: Alarm) -> None:
        """Warns in the log, on the progress bar and in the run's folder, from where reports read it."""
        self._watches.note(alarm)
        self._keep_alarms()
        if is_main():
            where = self._run.name, alarm.queries, alarm.watch
            logging.warning("%s, %d labels: watch %s: %s; %s", *where, alarm.said, alarm.advice)

    def _keep_alarms(self) -> None:
        """Writes the warnings so far, and shows their names on the progress bar."""
        alarms = self._watches.alarms
        if is_main():
            write_warnings(self._folder, [dataclasses.asdict(alarm) for alarm in alarms])
        if alarms:
            self._shown["WARNING"] = ",".join(dict.fromkeys(alarm.watch for alarm in alarms))
            self._bar.set_postfix(self._shown)

    def _ended(self, alarm: Alarm) -> WatchError:
        """Returns the error that ends the run after an alarm of a watch in config.watch.stop."""
        self._bar.close()
        name, budget = alarm.watch, self._run.config.train.query_budget
        return WatchError(
            f"{self._run.name}: ended by watch {name} after {alarm.queries} of {budget} labels, and saved: "
            f"{alarm.said}; {alarm.advice}; the run goes on with another config.watch.{name} than "
            f"{alarm.bound:g}, or without {name!r} in config.watch.stop"
        )


def headline(metrics: dict[str, float]) -> str:
    """Returns the metric by which evaluations are compared; empty if none was measured.

    The oracle's reward where it has one; else the win rate against references, or against the SFT policy.
    """
    names = ("eval/reward", "eval/win_rate_reference", "eval/win_rate_sft")
    return next((name for name in names if np.isfinite(metrics.get(name, np.nan))), "")


def shown(metrics: dict[str, float]) -> dict[str, str]:
    """Returns the figures of the progress bar: the opponent that is beaten last, the reward, the accuracy.

    Win rates against the SFT policy are near 1 after a few labels, so they stand in only where the task has
    no references.
    """
    names = {"win": "eval/win_rate_reference", "r*": "eval/reward", "ens_acc": "ensemble/accuracy_heldout"}
    if names["win"] not in metrics:
        names["win"] = "eval/win_rate_sft"
    return {label: f"{metrics[name]:.3f}" for label, name in names.items() if name in metrics}


def _not_finite(step: int, queries: int) -> Alarm:
    """Returns the alarm of a loss or gradient that is not finite, which always ends the run."""
    said = f"the loss or gradient of step {step} is not finite"
    return Alarm(
        FINITE, queries, 0.0, 1.0, said, "look at the inputs that were saved, or lower the learning rate"
    )


def completions(run: Run, record: Record, queries: int) -> list[dict[str, Any]]:
    """Decodes the first config.eval.num_samples pairs of a step for people to read."""
    n = run.config.eval.num_samples
    batch = jax.tree.map(lambda x: x[:n], to_host(record.batch))
    probability = np.full(len(batch.weight), np.nan)
    if run.state.ensemble is not None:
        rewards = member_rewards(run.state.ensemble.params, jnp.asarray(batch.features))
        probability = to_host(jax.nn.sigmoid(rewards[..., 0] - rewards[..., 1]).mean(0))
    pairs = run.decode(batch.tokens, batch.mask)
    return [
        {
            "queries": queries,
            "prompt": prompt,
            "chosen": pairs[i][0],
            "rejected": pairs[i][1],
            "labelled_by": "oracle" if batch.from_oracle[i] else "ensemble",
            "ensemble_probability": None if np.isnan(probability[i]) else float(probability[i]),
            "weight": float(batch.weight[i]),
            "length_chosen": int(batch.mask[i, 0].sum()),
            "length_rejected": int(batch.mask[i, 1].sum()),
        }
        for i, prompt in enumerate(run.decode(batch.prompts, batch.prompt_mask))
    ]


def _save_inputs(run: Run, record: Record, metrics: dict[str, float], folder: Path, last: str) -> None:
    """Saves the batch and the state of a step that is not finite, and raises FloatingPointError.

    Such a step changes nothing (`algorithm.update`), so the run's state is still the one before it.
    """
    batch, state = to_host((record.batch, run.state._replace(key=jax.random.key_data(run.state.key))))
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "batch.npz", **{k: v for k, v in batch._asdict().items() if v is not None})
        models.save(folder / "policy", run.settings.model, state.policy.params, None)
        leaves, _ = jax.tree_util.tree_flatten_with_path(state)
        np.savez(folder / "state.npz", **{jax.tree_util.keystr(k): v for k, v in leaves})  # pyright: ignore[reportArgumentType]
    bad = {k: v for k, v in metrics.items() if not np.isfinite(v)} or "an update"
    good = f"; the last checkpoint is {last}" if last else ""
    raise FloatingPointError(f"step {record.step}: {bad} is not finite; its inputs are in {folder}{good}")
