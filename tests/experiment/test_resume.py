"""A run that is stopped and goes on: equal to one that was never stopped, bit for bit."""

import json
import os
import signal
import sqlite3
import threading
import time
import types

import jax
import numpy as np
import pytest
from helpers import truncate
from ml_collections import ConfigDict
from services import Http, Judging, oracle_http
from small_experiment import METHODS, files, journal_file, labels_of, start

from sea_jax import main
from sea_jax.actors import actor
from sea_jax.errors import InputError, SpendLimitError, StoppedError, StorageError, WatchError
from sea_jax.evaluate import Evaluator
from sea_jax.experiment import checkpoints
from sea_jax.experiment import run as experiment
from sea_jax.labels import journal, reading
from sea_jax.oracles import labeller
from sea_jax.runtime.stop import stop_request


def stopped_after(monkeypatch, step, error=None):
    """Stops the run at the end of a step: by a signal, or as by SIGKILL with nothing of the step saved."""
    end_step = checkpoints.RunSaver.end_step

    def end(self, run, logbook, last):
        if run.step == step:
            if error is not None:
                raise error
            signal.raise_signal(signal.SIGTERM)
        end_step(self, run, logbook, last)

    monkeypatch.setattr(checkpoints.RunSaver, "end_step", end)


pytestmark = pytest.mark.usefixtures("no_policy")
# method, train.staleness, train.ask_ahead, killed
QUICK = [
    ("passive", 0, 0, False), ("sea", 0, 0, False), *((method, 1, 0, True) for method in METHODS),
    ("sea", 0, 1, False), ("sea", 1, 2, True), ("apl", 0, 1, False), ("posterior_rl", 0, 2, True),
]  # fmt: skip
REST = [(method, 0, 0, True) for method in METHODS] + [(method, 1, 0, False) for method in METHODS]


@pytest.mark.parametrize(
    "method, staleness, ahead, killed",
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)],
)
def test_a_resumed_run_equals_one_that_was_never_stopped(
    tmp_path, monkeypatch, no_policy, method, staleness, ahead, killed
):
    fields = {"train.staleness": staleness, "train.ask_ahead": ahead}
    start(tmp_path / "whole", method, **fields)()
    begin = start(tmp_path / "parts", method, **fields)
    for step in (1, 2):
        with monkeypatch.context() as patch, pytest.raises(MemoryError if killed else StoppedError):
            stopped_after(patch, step, MemoryError() if killed else None)
            begin()
    begin()
    jax.tree.map(np.testing.assert_array_equal, no_policy["whole"], no_policy["parts"])
    assert files(tmp_path / "parts", method) == files(tmp_path / "whole", method)
    warned = [warning["watch"] for warning in files(tmp_path / "whole", method)[4]]
    assert len(warned) == len({*warned}) and (method != "sea" or len(warned) >= 4)


def test_a_finished_run_goes_on_with_a_larger_budget(tmp_path, no_policy):
    """As if it had had that budget from the start, since the learning rate is constant."""
    start(tmp_path / "whole", "sea", **{"train.query_budget": 24})()
    start(tmp_path / "parts", "sea")()
    assert files(tmp_path / "parts", "sea")[0][-1]["queries"] == 16
    start(tmp_path / "parts", "sea", **{"train.query_budget": 24})()
    jax.tree.map(np.testing.assert_array_equal, no_policy["whole"], no_policy["parts"])
    assert files(tmp_path / "parts", "sea") == files(tmp_path / "whole", "sea")


@pytest.mark.parametrize("rewards, best", [((1, 3, 2), 8), ((1, 2, 3), None), ((3, 1, 2), None)])
def test_the_policy_of_the_best_evaluation_is_kept(tmp_path, monkeypatch, no_policy, caplog, rewards, best):
    """After 0, 8 and 16 labels, the run is stopped in between; the last policy is not kept twice."""
    given = dict(zip((0, 2, 4), rewards, strict=True))
    monkeypatch.setattr(Evaluator, "__call__", lambda self, state, policy, step: {"eval/reward": given[step]})
    monkeypatch.setattr(Evaluator, "before_and_after", lambda *_: [])
    fields = {"checkpoint.every_s": 1e6, "checkpoint.keep": 1}
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stopped_after(patch, 3)
        start(tmp_path / "run", "passive", **fields)()
    start(tmp_path / "run", "passive", **fields)()
    assert (best is not None) == ("run_best" in no_policy)
    assert (rewards[0] == 3) == ("no evaluation was better than that of the starting policy" in caplog.text)
    if best is not None:
        place = tmp_path / "run/runs/passive-seed0/policy_best/evaluation.json"
        assert json.loads(place.read_text()) == dict(metric="eval/reward", value=3.0, step=2, queries=best)
        start(tmp_path / "short", "passive", **fields | {"train.query_budget": best})()
        jax.tree.map(np.testing.assert_array_equal, no_policy["run_best"], no_policy["short"])


