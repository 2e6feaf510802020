"""Mistakes of a user: one line on stderr that names field, value and what is valid, and exit status 2,
before anything is trained; and a loss that is not finite stops a run with its inputs saved."""

import json
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT
from small_run import loop, small_run

from configs import quickstart
from sea_jax import main, models
from sea_jax.errors import InputError
from sea_jax.experiment import assets, validate
from sea_jax.experiment import run as experiment
from sea_jax.experiment.workdir import claim_workdir
from sea_jax.pretraining import cache as parts
from sea_jax.runtime.run_folder import read_warnings
from sea_jax.tasks import mini_tldr


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    mini_tldr.load(folder / "task")
    return folder


@pytest.fixture
def complaint(cache, monkeypatch, capsys):
    """A function: fields of the config that differ from the quickstart's -> the line on stderr."""
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(assets, "prepare", lambda *_: pytest.fail("training began"))

    def run(workdir, **fields):
        config = quickstart.get_config()
        config.overrides.update(fields.pop("overrides", {}))
        config.update_from_flattened_dict({"cache_dir": str(cache)} | fields)
        monkeypatch.setattr(main, "_CONFIG", types.SimpleNamespace(value=config))
        monkeypatch.setattr(main, "_WORKDIR", types.SimpleNamespace(value=str(workdir)))
        for flag in ("_PREPARE", "_PRINT", "_EXTEND", "_LABELS", "_PARTIAL"):
            monkeypatch.setattr(main, flag, types.SimpleNamespace(value=False))
        monkeypatch.setattr(main, "_join", lambda: None)  # its flags are parsed in a process of its own
        with pytest.raises(SystemExit) as exit:
            main.main(["sea_jax"])
        out, err = capsys.readouterr()
        assert exit.value.code == 2 and not out
        assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
        return err.strip()

    return run


