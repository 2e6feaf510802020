"""Levels, curves and tables, by hand."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from sea_jax.report import report, sweep


def rows(*points, metric="eval/win_rate_sft"):
    return [{"queries": q, metric: v} for q, v in points]


def test_queries_to_a_level_are_interpolated_at_its_first_crossing():
    run = rows((0, 0.5), (100, 0.7), (200, 0.6), (300, 0.9))
    assert report.queries_to(run, "eval/win_rate_sft", 0.6) == 50
    assert report.queries_to(run, "eval/win_rate_sft", 0.8) == 200 + 100 * 2 / 3
    assert report.queries_to(run, "eval/win_rate_sft", 0.5) == 0
    assert report.queries_to(run, "eval/win_rate_sft", 0.95) == float("inf")


def test_mean_curve_interpolates_and_gives_the_standard_error():
    runs = [rows((0, 0.5), (100, 0.7)), rows((0, 0.5), (50, 0.6), (150, 1.0))]
    at, mean, error = report.mean_curve(runs, "eval/win_rate_sft")
    np.testing.assert_array_equal(at, [0, 100])
    np.testing.assert_allclose(mean, [0.5, 0.75])
    np.testing.assert_allclose(error, [0, 0.05])  # values 0.7 and 0.8: sd 0.0707, over √2


def test_rows_without_the_metric_do_not_count():
    run = [*rows((0, 0.5)), {"queries": 32, "policy/loss": 0.6}, {"queries": 40, "eval/win_rate_sft": None}]
    assert len(report.curve(run, "eval/win_rate_sft")[0]) == 1


def test_tables_say_how_many_seeds_got_there_and_how_many_fewer_queries():
    runs = {
        "passive": [rows((0, 0.5), (100, 0.9)), rows((0, 0.5), (100, 0.9))],
        "sea": [rows((0, 0.5), (50, 0.9)), rows((0, 0.5), (50, 0.9))],
    }
    text = report.levels_table(runs, "eval/win_rate_sft", (0.7, 0.9, 0.95))
    passive, sea = text.splitlines()[2:]
    assert "50 ± 0" in passive and "100 ± 0" in passive and "0 of 2 seeds" in passive
    assert "25 ± 0 (2.0x)" in sea and "50 ± 0 (2.0x)" in sea and sea.count("x)") == 2


def test_a_run_without_a_metric_is_left_out_of_its_mean():
    runs = [rows((0, 0.5), (100, 0.7)), [{"queries": 0}], rows((0, 0.5), (100, 0.9))]
    at, mean, _ = report.mean_curve(runs, "eval/win_rate_sft")
    np.testing.assert_allclose((at, mean), ([0, 100], [0.5, 0.8]))
    assert all(not len(x) for x in report.mean_curve([[{"queries": 0}]], "eval/win_rate_sft"))


def test_a_column_is_shown_if_some_run_has_it():
    sampled = rows((0, 0.5), (100, 0.75), metric="eval/best_of_win_rate_sft")
    runs = {"passive": [rows((0, 0.5), (100, 0.625))], "sea": [[*rows((0, 0.5), (100, 0.875)), *sampled]]}
    header, _, passive, sea = (line.split("  ") for line in report.table(runs, ()).splitlines())
    names, passive, sea = ([cell.strip() for cell in line if cell.strip()] for line in (header, passive, sea))
    assert names[:5] == ["method", "seeds", "queries", "win rate vs SFT", "best of N vs SFT"]
    assert passive[2:5] == ["100", "0.625", "-"] and sea[2:5] == ["100", "0.875", "0.750"]


def test_report_of_a_work_directory(tmp_path):
    """Only finished runs of the config's seeds and methods; stage seconds are summed over seeds."""
    levels = dict(levels=(0.7,), reference_levels=(0.7,), reward_levels=(1.0,))
    config = ConfigDict(dict(seed=3, num_seeds=2, methods=("passive", "sea"), eval=levels))
    for name in ("passive-seed3", "passive-seed4", "passive-seed5", "sea-seed3", "ceiling-seed3"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        run = [
            {
                "queries": q, "eval/win_rate_sft": 0.5 + q / 200, "eval/win_rate_reference": 0.5,
                "eval/reward": 0.1 * q, "time/learn_s": 1.25, "ensemble/accuracy_heldout": 0.75,
                "ensemble/accuracy_chosen": 0.625 if q else None,
                "duel/win_rate_reference_so_far": 0.25 if q else None,
            }
            for q in (0, 80)
        ]  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run))
        if name != "sea-seed3":
            (folder / "done.json").write_text("{}")
    printed = report.write(tmp_path, config)
    assert (tmp_path / "report.png").stat().st_size > 10_000
    assert (tmp_path / "report.txt").read_text() in printed + "\n"
    line = next(line for line in printed.splitlines() if line.startswith("passive"))
    assert line.split()[3:5] == ["2", "80"] and " 5.0 " in line
    assert " online " in printed.splitlines()[0] and "best of N" not in printed
    assert "0.250 ± 0.000" in line
    assert "SEA" not in printed  # not finished


def test_what_passive_has_is_matched_seed_by_seed():
    """Seeds 1 and 2 need 64 and 32 of passive's 256 queries: √(4 · 8) = 5.7; the third never gets there."""
    runs = {
        "passive": [rows((0, 0), (256, 2)), rows((0, 0), (256, 8)), rows((0, 0), (256, 5))],
        "sea": [rows((0, 0), (128, 4)), rows((0, 0), (64, 16)), rows((0, 0), (128, 4))],
    }
    *_, line = report.match_table(runs, "eval/win_rate_sft", (256, 512)).splitlines()
    assert line.startswith("SEA ") and line.endswith(" 5.7 (4.0-8.0), 1 of 3 never")
    assert "512" not in report.match_table(runs, "eval/win_rate_sft", (256, 512))
    assert report.match_table({"sea": runs["sea"]}, "eval/win_rate_sft", (256,)) == ""


