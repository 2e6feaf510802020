"""Reports of work directories and sweeps."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT
from made_runs import write_run
from ml_collections import ConfigDict

from sea_jax.report import figure, report, sweep
from sea_jax.report.__main__ import main
from sea_jax.runtime.run_folder import write_warnings


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves out the figure, which takes a second; what it would have drawn."""
    drawn = []
    monkeypatch.setattr(figure, "draw", lambda *args: drawn.append(args))
    return drawn


def test_report_of_a_work_directory(tmp_path, undrawn):
    """Only finished runs of the config's seeds and methods; stage seconds are summed over seeds."""
    levels = dict(levels=(0.7,), reference_levels=(0.7,), reward_levels=(1.0,))
    config = ConfigDict(dict(seed=3, num_seeds=2, methods=("passive", "sea"), eval=levels))
    for method, seed in (("passive", 3), ("passive", 4), ("passive", 5), ("sea", 3), ("ceiling", 3)):
        run = [
            {
                "queries": q, "eval/win_rate_sft": 0.5 + q / 200, "eval/win_rate_reference": 0.5,
                "eval/reward": 0.1 * q, "time/learn_s": 1.25, "ensemble/accuracy_heldout": 0.75,
                "ensemble/accuracy_chosen": 0.625 if q else None,
                "duel/win_rate_reference_so_far": 0.25 if q else None,
            }
            for q in (0, 80)
        ]  # fmt: skip
        write_run(tmp_path, method, seed, run, finished=method != "sea")
    printed = report.write(tmp_path, config)
    [(sizes, evaluations, file)] = undrawn
    assert (list(sizes[""]), file) == (["passive"], tmp_path / "report.png")
    bars = figure.bar_levels(sizes[""], evaluations[""])
    assert bars == ("eval/win_rate_reference", "win rate against references", (0.7,))
    assert printed.endswith(f"figure: {file}")
    assert (tmp_path / "report.txt").read_text() in printed + "\n"
    line = next(line for line in printed.splitlines() if line.startswith("passive"))
    assert line.split()[3:5] == ["2", "80"] and " 5.0 " in line
    assert " online " in printed.splitlines()[0] and "best of N" not in printed
    assert "0.250 ± 0.000" in line
    assert "SEA" not in printed and "ceiling" not in printed  # not finished; not of the config


def evaluated(last, end=256, start=0.0):
    """Rows whose metrics go from `start` to `last`."""
    names = ("eval/win_rate_sft", "eval/win_rate_reference", "eval/reward")
    return [{"queries": q} | dict.fromkeys(names, value) for q, value in ((0, start), (end, last))]


def config_of(*methods, **fields):
    levels = dict(levels=(0.5,), reference_levels=(0.5,), reward_levels=(1.0,))
    return dict(seed=0, num_seeds=1, methods=methods, eval=levels) | fields


def save_config(workdir, *methods, **fields):
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(config_of(*methods, **fields)))


def test_a_task_without_references_has_no_levels_against_them(tmp_path, undrawn):
    """The bars show gains in reward instead, and win rates against SFT where the config has no gains."""
    rows = [{"queries": q, "eval/win_rate_sft": 0.5, "eval/reward": q / 8} for q in (0, 16)]
    write_run(tmp_path, "passive", 0, rows)
    config = ConfigDict(config_of("passive"))
    config.eval.gain_levels = (1.0,)
    printed = report.write(tmp_path, config)
    assert "eval/win_rate_reference" not in printed and "queries to eval/reward_gain" in printed
    [(sizes, evaluations, _)] = undrawn
    assert figure.bar_levels(sizes[""], evaluations[""]) == ("eval/reward_gain", "gain in mean r*", (1.0,))
    config.eval.gain_levels = ()
    assert figure.bar_levels(sizes[""], config.eval) == ("eval/win_rate_sft", "win rate against SFT", (0.5,))


def test_a_method_that_a_user_registered_is_shown_by_its_own_label(tmp_path, undrawn):
    """Its label and place come from the run and the config, which this package's table does not know."""
    config = ConfigDict(config_of("mine", "passive"))
    write_run(tmp_path, "passive", 0, evaluated(0.5))
    write_run(tmp_path, "mine", 0, evaluated(1.0), label="Mine, with care")
    lines = report.write(tmp_path, config).splitlines()
    assert [line.split("  ")[0] for line in lines[2:4]] == ["Mine, with care", "passive online DAP"]


def test_a_run_of_an_older_version_goes_by_its_methods_name(tmp_path, undrawn):
    folder = write_run(
        tmp_path, "sea", 0, [*evaluated(0.5), {"queries": 256, "ensemble/accuracy_heldout": 0.5}]
    )
    (folder / "done.json").write_text('{"queries": 256}')
    printed = report.write(tmp_path, ConfigDict(config_of("sea")))
    assert "\nsea " in printed and printed.count("ensemble accuracy") == 1