def command(*arguments):
    """The same line from a process of its own: exit status and stderr."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "sea_jax.main", *arguments]
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert not done.stdout
    return done.returncode, done.stderr


FILE, WORKDIR = "--config=configs/quickstart.py", "--workdir=never-made"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--config.train.batch_sze=4"],
            ["config.train.batch_sze='4'", "no such field", "; nearest is config.train.batch_size"],
        ),
        (["--config.sae.gamma", "1"], ["config.sae.gamma='1'", "no such field", "ensemble, eval", "sea"]),
        (["--config.seed.x=1"], ["config.seed.x='1'", "config.seed has no fields"]),
        (["--config.train.batch_size=many"], ["--config.train.batch_size=many", "int()"]),
        (["--wrkdir=x"], ["wrkdir", "Unknown"]),
        (["--num_processes=2"], ["--num_processes", "valid only with --coordinator"]),
        (["--coordinator=here"], ["--coordinator='here'", "<host>:<port>"]),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], ["--process_id=2", "0 to 1"]),
        (["extra"], ["'extra'", "valid are --config, --workdir"]),
        (["--config=configs/none.py"], ["configs/none.py", "No such file"]),
    ],
)
def test_arguments(arguments, said):
    status, err = command(FILE, WORKDIR, *arguments)
    assert status == 2 and err.count("\n") == 1 and err.startswith("error: ")
    assert all(part in err for part in said), err
    assert not (ROOT / "never-made").exists()


@pytest.mark.parametrize("given", [FILE, WORKDIR])
def test_required_arguments(given):
    status, err = command(given)
    assert status == 2 and err.count("\n") == 1
    assert ("--workdir" if given == FILE else "--config") in err


def test_a_process_ends_as_the_functions_do(cache, tmp_path):
    status, err = command(
        FILE, f"--workdir={tmp_path}", f"--config.cache_dir={cache}", "--config.methods=('passive','sae')"
    )
    assert status == 2 and err.count("\n") == 1
    assert "config.methods='sae'" in err and "'sea'" in err


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"methods": ("passive", "sae")}, ["config.methods='sae'", "'passive'", "'sea'"]),
        ({"methods": ()}, ["config.methods=()", "at least one"]),
        ({"sea.num_responses": 1}, ["config.sea.num_responses=1", "at least 2", "sea"]),
        ({"train.dap": "dop"}, ["config.train.dap='dop'", "'dpo'", "'ipo'", "'simpo'", "'slic'"]),
        ({"task.name": "tldr"}, ["config.task.name='tldr'", "mini_tldr", "configs/tldr.py"]),
        ({"task.name": "cnn"}, ["config.task.name='cnn'", "mini_tldr", "ultrafeedback", "local"]),
        ({"oracle.kind": "crowd"}, ["config.oracle.kind='crowd'", "task", "reward_model"]),
        ({"oracle.kind": "reward_model"}, ["config.oracle.folder=''", "oracle.kind='reward_model'"]),
        ({"oracle.labels": "coin"}, ["config.oracle.labels='coin'", "threshold", "bernoulli"]),
        ({"oracle.flip_probability": 1.5}, ["config.oracle.flip_probability=1.5", "[0, 1]"]),
        ({"train.schedule": "step"}, ["config.train.schedule='step'", "constant", "cosine"]),
        ({"sea.gamma": 0.0}, ["config.sea.gamma=0.0", "(0, 1]"]),
        ({"sea.gamma": 1.5}, ["config.sea.gamma=1.5", "(0, 1]"]),
        ({"sea.gamma": 0.0004}, ["config.sea.gamma=0.0004", "above 0.0005", "train.max_idle_steps"]),
        ({"sea.gamma_mode": "half"}, ["config.sea.gamma_mode='half'", "count", "bernoulli"]),
        ({"sea.synthetic_pairs": "all"}, ["config.sea.synthetic_pairs='all'", "thompson", "max_margin"]),
        ({"ensemble.capacity": 0}, ["config.ensemble.capacity=0", "at least"]),
        ({"ensemble.capacity": 3}, ["config.ensemble.capacity=3", "train.batch_size=4", "'sea'"]),
        ({"sea.burn_in": -1}, ["config.sea.burn_in=-1", "at least 0"]),
        ({"train.query_budget": 0}, ["config.train.query_budget=0", "at least 1"]),
        ({"train.temperature": 0.0}, ["config.train.temperature=0.0", "above 0"]),
        ({"train.learning_rate": -1e-3}, ["config.train.learning_rate=-0.001", "above 0"]),
        ({"train.max_idle_steps": 0}, ["config.train.max_idle_steps=0", "at least 1"]),
        ({"mesh.data": 0}, ["config.mesh.data=0", "at least 1"]),
        ({"mesh.data": 3}, ["config.mesh={'data': 3", "data · fsdp divides train.batch_size=4"]),
        ({"mesh.fsdp": 4, "train.micro_batch": 2}, ["'fsdp': 4", "train.micro_batch=2"]),
        ({"mesh.tensor": 0}, ["config.mesh.tensor=0", "at least 1"]),
        ({"sampler.micro_batch": 3}, ["config.sampler.micro_batch=3", "divisor of train.batch_size=4"]),
        ({"policy.dtype": "float16"}, ["config.policy.dtype='float16'", "bfloat16"]),
        ({"backbone.kind": "decoder"}, ["config.backbone.kind='decoder'", "ranker", "encoder"]),
        (
            {"backbone.kind": "encoder", "ensemble.prior": "random"},
            ["config.encoder.folder=''", "backbone.kind='encoder'"],
        ),
        (
            {"backbone.kind": "encoder", "encoder.folder": "x"},
            ["config.ensemble.prior='pretrained'", "'random' with backbone.kind='encoder'"],
        ),
        ({"backbone.pool": "first"}, ["config.backbone.pool='first'", "last", "mean", "both"]),
        ({"backbone.scaling": "whiten"}, ["config.backbone.scaling='whiten'", "standard", "pca"]),
        (
            {"backbone.kind": "policy", "backbone.layer": 3},
            ["config.backbone.layer=3", "-1 (half) to 2, the policy's layers"],
        ),
        (
            {"backbone.kind": "policy", "backbone.num_responses": 1},
            ["config.backbone.num_responses=1", "at least 2 with backbone.kind='policy'"],
        ),
        (
            {"backbone.kind": "policy", "backbone.num_prompts": 20_001},
            ["config.backbone.num_prompts=20001", "1 to 20000"],
        ),
        ({"sft.token_chunk": 8}, ["config.sft.token_chunk=8", "sft.prompt_weight=0, not 0.1"]),
        ({"methods": ("sft",)}, ["config.methods='sft'", "a command: python -m sea_jax.main sft --config"]),
        (
            {"methods": ("sea", "rm")},
            ["config.methods='rm'", "a command: python -m sea_jax.main rm --config"],
        ),
        ({"train.micro_batch": 3}, ["config.train.micro_batch=3", "divisor of train.batch_size=4"]),
        ({"train.per_token": True}, ["config.train.per_token=True", "'ipo', not 'dpo'"]),
        (
            {"methods": ("passive", "xpo"), "train.dap": "ipo"},
            ["config.train.dap='ipo'", "'dpo' with methods='xpo'"],
        ),
        (
            {"methods": ("xpo",), "overrides": {"xpo": {"train": {"dap": "slic"}}}},
            ["config.overrides.xpo.train.dap='slic'", "'dpo' with methods='xpo'"],
        ),
        (
            {"methods": ("apl",), "train.dap": "simpo"},
            ["config.train.dap='simpo'", "'dpo' with methods='apl'"],
        ),
        ({"apl.pool_factor": 0}, ["config.apl.pool_factor=0", "at least 1"]),
        ({"apl.entropy_samples": 0}, ["config.apl.entropy_samples=0", "at least 1"]),
        ({"apl.num_responses": 1}, ["config.apl.num_responses=1", "at least 2"]),
        (
            {"methods": ("passive", "apl"), "apl.pool_factor": 5001},
            ["config.apl.pool_factor=5001", "at most 5000 with train.batch_size=4", "20000 train prompts"],
        ),
        (
            {"methods": ("apl",), "overrides": {"apl": {"train": {"batch_size": 4000}}}},
            ["config.apl.pool_factor=8", "at most 5 with train.batch_size=4000"],
        ),
        ({"xpo.alpha": -1e-6}, ["config.xpo.alpha=-1e-06", "at least 0"]),
        ({"xpo.alpha": float("nan")}, ["config.xpo.alpha=nan", "at least 0"]),
        ({"train.margin_ratio": -0.1}, ["config.train.margin_ratio=-0.1", "at least 0"]),
        ({"eval.split": "test"}, ["config.eval.split='test'", "tuning", "heldout"]),
        ({"eval.num_prompts": 1001}, ["config.eval.num_prompts=1001", "at most 1000"]),
        ({"eval.best_of": 0}, ["config.eval.best_of=0", "at least 1"]),
        ({"eval.best_of": 4, "methods": ("passive",)}, ["config.eval.best_of=4", "1 (off)", "'sea'"]),
        ({"backbone.num_prompts": 30_000}, ["config.backbone.num_prompts=30000", "20000"]),
        ({"ensemble.prior": "flat"}, ["config.ensemble.prior='flat'", "pretrained", "random"]),
        ({"ensemble.num_members": 41}, ["config.ensemble.num_members=41", "prior_heads.num_heads=40"]),
        ({"prior_heads.num_heads": 300}, ["config.prior_heads.num_heads=300", "backbone.num_rewards=256"]),
        ({"train.warmup_queries": -1}, ["config.train.warmup_queries=-1", "at least 0"]),
        (
            {"overrides": {"sea": {"ensemble": {"hidden": (8,)}}}},
            ["config.overrides.sea.ensemble.hidden=(8,)", "(128, 128)"],
        ),
        ({"policy.num_heads": 3}, ["config.policy.width=128", "multiple of policy.num_heads=3"]),
        ({"task.oracle_seed": 1_000_000}, ["config.task.oracle_seed=1000000", "in [0, "]),
        ({"policy.folder": "no/such"}, ["config.policy.folder='no/such'", "neither a folder here nor"]),
        ({"overrides": {"sae": {}}}, ["config.overrides.sae={}", "'sea'"]),
        ({"overrides": {"sea": {"sft": {"steps": 9}}}}, ["config.overrides.sea.sft.steps=9", "'train'"]),
        ({"overrides": {"sea": {"train": {"lr": 1.0}}}}, ["config.overrides.sea.train.lr=1.0", "'train'"]),
        ({"overrides": {"sea": {"sea": {"gamma": 2.0}}}}, ["config.overrides.sea.sea.gamma=2.0", "(0, 1]"]),
    ],
)
def test_config(complaint, tmp_path, fields, said):
    line = complaint(tmp_path / "workdir", **fields)
    assert all(part in line for part in said), line
    assert not (tmp_path / "workdir").exists()


def test_passive_alone_needs_no_proposals(cache):
    """M and D_t belong to active methods: a config without one may leave them at 1."""
    config = quickstart.get_config()
    config.sea.num_responses = config.ensemble.capacity = 1
    config.methods = ("passive", "xpo", "apl")
    validate.validate(config, mini_tldr.load(cache / "task"))


def test_a_loss_of_one_method_is_not_that_of_the_others(cache):
    """APL and XPO with DPO beside a passive run with IPO; a pool is no one's who has none."""
    config = quickstart.get_config()
    config.methods, config.train.dap, config.apl.pool_factor = ("passive", "xpo"), "ipo", 10**6
    config.overrides.update({"xpo": {"train": {"dap": "dpo"}}})
    validate.validate(config, mini_tldr.load(cache / "task"))


