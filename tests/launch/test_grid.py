"""Grids of experiments: what is chosen and said by hand, and a whole grid on tiny runs."""

import contextlib
import csv
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import made_runs
import numpy as np
import psutil
import pytest
from helpers import ROOT

from launch import experiment, experiments
from launch.experiments import EXPERIMENTS, figure, grid, paper, results, tuning, units
from launch.experiments.grid import Claim, Grid, Line, Panel, Part
from launch.experiments.rows import GRIDS
from sea_jax.report.runs import MethodRuns

WIN = "eval/win_rate_reference"
TINY = str(ROOT / "tests/tiny_sweep.py")


def runs_of(*seeds):
    """Runs whose win rates are given at 0, 10, 20, … labels."""
    return {i: [{"queries": 10 * j, WIN: v} for j, v in enumerate(values)] for i, values in enumerate(seeds)}


def claim(over="end"):
    return Claim("a beats b", WIN, ("p", "a"), ("p", "b"), over)


@pytest.mark.parametrize("over, a, b, said", [
    # Differences at the end: 0.3, 0.2, 0.4: mean 0.3, s.e. 0.1 / sqrt 3.
    ("end", [[0, 0.9], [0, 0.8], [0, 0.9]], [[0, 0.6], [0, 0.6], [0, 0.5]], "AGREES (win rate reference, at the end: +0.300 ± 0.058)"),
    ("end", [[0, 0.6], [0, 0.6], [0, 0.5]], [[0, 0.9], [0, 0.8], [0, 0.9]], "CONTRADICTS (win rate reference, at the end: -0.300 ± 0.058)"),
    ("end", [[0, 0.5], [0, 0.7]], [[0, 0.6], [0, 0.6]], "not shown either way (win rate reference, at the end: +0.000 ± 0.100)"),
    # Means after the first: 0.4 and 0.2; 0.6 and 0.4.
    ("run", [[0, 0.2, 0.6], [1, 0.6, 0.6]], [[1, 0.1, 0.3], [0, 0.2, 0.6]], "AGREES (win rate reference, mean over the run: +0.200 ± 0.000)"),
])  # fmt: skip
def test_verdict(over, a, b, said):
    found = {("p", name): MethodRuns(name, False, runs_of(*runs)) for name, runs in (("a", a), ("b", b))}
    assert results.verdict(claim(over), found) == f"- a beats b: {said}"


def test_a_claim_without_runs_is_not_measured():
    one = {("p", "a"): MethodRuns("a", False, runs_of([0, 1], [0, 1]))}
    assert results.verdict(claim(), one) == "- a beats b: not measured"
    alone = one | {("p", "b"): MethodRuns("b", False, runs_of([0, 1]))}
    assert results.verdict(claim(), alone) == "- a beats b: not measured"


def test_duels_count_equal_responses():
    """Batches of 4: 4 labels, then half of the duels void, then all."""
    rows = [
        {"queries": 4, "duel/void": 0.0},
        {"queries": 6, "duel/void": 0.5},
        {"queries": 6, "duel/void": 1.0},
    ]
    assert [row["duels"] for row in results.with_duels(rows, 4)] == [4, 8, 12]


def write_unit(unit, values, **more):
    """A finished run, whose win rates are given at 0, 10, 20, … labels."""
    logged = [
        {"queries": 10 * i, "step": i, WIN: value, "eval/win_rate_sft": value} | more
        for i, value in enumerate(values)
    ]
    made_runs.write_run(unit.folder, unit.method, unit.seed, logged)
    (unit.folder / "config.json").write_text(json.dumps({"train": {"batch_size": 4}}))


def test_tuning_takes_the_setting_of_the_highest_mean(tmp_path):
    """Scores 0.3, 0.5, 0.45 over two seeds without the start; the last setting lacks a run."""
    of_settings = tuning.units(tmp_path, "ipo", "sea")
    assert [unit.fields["train.beta"] for unit, _ in of_settings] == [0.05, 0.1, 0.2, 0.3]
    assert {unit.fields["eval.split"] for runs in of_settings for unit in runs} == {"tuning"}
    for runs, values in zip(of_settings, ([0.2, 0.4], [0.4, 0.6], [0.4, 0.5], [0.9, None]), strict=True):
        for unit, value in zip(runs, values, strict=True):
            if value is not None:
                write_unit(unit, [0.99, value, value])
    tuned = tuning.read(tmp_path, "ipo", "sea")
    np.testing.assert_allclose(tuned.scores, [0.3, 0.5, 0.45, np.nan])
    assert tuned.fields == {"train.beta": 0.1}
    assert tuning.fields(tmp_path, "ipo", "ee_ts") == {"train.beta": 0.1}
    assert tuning.fields(tmp_path, "ipo", "frozen") == {}
    part = Part("p", ("sea", "ee_ts", "frozen"), "ipo")
    assert tuning.pairs([part, part]) == [("ipo", "sea")]
    (_, (name, said)) = tuning.table(tmp_path, [part])
    assert name == "sea, ipo" and said == "beta 0.05: 0.300; beta 0.1: 0.500*; beta 0.2: 0.450; beta 0.3: nan"