def test_all_runs_of_a_folder_are_shown_whatever_its_last_call_named(tmp_path, undrawn):
    save_config(tmp_path, "sea")
    for method, seed in (("xpo", 0), ("passive", 0), ("passive", 1), ("sea", 0)):
        write_run(tmp_path, method, seed, evaluated(0.5))
    lines = main([tmp_path]).splitlines()
    assert [line.split("  ")[0] for line in lines[2:5]] == ["SEA", "passive online DAP", "xpo"]
    assert "methods are compared on the seeds that all of them have finished: 0" in lines
    assert lines[3].split()[3] == "2"  # seeds of passive, in the table that compares nothing


def test_runs_of_another_folder_stand_beside_and_are_a_base_of_their_own(tmp_path, undrawn):
    """SEA needs a quarter of passive's queries here, and half of the other folder's passive."""
    here, there = tmp_path / "here", tmp_path / "there"
    for workdir in (here, there):
        save_config(workdir, "passive", "sea")
    write_run(here, "passive", 0, evaluated(4))
    write_run(here, "sea", 0, evaluated(16))
    write_run(there, "passive", 0, evaluated(8))
    printed = main([here, there])
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


def test_folders_of_one_name_are_told_apart(tmp_path, undrawn):
    for name in ("a/runs", "b/runs", "here"):
        save_config(tmp_path / name, "passive")
        write_run(tmp_path / name, "passive", 0, evaluated(0.5))
    printed = main([tmp_path / "here", tmp_path / "a/runs", tmp_path / "b/runs"])
    assert f"passive online DAP ({tmp_path}/a/runs)" in printed and f"({tmp_path}/b/runs)" in printed


WARNING = dict(watch="kl", queries=40, value=1.0, bound=0.8, said="KL is 1, above 0.8", advice="look")


def test_warnings_of_watches_are_lines(tmp_path, undrawn):
    """Of runs that have not finished too; of the config's methods and seeds, or of all of a folder."""
    here, there = tmp_path / "here", tmp_path / "there"
    for workdir, seeds in ((here, (0, 1)), (there, (0,))):
        save_config(workdir, "passive", "sea")
        write_run(workdir, "passive", 0, evaluated(0.5))
        for seed in seeds:
            write_warnings(write_run(workdir, "sea", seed, evaluated(0.5), finished=False), [WARNING])
    said = "sea{} seed {}, 40 labels: watch kl: KL is 1, above 0.8"
    expected = f"WARNINGS: 1\n{said.format('', 0)}\n"
    assert expected in report.write(here, ConfigDict(config_of("passive", "sea")))
    assert "WARNINGS" not in report.write(here, ConfigDict(config_of("passive")))
    main([here, there])
    lines = [said.format(*run) for run in (("", 0), ("", 1), ("@there", 0))]
    assert "\n".join(["WARNINGS: 3", *lines]) in (here / "report.txt").read_text()


def test_warnings_of_a_sweep_stand_in_the_part_of_their_size(tmp_path, undrawn):
    made = sweep_of_two_sizes(tmp_path, {"1b/passive-seed3", "2.8b/passive-seed3"})
    write_warnings(made.units("2.8b")[0].run_folder, [WARNING])
    first, second = main([tmp_path]).split("== 2.8b")
    assert "WARNINGS" not in first
    assert "WARNINGS: 1\npassive seed 3, 40 labels: watch kl: KL is 1, above 0.8" in second


def test_the_command_needs_no_jax(tmp_path):
    save_config(tmp_path, "passive")
    write_run(tmp_path, "passive", 0, evaluated(0.5))
    code = "import runpy, sys; sys.argv[1:] = [sys.argv[1]]; runpy.run_module('sea_jax.report', run_name='__main__')"
    code += "; assert 'jax' not in sys.modules and 'sea_jax.methods' not in sys.modules"
    call = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "\npassive online DAP " in done.stdout, done.stderr
    assert (tmp_path / "report.png").stat().st_size > 10_000


def sweep_of_two_sizes(root, finished):
    """Win rates that SEA reaches with half of passive's queries, and seed 1 with half of seed 0's."""
    evaluation = dict(levels=(0.7,), reference_levels=(0.5,), reward_levels=(1.0,))
    config = {"seed": 3, "eval": evaluation}
    made = sweep.Sweep(root, {}, (), {"1b": config, "2.8b": config}, ("passive", "sea"), (0, 1))
    made.write()
    for unit in (unit for size in made.configs for unit in made.units(size)):
        if unit.name in finished:
            last = 0.5 + 0.1 * (1 + (unit.method == "sea")) * (1 + unit.seed - 3)
            folder = write_run(unit.folder, unit.method, unit.seed, evaluated(last, start=0.4))
            assert folder == unit.run_folder and unit.finished
    return made