HF = dict(
    model_type="gpt_neox", vocab_size=1024, num_hidden_layers=2, hidden_size=16, num_attention_heads=2,
    intermediate_size=32, max_position_embeddings=2048,
)  # fmt: skip


@pytest.mark.parametrize(
    ("hf", "said"),
    [
        (dict(vocab_size=1024, max_position_embeddings=64), ["context of at least 90", "not 64"]),
        (dict(vocab_size=500, max_position_embeddings=2048), ["vocabulary", "1024", "not 500"]),
        (dict(vocab_size=None), ["config.json: vocab_size=None", "at least 1"]),
        (dict(max_position_embeddings="many"), ["config.json: max_position_embeddings='many'", "at least 1"]),
        (dict(model_type="mamba"), ["config.json: model_type='mamba'", "gpt_neox"]),
        (dict(hidden_act="relu"), ["config.json: hidden_act='relu'", "gelu"]),
        (dict(model_type="deberta-v2"), ["valid is a language model"]),
        ("no config", ["config.json"]),
    ],
)
def test_a_policy_that_cannot_hold_the_task(complaint, tmp_path, hf, said):
    (tmp_path / "config.json").write_text(json.dumps(HF | hf) if isinstance(hf, dict) else hf)
    line = complaint(tmp_path / "workdir", **{"policy.folder": str(tmp_path)})
    assert line.startswith(f"error: config.policy.folder={str(tmp_path)!r}")
    assert all(part in line for part in said), line