def test_labels_of_a_run_without_a_checkpoint_are_not_bought_again(tmp_path, monkeypatch):
    """Killed before the first checkpoint: the run begins anew and asks only what was never answered."""
    begin = start(tmp_path, "sea", **{"checkpoint.every_s": 1e6})
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        stopped_after(patch, 2, MemoryError())
        begin()
    asked, compare = [], labeller.protocol.compare
    note = lambda oracle, *texts, **more: asked.extend(texts[0]) or compare(oracle, *texts, **more)  # noqa: E731
    monkeypatch.setattr(
        labeller,
        "protocol",
        types.SimpleNamespace(compare=note, QuestionKeeper=labeller.protocol.QuestionKeeper),
    )  # not the evaluation's
    begin()
    labels = labels_of(tmp_path, "sea")
    answered = [row for row in labels if row[8] == journal.ANSWERED]
    assert len(answered) == 16 and len(asked) < 16 and not reading.faults(journal_file(tmp_path, "sea"))
    before = [row for row in answered if row[0] < 2]
    assert len(asked) == 16 - len(before) > 0 and before


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_judge_that_has_cost_what_it_may_ends_the_run_and_a_larger_limit_goes_on(
    tmp_path, no_policy, ahead
):
    """The limit is reached within a batch; no answer is paid twice, and the run is that of a judge without a limit."""
    fields = {
        "oracle.kind": "judge",
        "oracle.model": "longer",
        "oracle.in_flight": 1,
        "train.ask_ahead": ahead,
    }
    with Http(judging := Judging()) as server:
        fields |= {"oracle.base_url": f"{server.url}/v1"}
        start(tmp_path / "whole", "sea", **fields)()
        labelled = labels_of(tmp_path / "whole", "sea")
        before = len(judging.seen)
        # 1 call at the start, 4 held-out pairs and 8 of the first evaluation, a batch of 4 and half of the next.
        with pytest.raises(SpendLimitError, match="max_calls=19 is reached"):
            start(tmp_path / "parts", "sea", **fields | {"oracle.max_calls": 19})()
        assert len(judging.seen) == before + 19
        bought = [row for row in labels_of(tmp_path / "parts", "sea") if row[8] == journal.ANSWERED]
        assert len(bought) == 6
        start(tmp_path / "parts", "sea", **fields | {"oracle.max_calls": 1000})()
    jax.tree.map(np.testing.assert_array_equal, no_policy["whole"], no_policy["parts"])
    assert labels_of(tmp_path / "parts", "sea") == labelled
    with sqlite3.connect(journal_file(tmp_path / "parts", "sea")) as db:
        assert db.execute("SELECT max(times_asked) FROM duels WHERE step = 0").fetchone() == (1,)


def test_a_sampler_that_writes_something_else_still_gets_its_labels(tmp_path, monkeypatch):
    """As vLLM does, or JAX on other devices: the steps after the checkpoint read their responses again."""
    begin = start(tmp_path, "sea", **{"checkpoint.every_s": 1e6})
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        stopped_after(patch, 2, MemoryError())
        begin()
    before = labels_of(tmp_path, "sea")
    keys = actor.step_keys
    other = lambda key, step: keys(jax.random.fold_in(key, 99), step)  # noqa: E731
    monkeypatch.setattr(actor, "step_keys", other)
    begin()
    labels = labels_of(tmp_path, "sea")
    assert labels[: len(before)] == before and len(labels) == 16


def test_a_journal_that_lost_labels_is_refused(tmp_path, monkeypatch, no_policy):
    """As one whose write-ahead log was cut: its checkpoint knows how many there were."""
    begin = start(tmp_path, "passive")
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stopped_after(patch, 2)
        begin()
    with sqlite3.connect(journal_file(tmp_path, "passive")) as db:
        db.execute("DELETE FROM duels WHERE id = 8")
    with pytest.raises(InputError, match=r"labels\.sqlite: 7 labels; valid: the 8 that the run had bought"):
        begin()


@pytest.mark.parametrize("damage", ["absent", "truncated", "empty"])
def test_a_damaged_checkpoint_is_left_out(tmp_path, monkeypatch, no_policy, caplog, damage):
    """The run goes on from the one before, and ends where it would have."""
    start(tmp_path / "whole", "passive")()
    begin = start(tmp_path / "parts", "passive")
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stopped_after(patch, 2)
        begin()
    folder = tmp_path / "parts/runs/passive-seed0/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    files_there = [file for file in (folder / "2").rglob("*") if file.is_file()]
    for file in files_there:
        if file.stat().st_size > 100:
            file.unlink() if damage == "absent" else truncate(file, 0.5 if damage == "truncated" else 0)
    with caplog.at_level("WARNING", logger="absl"):
        begin()
    said = [record.getMessage() for record in caplog.records]
    assert any(f"{folder / '2'} cannot be read: " in line for line in said)
    assert (folder / "damaged-2").is_dir() and sorted(path.name for path in folder.glob("[0-9]*")) == [
        "3",
        "4",
    ]
    assert any("goes on after 1 steps and 4 of 16 labels" in line for line in said)
    jax.tree.map(np.testing.assert_array_equal, no_policy["whole"], no_policy["parts"])
    assert files(tmp_path / "parts", "passive") == files(tmp_path / "whole", "passive")


