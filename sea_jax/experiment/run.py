"""Runs a config: methods × seeds on shared assets, then the report."""

import contextlib
import functools
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from absl import logging

from sea_jax.config.overrides import for_method
from sea_jax.errors import OpenQuestionsError, SpendLimitError
from sea_jax.experiment import asking, assets, checkpoints, given_labels, inputs, validate
from sea_jax.experiment.commands import cache_folder
from sea_jax.experiment.logbook import Logbook
from sea_jax.experiment.oracles import NoOracle, labelled_by
from sea_jax.experiment.setup import make_evaluator, make_run
from sea_jax.experiment.workdir import claim_workdir, require_writable
from sea_jax.labels.journal import Journal
from sea_jax.methods import METHODS
from sea_jax.oracles.patience import breaks_off
from sea_jax.pretraining import policy
from sea_jax.report import report
from sea_jax.runtime.checkpoint_folder import CheckpointFolder, open_folder
from sea_jax.runtime.mesh import is_main, to_host
from sea_jax.runtime.metrics import MetricWriter
from sea_jax.runtime.owner import own
from sea_jax.runtime.run_folder import Summary, is_finished, read_summary, run_folder, write_summary
from sea_jax.runtime.stop import StopRequest, stop_request
from sea_jax.train import Run, train
from sea_jax.types import Config


def run(config: Config, workdir: str, extend: bool = False, labels: str = "", partial: bool = False) -> str:
    """Runs a config from the task to the table.

    Runs that the work directory holds finished are skipped: the same call again runs what is missing, and one
    with more methods or seeds adds them. A run that was stopped goes on from its last checkpoint; labels that
    it bought after it are in its journal, and are not bought again.

    Args:
        config: see `experiment.base_config`.
        workdir: folder of this config's runs; trained parts found in its cache are not trained again.
        extend: goes on with finished runs whose budget the config has raised since.
        labels: a file or folder of labels; the runs learn from all of them and from no other.
        partial: with config.oracle.kind='inbox' a batch that is answered in part is learned from.

    Returns:
        The report of all runs of the config, as printed. In a run on several hosts the main process returns
        it, the others return ''.

    Raises:
        InputError: on a config or work directory that cannot work, before anything is trained; another
            process works in it; or a model or data that its runs were begun from have changed.
        StoppedError: by a signal, after the run was saved.
        WatchError: by a watch in config.watch.stop, after the run was saved.
    """
    folder, cache = Path(workdir), cache_folder(config, workdir)
    task = validate.load_task(config, cache)
    require_writable("--workdir", folder)
    with own(folder, is_main()):
        claim_workdir(config, folder, extend)
        if labels:
            given_labels.import_into(folder, Path(labels))
            config = given_labels.without_oracle(config)
        # Listed before any run begins, so that the processes of all hosts list the same.
        if unfinished := _unfinished(config, folder, extend):
            inputs.claim(config, folder, inputs.of_run(config, task))
            _introduce(config)
            shared = assets.prepare(config, cache, task, folder)
            with contextlib.closing(shared.sampler), asking.people(config, folder, partial) as labeller_of:
                for method, replicate in unfinished:
                    train_one(config, shared, method, replicate, folder, bool(labels), labeller_of)
        return report.write(folder, config) if is_main() else ""


def _introduce(config: Config) -> None:
    """Says what each method does, where progress is shown."""
    if config.progress and is_main():
        for method in config.methods:
            print(f"{METHODS[method].label} ({method}) {METHODS[method].about}", file=sys.stderr)


def _unfinished(config: Config, workdir: Path, extend: bool) -> list[tuple[str, int]]:
    """Returns (method, replicate) of each run that has not finished, and logs what happens to the others."""
    unfinished = []
    for replicate in range(config.num_seeds):
        for method in config.methods:
            folder = run_folder(workdir, method, config.seed + replicate)
            budget = for_method(config, method).train.query_budget
            if is_finished(folder) and not (extend and read_summary(folder).queries < budget):
                _log("skipped, as it has finished: %s", folder)
                continue
            unfinished.append((method, replicate))
    return unfinished


def _log(message: str, folder: Path) -> None:
    if is_main():
        logging.warning(message, folder)  # `main` shows warnings only


def prepare(config: Config, workdir: str) -> str:
    """Trains the parts that the runs of a config share, and leaves them in the cache.

    Args, Raises: as `run`.

    Returns:
        A line that names the cache's folder.
    """
    cache = cache_folder(config, workdir)
    assets.train_parts(config, cache, validate.load_task(config, cache))
    return f"trained parts: {cache}"