def test_work_directory_of_another_config(complaint, tmp_path):
    claim_workdir(quickstart.get_config(), tmp_path)
    before = (tmp_path / "config.json").read_text()
    line = complaint(tmp_path, **{"train.beta": 0.3})
    assert str(tmp_path) in line and "train.beta=0.1, not 0.3" in line and "--workdir" in line
    assert (tmp_path / "config.json").read_text() == before


def test_work_directory_of_an_older_version_had_the_defaults_of_new_fields(complaint, tmp_path):
    config = quickstart.get_config()
    claim_workdir(config, tmp_path)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text())
    del stored["train"]["ask_ahead"], stored["people"]
    file.write_text(json.dumps(stored))
    line = complaint(tmp_path, **{"train.ask_ahead": 1})
    assert "train.ask_ahead=0, not 1" in line
    claim_workdir(config, tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", '{"methods": '])
def test_work_directory_whose_config_is_none(complaint, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    line = complaint(tmp_path)
    assert f"workdir {tmp_path}: its config.json" in line and "another --workdir" in line


@pytest.mark.parametrize("option", ["--workdir", "config.cache_dir"])
def test_folders_that_cannot_be_made(complaint, tmp_path, option):
    (tmp_path / "file").write_text("in the way")
    at = tmp_path / "file" / "runs"
    line = complaint(at) if option == "--workdir" else complaint(tmp_path, cache_dir=str(at))
    assert f"{option}: {at}" in line and "can be written" in line


def test_work_directory_takes_more_methods_and_seeds(tmp_path):
    config = quickstart.get_config()
    claim_workdir(config, tmp_path)
    config.methods, config.num_seeds = ("ee_ts",), 5
    claim_workdir(config, tmp_path)


def test_texts_that_the_task_cannot_hold(cache):
    task = mini_tldr.load(cache / "task")
    with pytest.raises(InputError, match=r"prompts\[1\]: \d+ tokens, must be at most prompt_length=64"):
        task.encode_prompts([task.prompts["train"][0], "word " * 100])
    with pytest.raises(InputError, match=r"responses\[0\]: '' is empty"):
        task.encode_responses([""])


@pytest.mark.parametrize("spoil", [lambda content: content[:-9], lambda content: b""])
def test_a_spoilt_cache_is_named(tmp_path, spoil):
    recipe = parts.Recipe("backbone", 1, {}, {})
    array = np.arange(5.0, dtype=np.float32)
    found = parts.obtain_params(tmp_path, recipe, lambda: {"a": {"b": array}})
    np.testing.assert_array_equal(found["a"]["b"], array)
    folder = tmp_path / recipe.name
    file = folder / "params.safetensors"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(InputError, match=f"cache {file}: .*; valid: delete {folder}"):
        parts.read_params(folder)


@pytest.mark.parametrize("error", [ValueError, KeyError, FileNotFoundError])
def test_a_mistake_of_the_code_keeps_its_traceback(complaint, monkeypatch, capsys, tmp_path, error):
    """Only what a user can mend becomes one line."""

    def stop(*_):
        raise error("a bug")

    monkeypatch.setattr(experiment, "run", stop)
    with pytest.raises(error, match="a bug") as raised:
        complaint(tmp_path)
    assert raised.traceback[-1].name == "stop" and capsys.readouterr() == ("", "")


# --- a loss that is not finite ------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    run = small_run(tmp_path, "sea")
    params = jax.device_get(run.assets.ref_params)
    spoilt = jax.tree.map(lambda p: p * jnp.nan, run.assets.ref_params)
    run.ref_params = spoilt
    folder = tmp_path / "non_finite_step_0"
    with pytest.raises(FloatingPointError) as error:
        loop(run)
    assert "step 0" in str(error.value) and str(folder) in str(error.value)
    assert "policy/loss" in str(error.value) and "\n" not in str(error.value)
    [warning] = read_warnings(tmp_path)
    assert (warning["watch"], warning["queries"]) == ("finite", 4) and "step 0" in warning["said"]

    batch = np.load(folder / "batch.npz")
    assert batch["tokens"].shape[:2] == (4, 2) and batch["from_oracle"].all()
    state = np.load(folder / "state.npz")
    assert any("policy" in name for name in state) and any("ensemble" in name for name in state)
    _, saved = models.load(str(folder / "policy"))
    jax.tree.map(np.testing.assert_array_equal, saved, params)


def test_main_reports_it_in_one_line(monkeypatch, capsys, complaint, tmp_path):
    def stop(*_):
        raise FloatingPointError("step 3: {'policy/loss': nan} is not finite; its inputs are in x")

    monkeypatch.setattr(experiment, "run", stop)
    assert complaint(tmp_path).endswith("its inputs are in x")
