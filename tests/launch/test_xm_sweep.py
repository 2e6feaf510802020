"""Tests a sweep from command to report: its plan, its refusals, and a real run through XManager."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from launch import sweeps
from sea_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}  # XLA flags: these programs run for milliseconds
TINY = str(ROOT / "tests/tiny_sweep.py")


def plan(file=TINY, given=(), methods=("passive", "sea"), seeds=2, sizes=None, root="r"):
    return sweeps.plan(file, tuple(given), list(methods), seeds, sizes, root)


def commands(sweep):
    """Returns the name of each unit that would run -> its arguments by flag."""
    found = {}
    for first, units in sweeps.unfinished_units(sweep).values():
        for unit in [*([first] if first else []), *units]:
            pairs = (arg.removeprefix("--").partition("=") for arg in sweeps.unit_arguments(sweep, unit))
            found[unit.name] = {name: value for name, _, value in pairs}
    return found


def test_every_method_seed_and_size_is_a_unit_with_the_replicates_seeds():
    given = ["--config.seed=100", "--config.task.oracle_seed=7", "--config.train.beta=0.3"]
    found = commands(plan(given=given, sizes=["16", "24"], root="r"))
    assert list(found) == [
        f"{size}/{run}"
        for size in ("16", "24")
        for run in ("prepare", "passive-seed100", "sea-seed100", "passive-seed101", "sea-seed101")
    ]
    unit = found["24/sea-seed101"]
    assert unit["config"] == f"{TINY}:size=24" and unit["config.train.beta"] == "0.3"
    assert (unit["config.seed"], unit["config.task.oracle_seed"], unit["config.num_seeds"]) == (
        "101", "8", "1",
    )  # fmt: skip
    assert unit["config.methods"] == "('sea',)" and unit["workdir"] == "r/24/sea-seed101"
    assert {command["config.cache_dir"] for command in found.values()} == {"r/cache"}
    first = found["16/prepare"]  # trains the parts that any of the methods needs
    assert "prepare" in first and first["config.methods"] == "('passive', 'sea')"
    assert [name for name, command in found.items() if "prepare" in command] == ["16/prepare", "24/prepare"]


def test_what_is_left_out_is_the_configs(monkeypatch):
    sweep = sweeps.plan("configs/tldr.py:dap=ipo,size=2.8b", (), None, None, None, None)
    assert list(sweep.configs) == ["2.8b"] and sweep.root == pathlib.Path("runs/sweep-tldr")
    assert (sweep.methods, sweep.replicates) == (("sea",), (0, 1, 2))
    assert list(commands(sweep)) == [f"2.8b/sea-seed{i}" for i in range(3)]  # no shared parts to train
    assert list(sweeps.plan("configs/quickstart.py", (), None, 1, None, None).configs) == ["quickstart"]
    both = sweeps.plan("configs/tldr.py:dap=ipo,size=1b", (), None, 1, ["1b", "6.9b"], None)
    assert list(both.files.values()) == [f"configs/tldr.py:size={s},dap=ipo" for s in ("1b", "6.9b")]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (dict(methods=["sea", "offlin"]), "--methods=offlin: valid are passive, offline, iterative, apl, "),
        (dict(methods=[]), "--methods=: valid are passive"),
        (dict(seeds=0), "--seeds=0: valid is at least 1"),
        (dict(sizes=["16", "32"]), "size=32: config option 'size=32': valid values are 16, 24"),
        (dict(file="configs/quickstart.py", sizes=["1b"]), "configs/quickstart.py:size=1b: this config has no options"),
        (dict(sizes=["../16"]), "--sizes=../16: valid are values of the option size"),
        (dict(sizes=[]), "--sizes=: valid are"),
        (dict(given=["--config.sead=3"]), "config.sead='3': no such field"),
        (dict(given=["--config.train.dap=ppo"]), "config.train.dap='ppo': valid is one of"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_work_is_one_line(changed, said):
    with pytest.raises(InputError) as error:
        plan(**changed)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_users_own_fields_are_passed_on_but_not_those_that_a_sweep_sets():
    argv = ["xmanager", "launch", "x.py", "--", "--config=f", "--config.seed", "3", "--seeds=2"]
    argv += ["--noconfig.train.per_token", "--config.methods_like=1"]
    assert sweeps.overrides(argv) == (
        "--config.seed=3", "--noconfig.train.per_token", "--config.methods_like=1",
    )  # fmt: skip
    for field in ("methods", "num_seeds", "progress"):
        with pytest.raises(InputError, match=f"--config.{field}: a sweep sets it; valid: "):
            sweeps.overrides(["x", f"--config.{field}=1"])


def test_a_root_takes_more_of_its_sweep_and_no_other_sweep(tmp_path):
    first = sweeps.claim(plan(sizes=["16"], seeds=1, methods=["sea"], root=tmp_path / "r"))
    more = sweeps.claim(plan(sizes=["24"], seeds=2, methods=["passive"], root=tmp_path / "r"))
    assert list(first.configs) == ["16"] and list(more.configs) == ["16", "24"]
    assert (more.methods, more.replicates) == (("sea", "passive"), (0, 1))
    for other in (
        dict(sizes=["16"], given=["--config.train.beta=0.2"]),
        dict(sizes=["24"], given=["--config.train.beta=0.2"]),
    ):
        with pytest.raises(InputError, match=r"train\.beta=0\.1, not 0\.2; valid: that config, or another"):
            sweeps.claim(plan(**other, root=tmp_path / "r"))
    with pytest.raises(InputError, match=r"holds a sweep of 16 with .*valid: that config, or another"):
        sweeps.claim(plan(file="configs/tldr.py", root=tmp_path / "r"))
    (tmp_path / "r/sweep.json").write_text("{")
    with pytest.raises(InputError, match=r"sweep\.json: not JSON"):
        sweeps.claim(plan(root=tmp_path / "r"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    with pytest.raises(InputError, match="no sweep; valid: another --root"):
        sweeps.claim(plan(root=tmp_path / "run"))


def launch(home, *arguments):
    """Runs `xmanager launch launch/xm_sweep.py -- …`; XManager keeps its experiments in the home folder."""
    environment = os.environ | {"HOME": str(home)} | QUICK
    call = [sys.executable, "-m", "launch.xm_sweep", *arguments]
    return subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.xmanager
def test_an_interrupted_sweep_ends_its_units(tmp_path):
    root = tmp_path / "sweep"
    call = [sys.executable, "-m", "launch.xm_sweep", f"--config={TINY}", "--seeds=1", f"--root={root}"]
    environment = os.environ | {"HOME": str(tmp_path)}

    def running():
        return str(root) in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout

    def wait_until(condition):
        deadline = time.monotonic() + 300  # the first call makes the environment of XManager
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    with subprocess.Popen(
        call, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        wait_until((root / "tiny_sweep/prepare/log.txt").exists)
        run.terminate()
        out, err = run.communicate(timeout=60)
    said = err.splitlines()[-1]  # a line about a new environment may precede it
    assert run.returncode == 130 and said.startswith("interrupted; the same command goes on"), err
    assert out.startswith("[1/3] tiny_sweep/prepare: ")
    wait_until(lambda: not running())


@pytest.mark.xmanager
def test_a_sweep_through_xmanager_with_a_unit_that_fails(tmp_path):
    """One of four units fails on a corrupt config; without it, a second sweep runs this unit alone."""
    root = tmp_path / "sweep"
    command = [f"--config={TINY}:size=16", "--methods=passive,sea", "--seeds=2", "--parallel=2"]
    command.append(f"--root={root}")
    spoilt = root / "16/sea-seed1/config.json"
    spoilt.parent.mkdir(parents=True)
    spoilt.write_text("{")
    (root / "cache").mkdir()
    compiled = ROOT / ".cache/jax"  # shares the programs of the other tests
    compiled.mkdir(parents=True, exist_ok=True)
    (root / "cache/xla").symlink_to(compiled)
    run = launch(tmp_path, *command)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "failed: 16/sea-seed1: error: workdir" in run.stderr and "Traceback" not in run.stderr
    assert (
        "[5/5]" in run.stdout and "NOT FINISHED, and not in this report: 1 runs\n16/sea-seed1" in run.stdout
    )
    for name in ("passive-seed0", "sea-seed0", "passive-seed1"):
        assert (root / f"16/{name}/runs/{name}/policy/model.safetensors").exists()
        assert f"figure: {root}/16/{name}/report.png" in (root / f"16/{name}/log.txt").read_text()
    trained = {folder.name: folder.stat().st_mtime_ns for folder in (root / "cache").iterdir()}
    assert {name.split("-")[0] for name in trained} == {"task", "sft", "samples", "backbone", "heads", "xla"}
    logged = (root / "16/sea-seed0/runs/sea-seed0/metrics.jsonl").read_text()

    spoilt.unlink()
    run = launch(tmp_path, *command)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "[1/1]" in run.stdout and "NOT FINISHED" not in run.stdout
    assert (root / "16/sea-seed0/runs/sea-seed0/metrics.jsonl").read_text() == logged
    assert all(
        (root / "cache" / name).stat().st_mtime_ns == at for name, at in trained.items() if "-" in name
    )
    rows = [
        line.split() for line in run.stdout.splitlines() if line.startswith(("SEA ", "passive online DAP "))
    ]
    assert rows[1][:3] == ["SEA", "2", "16"] and rows[0][3:5] == ["2", "16"]  # seeds, queries
    assert (root / "report.png").stat().st_size > 10_000
    seeds = [json.loads((root / f"16/sea-seed{i}/config.json").read_text()) for i in (0, 1)]
    assert [(c["seed"], c["task"]["oracle_seed"], c["num_seeds"]) for c in seeds] == [(0, 0, 1), (1, 1, 1)]

    run = launch(tmp_path, *command, "--config.sead=3")
    assert run.returncode == 2 and "no such field" in run.stderr and len(run.stderr.splitlines()) == 1