def train_one(
    config: Config,
    shared: assets.Assets,
    method: str,
    replicate: int,
    workdir: Path,
    only_given: bool = False,
    labeller_of: asking.LabellerOf = lambda config, folder: None,
) -> None:
    """Trains one method on one seed; leaves its labels, metrics, samples and policy in a folder of its own.

    Goes on from the last checkpoint that the folder holds. Labels that were imported into the work directory
    are used before any is bought; with `only_given` no other is. `labeller_of` makes the oracle of its duels
    where another one than that of the evaluation labels them.
    """
    with open_run(config, shared, method, replicate, workdir, only_given, labeller_of) as opened:
        try:
            train(opened.run, opened.logbook)
        except (OpenQuestionsError, SpendLimitError):
            if opened.run.waits:
                opened.saver.save(opened.run, opened.logbook)  # with the step that asked as posed
            raise
        save_best(config, shared, opened)
    finish(config, shared, method, opened)


class OpenRun(NamedTuple):
    """A run with its files open, restored where it was begun before."""

    run: Run
    logbook: Logbook
    saver: checkpoints.RunSaver
    saved: CheckpointFolder
    stop: StopRequest
    folder: Path


@contextlib.contextmanager
def open_run(
    config: Config,
    shared: assets.Assets,
    method: str,
    replicate: int,
    workdir: Path,
    only_given: bool = False,
    labeller_of: asking.LabellerOf = lambda config, folder: None,
) -> Iterator[OpenRun]:
    """Opens a run's journal, checkpoints and metrics, and restores it; the arguments are `train_one`'s."""
    folder, own_config = run_folder(workdir, method, config.seed + replicate), for_method(config, method)
    with contextlib.ExitStack() as files:
        journal = files.enter_context(Journal(folder, labelled_by(config, replicate))) if is_main() else None
        given = given_labels.copy_imported(journal, workdir, shared.task)
        if only_given:
            own_config = given_labels.with_budget(own_config, given)
        asked = NoOracle() if only_given else labeller_of(own_config, folder)
        run = make_run(own_config, shared, method, replicate, journal, asked)
        saved = files.enter_context(open_folder(folder / "checkpoints", config.checkpoint))
        restored = checkpoints.restore(saved, run)
        _tell_of_restart(run, folder, restored is not None)
        given_labels.hand_out(run)
        kept = restored["files"] if restored else None
        writer = files.enter_context(MetricWriter(folder, kept))  # marks the run as unfinished
        stop = files.enter_context(stop_request())
        saver = checkpoints.RunSaver(saved, stop)
        run.between_updates = functools.partial(saver.between_updates, run)
        files.enter_context(breaks_off(functools.partial(saver.during_wait, run)))
        logbook = Logbook(folder, writer, make_evaluator(run, shared), saver, restored)
        yield OpenRun(run, logbook, saver, saved, stop, folder)


def finish(config: Config, shared: assets.Assets, method: str, ended: OpenRun) -> None:
    """Saves the last policy of a run whose files are closed, and marks it as finished."""
    params = to_host(ended.run.state.policy.params)
    if is_main():
        policy.save_policy(config, ended.folder / "policy", shared.model, params, shared.task)
        row, queries = METHODS[method], ended.run.labeller.num_queries
        write_summary(ended.folder, Summary(queries, method, row.label, row.learns_ensemble))


def save_best(config: Config, shared: assets.Assets, opened: OpenRun) -> None:
    """Saves the policy of the best evaluation as policy_best/, unless that is the last policy."""
    run, folder, saved, best = opened.run, opened.folder, opened.saved, opened.logbook.best
    place = folder / "policy_best"
    if is_main():
        shutil.rmtree(place, ignore_errors=True)  # of a run that was extended
    if best is None or not saved.best or best["step"] == run.step:
        return
    if best["step"] == 0:
        _log("no evaluation was better than that of the starting policy: %s", folder)
        return
    params = saved.read(best["step"], "state")["state"]["policy"]["params"]
    if is_main():
        policy.save_policy(config, place, shared.model, params, shared.task)
        (place / "evaluation.json").write_text(json.dumps(best))


def _tell_of_restart(run: Run, folder: Path, restored: bool) -> None:
    """Says where a run goes on that was begun before."""
    if restored:
        queries, budget = run.labeller.num_queries, run.config.train.query_budget
        _log(f"goes on after {run.step} steps and {queries} of {budget} labels: %s", folder)
    elif run.labeller.journal is not None and (labels := run.labeller.journal.count()):
        _log(f"begins anew without a checkpoint, with the {labels} labels that it has: %s", folder)