def test_runs_of_another_folder_stand_beside_and_are_a_base_of_their_own(tmp_path):
    """SEA needs a quarter of passive's queries here, and half of the other folder's passive."""
    config = dict(seed=0, num_seeds=1, methods=("passive", "sea"))
    config["eval"] = dict(levels=(0.5,), reference_levels=(0.5,), reward_levels=(1.0,))
    for name, last in (
        ("here/runs/passive-seed0", 4),
        ("here/runs/sea-seed0", 16),
        ("there/runs/passive-seed0", 8),
    ):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        run = [
            {
                "queries": q, "eval/win_rate_sft": q / 256, "eval/win_rate_reference": q / 256,
                "eval/reward": last * q / 256, "ensemble/accuracy_heldout": 0.5,
            }
            for q in (0, 256)
        ]  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run))
        (folder / "done.json").write_text("{}")
    printed = report.write(tmp_path / "here", ConfigDict(config), (tmp_path / "there",))
    lines = [
        line for part in printed.split("\n\n") if "has in eval/reward" in part for line in part.splitlines()
    ]
    assert [line.split("  ")[0] for line in lines if "has in" in line] == [
        "times fewer for what passive has in eval/reward at",
        "times fewer for what passive online DAP (there) has in eval/reward at",
    ]
    assert [line.split()[-2:] for line in lines if line.startswith("SEA")] == [
        ["4.0", "(4.0-4.0)"], ["2.0", "(2.0-2.0)"],
    ]  # fmt: skip


def sweep_of_two_sizes(root, finished):
    """Win rates that SEA reaches with half of passive's queries, and seed 1 with half of seed 0's."""
    evaluation = dict(levels=(0.7,), reference_levels=(0.5,), reward_levels=(1.0,))
    config = {"seed": 3, "eval": evaluation}
    made = sweep.Sweep(root, {}, (), {"1b": config, "2.8b": config}, ("passive", "sea"), (0, 1))
    made.write()
    for unit in (unit for size in made.configs for unit in made.units(size)):
        if unit.name not in finished:
            continue
        unit.run_folder.mkdir(parents=True)
        last = 0.5 + 0.1 * (1 + (unit.method == "sea")) * (1 + unit.seed - 3)
        metrics = ("eval/win_rate_sft", "eval/win_rate_reference", "eval/reward", "ensemble/accuracy_heldout")
        rows = [{"queries": q} | dict.fromkeys(metrics, v) for q, v in ((0, 0.4), (256, last))]
        (unit.run_folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (unit.run_folder / "done.json").write_text("{}")
    return made


def test_a_sweeps_report_has_a_part_for_each_size_and_names_what_has_not_finished(tmp_path, capsys):
    names = {"1b/passive-seed3", "1b/passive-seed4", "1b/sea-seed4", "2.8b/passive-seed3"}
    made = sweep_of_two_sizes(tmp_path, names)
    failed, *_ = (unit for unit in made.units("1b") if unit.name == "1b/sea-seed3")
    failed.folder.mkdir()
    failed.log.write_text("Traceback …\n\nerror: it broke\n\n")
    report.main(["report", str(tmp_path)])
    printed = capsys.readouterr().out
    first, second = printed.split("== 2.8b")
    assert "\nSEA " in first and "\nSEA " not in second
    assert printed.split("NOT FINISHED, and not in this report: 4 runs\n")[1].splitlines()[:4] == [
        f"1b/sea-seed3: {tmp_path}/1b/sea-seed3/log.txt ends: error: it broke",
        "2.8b/sea-seed3: not begun", "2.8b/passive-seed4: not begun", "2.8b/sea-seed4: not begun",
    ]  # fmt: skip
    assert (tmp_path / "report.png").stat().st_size > 10_000
    assert (tmp_path / "report.txt").read_text() in printed


def test_methods_of_a_sweep_are_compared_on_the_seeds_that_all_have(tmp_path):
    """Passive goes from 0.4 to 0.7 on seed 4, SEA to 0.9: 0.5 at 85 and at 51 queries."""
    names = {"1b/passive-seed3", "1b/passive-seed4", "1b/sea-seed4"}
    sweep_of_two_sizes(tmp_path, names)
    printed = report.write_sweep(tmp_path)
    lines = printed.split("queries to eval/win_rate_reference")[1].splitlines()
    assert [line.split()[-1] for line in lines[2:4]] == ["85", "(1.7x)"] and " 51 " in lines[3]
    assert printed.count("times fewer for what passive has") == 2 and "no run has finished" in printed


def test_a_sweep_without_a_seed_that_all_have_compares_nothing(tmp_path):
    sweep_of_two_sizes(tmp_path, {"1b/passive-seed3", "1b/sea-seed4"})
    printed = report.write_sweep(tmp_path)
    assert "SEA " in printed and "queries to eval/" not in printed and "times fewer" not in printed


def test_a_spoilt_sweep_is_one_line(tmp_path):
    (tmp_path / "sweep.json").write_text('{"configs": {}}')
    with pytest.raises(SystemExit, match=r"^error: .*sweep\.json: not a sweep's; valid: another folder$"):
        report.main(["report", str(tmp_path)])
