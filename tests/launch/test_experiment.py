"""`launch.experiment` as a user calls it, on two small cases."""

import csv

import numpy as np
import pytest

from launch import experiment
from launch.experiments import EXPERIMENTS, regret


def numbers(folder, case, strategy, field):
    with open(folder / "data.csv") as file:
        rows = [row for row in csv.DictReader(file) if (row["case"], row["strategy"]) == (case, strategy)]
    return [float(row[field]) for row in rows]


def test_figure_tables_and_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(regret, "CASES", {
        name: regret.CASES[name]._replace(num_rounds=20) for name in ("finite", "cycle")
    })  # fmt: skip
    monkeypatch.setattr(regret, "STRATEGIES", {"passive": "random pair", "ee_ts": "E&E-TS"})
    experiment.main(["--name=regret", "--seeds=20", f"--root={tmp_path}"])
    said, tmp_path = capsys.readouterr().out, tmp_path / "regret"
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert (tmp_path / "report.txt").read_text() in said
    for part in said.split("\n\n")[1:3]:
        assert "lowest cumulative regret: E&E-TS; next random pair, by " in part
    rounds = regret.one(regret.CASES["finite"], "ee_ts", 20, 20)
    total = np.asarray(rounds.regret).sum(1)
    assert numbers(tmp_path, "finite", "ee_ts", "round") == [5, 10, 15, 20]
    assert numbers(tmp_path, "finite", "ee_ts", "cumulative")[-1] == pytest.approx(total.mean(), rel=1e-4)
    assert numbers(tmp_path, "finite", "ee_ts", "cumulative_se")[-1] == pytest.approx(
        total.std(ddof=1) / 20**0.5, rel=1e-3
    )
    assert f"E&E-TS       {total.mean():.1f} ± {total.std(ddof=1) / 20**0.5:.1f}" in said
    assert numbers(tmp_path, "cycle", "passive", "simple")[-1] == pytest.approx(0.3, abs=1e-4)


@pytest.mark.parametrize("arguments, said", [
    ([], "the following arguments are required: --name"),
    (["--name=fig99"], "invalid choice: 'fig99'"),
    (["--name=regret", "--seeds=1"], "--seeds=1: valid is at least 2"),
    (["--name=regret", "--root=/dev/null/a"], "/dev/null/a/regret: Not a directory"),
    (["--name=regret", "--scale=paper"], "--scale=paper: valid for regret is mini"),
    (["--name=fig3", "--parallel=0"], "--parallel=0: valid is at least 1"),
])  # fmt: skip
def test_mistakes_are_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        experiment.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_help_says_what_each_shows(capsys):
    with pytest.raises(SystemExit):
        experiment.main(["--help"])
    said = capsys.readouterr().out
    assert all(row.about in said and row.source in said for row in EXPERIMENTS.values())