def test_every_method_has_the_budget_of_the_others():
    assert {len(settings) for settings in tuning.SETTINGS.values()} == {4}
    for name, row in GRIDS.items():
        for part in row.parts:
            assert part.dap in tuning.SETTINGS, name


def test_rows_are_sound():
    """Lines and claims name runs that the row makes; parts of one name are equal but for their methods."""
    parts = {}
    for name, row in GRIDS.items():
        made = {(part.name, method) for part in row.parts for method in part.methods}
        assert {line[:2] for line in row.lines} <= made, name
        for said in row.claims:
            assert {said.ahead, said.behind} <= made, (name, said)
        assert {panel.kind for panel in row.panels} <= figure.KINDS.keys()
        labels = [line.label for line in row.lines]
        assert len(labels) == len(set(labels)), name
        for part in row.parts:
            own = part.dap, dict(part.fields)
            assert parts.setdefault(part.name, own) == own
    assert {
        "fig1",
        "fig3",
        "fig4",
        "fig6",
        "fig7",
        "fig9",
        "table1",
        "table4",
        "regret",
    } == EXPERIMENTS.keys()


@pytest.fixture
def tiny(monkeypatch):
    """Two methods on two seeds of the tiny miniature, one of two settings each."""
    monkeypatch.setattr(grid, "MINI_FILE", TINY)
    monkeypatch.setattr(tuning, "SEEDS", (0,))
    monkeypatch.setitem(tuning.SETTINGS, "dpo", tuning.SETTINGS["dpo"][:2])
    lines = Line("tiny", "passive", "online"), Line("tiny", "sea", "SEA")
    panels = tuple(
        Panel(kind, kind, WIN, "win rate", lines, x, (0.5,))
        for kind, x in (
            ("curves", "duels"),
            ("curves", "step"),
            ("final", ""),
            ("levels", ""),
            ("stages", ""),
        )
    )
    claims = (Claim("SEA is ahead", "eval/reward", ("tiny", "sea"), ("tiny", "passive")),)
    part = Part("tiny", ("passive", "sea"), fields={"eval.regret": True, "eval.kl_samples": 1})
    row = Grid("a test", "Fig. 0", (part,), panels, claims, grid.TLDR_1B, 2)
    monkeypatch.setitem(GRIDS, "tiny", row)
    monkeypatch.setitem(experiment.EXPERIMENTS, "tiny", experiments.of_grid("tiny"))
    return row