@pytest.mark.parametrize("method", ["posterior_rl", "passive_replay"])
def test_a_stop_breaks_off_long_updates(tmp_path, monkeypatch, no_policy, method):
    """The signal comes after the first update of step 2; step 2 is done again, and buys nothing again."""
    start(tmp_path / "whole", method)()
    begin = start(tmp_path / "parts", method, **{"checkpoint.grace_s": 0.0})
    between, updates = checkpoints.RunSaver.between_updates, []

    def note(self, run):
        updates.append(run.step)
        if updates.count(2) == 1:
            signal.raise_signal(signal.SIGTERM)
        between(self, run)

    with monkeypatch.context() as patch, pytest.raises(StoppedError, match="among the updates of step 2; "):
        patch.setattr(checkpoints.RunSaver, "between_updates", note)
        begin()
    assert updates.count(2) == 1 and len(labels_of(tmp_path / "parts", method)) == 12
    begin()
    jax.tree.map(np.testing.assert_array_equal, no_policy["whole"], no_policy["parts"])
    assert files(tmp_path / "parts", method) == files(tmp_path / "whole", method)


def test_a_stop_breaks_off_a_wait_for_the_oracle(tmp_path, no_policy):
    """The service never answers the first request of step 2; the signal comes then."""
    release, first = threading.Event(), threading.Lock()

    def hold(request, good):
        asks = request.endpoint == "probability" and journal_file(tmp_path / "parts", "passive").exists()
        # Of two requests at once only one may send the signal: a second one ends the run at once.
        if asks and len(labels_of(tmp_path / "parts", "passive")) == 12 and first.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGTERM)
            release.wait(60)
        return good

    with oracle_http(hold) as server:
        oracle = {"oracle.kind": "remote", "oracle.url": server.url, "oracle.request_size": 2}
        begin = start(tmp_path / "parts", "passive", **oracle, **{"checkpoint.grace_s": 0.0})
        begun = time.monotonic()
        with pytest.raises(
            StoppedError, match=r"waited for the oracle in step 2; .*with all answers that came"
        ):
            begin()
        assert time.monotonic() - begun < 30 and len(labels_of(tmp_path / "parts", "passive")) == 12
        release.set()
        begin()
        start(tmp_path / "whole", "passive", **oracle)()
    assert labels_of(tmp_path / "parts", "passive") == labels_of(tmp_path / "whole", "passive")
    jax.tree.map(np.testing.assert_array_equal, no_policy["whole"], no_policy["parts"])


def test_updates_go_on_for_the_grace(monkeypatch):
    with stop_request() as request:
        assert not request.overdue(0.0)
        signal.raise_signal(signal.SIGTERM)
        assert request.overdue(0.0) and not request.overdue(600.0)


def test_a_second_signal_ends_at_once():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_request() as request:
        assert request.number == 0
        signal.raise_signal(signal.SIGINT)
        assert (request.signal, request.number) == ("SIGINT", signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (WatchError("ended"), 76),
        (StoppedError("saved"), 75),
        (StorageError("full"), 74),
        (InputError("bad"), 2),
    ],
)
def test_exit_status(monkeypatch, capsys, error, status):
    def run(*_):
        raise error

    flags = dict(
        _CONFIG=ConfigDict({"a": 1}),
        _WORKDIR="runs",
        _PREPARE=False,
        _PRINT=False,
        _EXTEND=False,
        _LABELS="",
        _PARTIAL=False,
    )
    for name, value in flags.items():
        monkeypatch.setattr(main, name, types.SimpleNamespace(value=value))
    monkeypatch.setattr(main, "prepare_jax", lambda *_: None)
    monkeypatch.setattr(main, "_join", lambda: None)
    monkeypatch.setattr(main, "_run", run)
    with pytest.raises(SystemExit) as end:
        main.main(["sea_jax"])
    assert end.value.code == status and str(error) in capsys.readouterr().err


def test_a_run_that_was_killed_between_its_last_checkpoint_and_its_end_is_completed(
    tmp_path, monkeypatch, no_policy
):
    """Nothing is learned any more; policy, responses and done.json are there."""
    start(tmp_path / "whole", "passive")()
    begin = start(tmp_path / "parts", "passive")
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stopped_after(patch, 4)  # in the last step: the signal is not lost
        begin()

    def killed(*_):
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(experiment.policy, "save_policy", killed)
        begin()
    begin()
    jax.tree.map(np.testing.assert_array_equal, no_policy["whole"], no_policy["parts"])
    assert files(tmp_path / "parts", "passive") == files(tmp_path / "whole", "passive")
    assert (tmp_path / "parts/runs/passive-seed0/done.json").exists()
