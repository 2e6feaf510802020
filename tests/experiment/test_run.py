"""A work directory that is called again: finished runs stay as they are, others begin anew, more are added."""

import json
import types

import pytest
from ml_collections import ConfigDict
from small_run import small_run

from configs import quickstart
from sea_jax.errors import InputError
from sea_jax.experiment import run as experiment
from sea_jax.runtime.metrics import MetricWriter
from sea_jax.runtime.run_folder import Summary, read_summary, run_folder, write_summary


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Runs methods × seeds in one work directory, without training; `trained` and `prepared` say what ran."""
    shared = types.SimpleNamespace(sampler=types.SimpleNamespace(close=lambda: None))
    prepared, trained = [], []

    def train_one(config, given, method, replicate, workdir, only_given, labeller_of):
        assert given is shared
        trained.append((method, replicate))
        folder = run_folder(workdir, method, config.seed + replicate)
        with MetricWriter(folder) as writer:
            writer.write(0, 4, {"eval/win_rate_sft": 0.5, "time/learn_s": float(len(trained))})
        write_summary(folder, Summary(4, method, f"label of {method}", False))

    def run(methods=("passive",), num_seeds=1, extend=False, **fields):
        config = quickstart.get_config()
        config.update(dict(methods=methods, num_seeds=num_seeds, seed=7))
        config.update_from_flattened_dict(fields)
        return experiment.run(config, str(tmp_path), extend)

    monkeypatch.setattr(experiment.validate, "load_task", lambda *_: None)
    monkeypatch.setattr(experiment.inputs, "of_run", lambda *_: {"sft": run.policy})
    monkeypatch.setattr(experiment.assets, "prepare", lambda *_: prepared.append(1) or shared)
    monkeypatch.setattr(experiment, "train_one", train_one)
    monkeypatch.setattr("sea_jax.report.figure.draw", lambda *_: None)
    run.prepared, run.trained, run.policy = prepared, trained, "sft-1"
    return run


def state(workdir):
    """Content and time of every file of every run."""
    return {
        str(file.relative_to(workdir)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in (workdir / "runs").rglob("*") if file.is_file()
    }  # fmt: skip


def lines(said):
    """Label and seeds of each method in a report's first table."""
    table = said.split("\n\n")[0].splitlines()[2:]
    return [tuple(cell.strip() for cell in line.split("  ") if cell.strip())[:2] for line in table]


def test_a_finished_run_is_skipped(call, tmp_path, caplog):
    """Nothing is trained or prepared, a line for each run says so, and the report is the same."""
    first = call(num_seeds=2)
    before = state(tmp_path)
    with caplog.at_level("WARNING", logger="absl"):
        assert call(num_seeds=2) == first
    assert lines(first) == [("label of passive", "2")]
    assert state(tmp_path) == before
    assert call.prepared == [1] and call.trained == [("passive", 0), ("passive", 1)]
    assert [record.getMessage() for record in caplog.records] == [
        f"skipped, as it has finished: {tmp_path}/runs/passive-seed{seed}" for seed in (7, 8)
    ]


def test_more_seeds_and_methods_add_runs_only(call, tmp_path):
    call()
    before = state(tmp_path)
    said = call(("sea", "passive"), 2)
    assert before.items() <= state(tmp_path).items()
    assert call.trained == [("passive", 0), ("sea", 0), ("sea", 1), ("passive", 1)]
    assert lines(said) == [("label of sea", "2"), ("label of passive", "2")]


def test_a_run_with_a_spoilt_summary_has_not_finished(call, tmp_path):
    call()
    folder = tmp_path / "runs/passive-seed7"
    (folder / "done.json").write_text("{")
    call()
    assert call.trained == [("passive", 0)] * 2 and read_summary(folder).queries == 4


def test_a_finished_run_is_extended_where_its_budget_was_raised(call, tmp_path):
    """A smaller or equal budget trains nothing; without --extend another budget is another config."""
    call(**{"train.query_budget": 4})
    for budget, trained in ((4, 1), (8, 2), (8, 3)):  # the stand-in for training stops at 4 labels
        call(extend=True, **{"train.query_budget": budget})
        assert len(call.trained) == trained
    with pytest.raises(InputError, match=r"train\.query_budget=8, not 12; valid: that config, --extend"):
        call(**{"train.query_budget": 12})
    with pytest.raises(InputError, match=r"train\.beta"):
        call(extend=True, **{"train.beta": 0.2, "train.query_budget": 8})


def test_a_finished_run_of_another_config_is_refused(call, tmp_path):
    call()
    before = state(tmp_path)
    with pytest.raises(InputError, match=r"train\.beta=0\.1, not 0\.2"):
        call(**{"train.beta": 0.2})
    assert state(tmp_path) == before


def test_runs_of_another_policy_are_refused_before_anything_is_prepared(call, tmp_path):
    """A call that has nothing to train still reports."""
    call()
    call.policy = "sft-2"
    call()
    with pytest.raises(
        InputError, match=f"workdir {tmp_path}: its runs were begun with part sft-1, not sft-2"
    ):
        call(num_seeds=2)
    assert call.prepared == [1] and call.trained == [("passive", 0)]


def test_a_run_finishes_when_its_policy_is_saved(tmp_path, monkeypatch):
    """Of a real run, of one step: interrupted before, it has all rows and no done.json, not even an old one."""
    small = small_run(tmp_path / "small", "passive", **{"train.query_budget": 4})
    config = ConfigDict(small.config.to_dict())
    folder = tmp_path / "runs/passive-seed0"
    seen = []

    def interrupt(*_):
        seen.append((folder / "done.json").exists())
        raise KeyboardInterrupt

    for save, finished in ((lambda *_: None, True), (interrupt, False)):
        monkeypatch.setattr(experiment.policy, "save_policy", save)
        try:
            experiment.train_one(config, small.assets, "passive", 0, tmp_path)
        except KeyboardInterrupt:
            assert not finished
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["queries"] == 4 and (folder / "done.json").exists() == finished
        if finished:
            assert read_summary(folder) == Summary(4, "passive", "passive online DAP", False)
    assert seen == [False]