def test_a_whole_grid(tiny, tmp_path, capfd):
    arguments = ["--name=tiny", f"--root={tmp_path}", "--parallel=2"]
    experiment.main([*arguments, "--dry_run"])
    planned = capfd.readouterr().out
    assert (
        planned.count("python -m sea_jax.main") == 8
        and "8 of 8 runs are left: 128 labels; 4 runs tune settings" in planned
    )
    experiment.main(arguments)
    said = capfd.readouterr()
    assert "4 of 4 runs to make, 2 at a time" in said.err and "[4/4] " in said.err
    text = (tmp_path / "tiny/report.txt").read_text()
    assert text in said.out and f"figure: {tmp_path}/tiny/figure.png" in said.out
    for column in ("vs SFT", "vs references", "online", "mean r*", "regret", "KL", "distinct", "ECE"):
        assert column in text
    assert re.search(r"^- SEA is ahead: .* ± ", text, re.MULTILINE)
    assert re.search(
        r"^passive, dpo +learning_rate 0.0001: \d\.\d{3}\*?; learning_rate 0.0002: ", text, re.MULTILINE
    )
    assert (tmp_path / "tiny/figure.png").stat().st_size > 20_000
    with open(tmp_path / "tiny/data.csv") as file:
        rows = list(csv.DictReader(file))
    assert {(row["method"], row["seed"]) for row in rows} == {
        (m, s) for m in ("passive", "sea") for s in ("120", "121")
    }
    logged = tmp_path / "mini/tiny/sea-seed121/runs/sea-seed121/metrics.jsonl"
    last = [row for row in map(json.loads, logged.read_text().splitlines()) if "eval/reward" in row][-1]
    mine = [row for row in rows if (row["method"], row["seed"]) == ("sea", "121")][-1]
    assert float(mine["eval/reward"]) == pytest.approx(last["eval/reward"], rel=1e-4)

    # Whole again, without a run; and a run that is gone is made again, from the same seed.
    before = logged.read_text()
    (logged.parent / "done.json").unlink()
    experiment.main(arguments)
    assert "1 of 4 runs to make" in capfd.readouterr().err
    without = lambda text: [  # noqa: E731
        {k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in text.splitlines()
    ]
    assert without(logged.read_text()) == without(before)


def test_a_run_that_fails_is_named(tiny, tmp_path, monkeypatch, capfd):
    part = tiny.parts[0]._replace(methods=("passive",), fields={"task.oracle_seed": -1})
    monkeypatch.setitem(tuning.SETTINGS, "dpo", ())
    with pytest.raises(SystemExit) as ended:
        mini_row = dataclasses.replace(tiny, parts=(part,))
        monkeypatch.setitem(GRIDS, "tiny", mini_row)
        monkeypatch.setitem(experiment.EXPERIMENTS, "tiny", experiments.of_grid("tiny"))
        monkeypatch.setattr(tuning, "fields", lambda *_: {})
        experiment.main(["--name=tiny", f"--root={tmp_path}"])
    said = capfd.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and "task.oracle_seed=-1" in said and "log.txt" in said


def test_paper_scale_counts_labels_and_device_hours(tmp_path, monkeypatch, capsys):
    asked = []

    def hours(file, method, fields, topology):
        asked.append((file, method, topology))
        return 10.0

    monkeypatch.setattr(paper, "device_hours", hours)
    experiment.main(["--name=fig6", "--scale=paper", "--dry_run", f"--root={tmp_path}", "--topology=h100:8"])
    said = capsys.readouterr().out
    # 3 strategies and 4 methods under a judge, 3 seeds, at 1B.
    assert "21 runs: 1,050,000 labels, 210 device-hours on h100:8" in said
    assert asked[1] == ("configs/tldr.py:size=1b,dap=dpo", "ee_ts", "h100:8") and len(asked) == 7
    commands = [line for line in said.splitlines() if line.startswith("python -m launch.xm_sweep")]
    assert len(commands) == 3 and "--config.oracle.kind=judge" in commands[2]
    assert f"--root={tmp_path}/paper/fig6/noisy_judge" in commands[2]


def test_device_hours_are_the_planners():
    call = [sys.executable, "-m", "launch.plan", "--config=configs/quickstart.py", "--topology=cpu:2"]
    done = subprocess.run(
        [*call, "--config.methods=('passive',)"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    total = float(re.findall(r"^  sum +([\d.]+)$", done.stdout, re.MULTILINE)[-1])
    assert paper.device_hours("configs/quickstart.py", "passive", (), "cpu:2") == total


@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C"])
def test_a_signal_saves_the_runs(how, tiny, tmp_path):
    """The processes that run end too, and the same command goes on from their checkpoints."""
    unit = grid.mini_unit(tmp_path, tiny.parts[0], "passive", 120, {"train.query_budget": 100_000})
    code = f"""
import sys
sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}
from pathlib import Path
from launch.experiments.units import Unit, run_units
if __name__ == "__main__":
    folders = [Path({str(unit.folder)!r}), *(Path({str(tmp_path)!r}) / str(i) for i in range(3))]
    fields = {dict(unit.fields)!r}
    units = [Unit(folder, {unit.file!r}, "passive", 120, fields) for folder in folders]
    run_units(units, Path({str(tmp_path / "cache")!r}), 1)
"""
    file = tmp_path / "call.py"
    file.write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(file)], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics, start = unit.run_folder / "metrics.jsonl", time.monotonic()
    try:
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 5):
            assert process.poll() is None and time.monotonic() - start < 120
            time.sleep(0.2)
        if how == "SIGTERM":
            os.kill(process.pid, signal.SIGTERM)
        else:  # a terminal sends it to the whole group
            os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
    assert "KeyboardInterrupt" in said
    assert ", and saved" in (unit.folder / "log.txt").read_text() and not unit.finished
    assert not (tmp_path / "1/runs").exists(), "the next run began"


@pytest.mark.parametrize(
    ("cores", "parallel", "expected"),
    [
        ([0, 1], 2, [[0], [1]]),
        ([0, 1], 1, [[0, 1]]),
        ([3, 5, 7, 9, 11], 2, [[3, 7, 11], [5, 9]]),
        ([4], 2, [[4], [4]]),
    ],
)
def test_processes_side_by_side_share_the_cores(cores, parallel, expected):
    assert units.shares(cores, parallel) == expected