def test_a_sweeps_report_has_a_part_for_each_size_and_names_what_has_not_finished(tmp_path, undrawn):
    names = {"1b/passive-seed3", "1b/passive-seed4", "1b/sea-seed4", "2.8b/passive-seed3"}
    made = sweep_of_two_sizes(tmp_path, names)
    failed, *_ = (unit for unit in made.units("1b") if unit.name == "1b/sea-seed3")
    failed.folder.mkdir()
    failed.log.write_text("Traceback …\n\nerror: it broke\n\n")
    printed = main([tmp_path])
    first, second = printed.split("== 2.8b")
    assert "\nSEA " in first and "\nSEA " not in second
    assert printed.split("NOT FINISHED, and not in this report: 4 runs\n")[1].splitlines()[:4] == [
        f"1b/sea-seed3: {tmp_path}/1b/sea-seed3/log.txt ends: error: it broke",
        "2.8b/sea-seed3: not begun", "2.8b/passive-seed4: not begun", "2.8b/sea-seed4: not begun",
    ]  # fmt: skip
    [(sizes, evaluations, file)] = undrawn
    assert file == tmp_path / "report.png"
    assert {size: figure.bar_levels(sizes[size], evaluations[size]).levels for size in sizes} == {
        "1b": (0.5,),
        "2.8b": (0.5,),
    }
    assert {size: list(runs) for size, runs in sizes.items()} == {
        "1b": ["passive", "sea"],
        "2.8b": ["passive"],
    }
    assert (tmp_path / "report.txt").read_text() in printed


def test_methods_of_a_sweep_are_compared_on_the_seeds_that_all_have(tmp_path):
    """Passive goes from 0.4 to 0.7 on seed 4, SEA to 0.9: 0.5 at 85 and at 51 queries. One size has no run."""
    names = {"1b/passive-seed3", "1b/passive-seed4", "1b/sea-seed4"}
    sweep_of_two_sizes(tmp_path, names)
    printed = report.write_sweep(tmp_path)
    lines = printed.split("queries to eval/win_rate_reference")[1].splitlines()
    assert [line.split()[-1] for line in lines[2:4]] == ["85", "(1.7x)"] and " 51 " in lines[3]
    assert printed.count("times fewer for what passive has") == 2 and "no run has finished" in printed
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_a_sweep_without_a_seed_that_all_have_compares_nothing(tmp_path, undrawn):
    sweep_of_two_sizes(tmp_path, {"1b/passive-seed3", "1b/sea-seed4"})
    printed = report.write_sweep(tmp_path)
    assert "SEA " in printed and "queries to eval/" not in printed and "times fewer" not in printed
    assert "methods are not compared: there is no seed that all of them have finished" in printed


def test_a_spoilt_sweep_is_one_line(tmp_path):
    (tmp_path / "sweep.json").write_text('{"configs": {}}')
    with pytest.raises(SystemExit, match=r"^error: .*sweep\.json: not a sweep's; valid: another folder$"):
        main([tmp_path])


def test_spoilt_metrics_are_one_line(tmp_path, undrawn):
    save_config(tmp_path, "passive")
    folder = write_run(tmp_path, "passive", 0, evaluated(0.5))
    (folder / "metrics.jsonl").write_text('{"queries": 0}\n{"que')
    with pytest.raises(
        SystemExit, match=r"^error: .*metrics\.jsonl, line 2: not JSON \(.*valid: rows as a run"
    ):
        main([tmp_path])


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (
            "runs/passive-seed0/metrics.jsonl",
            "",
            "metrics.jsonl: ends after 0 labels; valid: the file of a run of 256",
        ),
        ("runs/passive-seed0/metrics.jsonl", '{"queries": 4}\n', "metrics.jsonl: ends after 4 labels"),
        ("runs/passive-seed0/done.json", '{"queries": "256"}', "done.json: queries='256'"),
        ("runs/passive-seed0/done.json", "{", "done.json: not JSON"),
        ("config.json", '{"methods": 3}', "config.json: methods=3"),
        ("config.json", '{"methods": [], "eval": {"levels": [NaN]}}', "config.json: levels=[nan]"),
        ("config.json", "[" * 100_000, "config.json: nested too deeply"),
        ("runs/sea-seed0 (copy)/done.json", '{"queries": 1}', "sea-seed0 (copy): no run's name"),
        ("sweep.json", '{"files": {}, "configs": {"1b": {"seed": 0}}}', "sweep.json: eval=None"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, undrawn, file, content, said):
    save_config(tmp_path, "passive")
    write_run(tmp_path, "passive", 0, evaluated(0.5))
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)
    with pytest.raises(SystemExit, match=r"^error: ") as error:
        main([tmp_path])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_without_a_folder_the_usage_is_shown(tmp_path):
    for folders in ([], [tmp_path]):
        with pytest.raises(SystemExit, match=r"usage: python -m sea_jax\.report <work directory"):
            main(folders)
