"""Cached parts: what names them, when they are taken, what the log says, and that a stopped training goes on."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers import decoder, truncate
from ml_collections import ConfigDict
from small_run import small_run

from sea_jax import models
from sea_jax.errors import InputError, StorageError
from sea_jax.experiment import assets
from sea_jax.pretraining import backbone as backbone_lib
from sea_jax.pretraining import cache, content, hidden_states, prepared, sft
from sea_jax.pretraining.cache import MADE_FROM, Recipe
from sea_jax.pretraining.ranker import Ranker
from sea_jax.runtime.owner import own

RECIPE = Recipe("heads", 2, {"a.seed": 0, "a.hidden": (8, 8)}, {"backbone": "backbone-1"})
OTHERS = [
    dataclasses.replace(RECIPE, kind="linear"),
    dataclasses.replace(RECIPE, version=3),
    dataclasses.replace(RECIPE, fields={"a.seed": 1, "a.hidden": (8, 8)}),
    dataclasses.replace(RECIPE, fields={"a.seed": 0}),
    dataclasses.replace(RECIPE, content={"backbone": "backbone-2"}),
]
SMALL = {
    "backbone.num_prompts": 6, "backbone.num_responses": 3, "backbone.num_rewards": 4, "backbone.steps": 4,
    "backbone.batch_size": 4, "backbone.pooled_width": 4, "backbone.width": 4, "backbone.gate_hidden": 4,
    "ensemble.prior": "pretrained", "checkpoint.every_s": 0.0,
}  # fmt: skip


def obtain(folder, recipe=RECIPE, value=1.0):
    """The value of the part that is there, or else of a new one with this value."""
    return float(cache.obtain_params(folder, recipe, lambda: {"x": np.full(9, value, np.float32)})["x"][0])


@pytest.mark.parametrize("other", OTHERS)
def test_all_that_a_part_is_made_from_names_it(tmp_path, other):
    assert other.name != RECIPE.name
    assert obtain(tmp_path) == obtain(tmp_path, value=2.0) == 1.0
    assert obtain(tmp_path, other, 3.0) == 3.0 and obtain(tmp_path, value=4.0) == 1.0
    turned = dataclasses.replace(RECIPE, fields={"a.hidden": [8, 8], "a.seed": 0})
    assert turned.name == RECIPE.name
    described = json.loads((tmp_path / RECIPE.name / MADE_FROM).read_text())
    assert (described["version"], described["content"]) == (2, {"backbone": "backbone-1"})


def spoil_recipe(folder):
    (folder / MADE_FROM).write_text("{")


def spoil_other(folder):
    """A part under the name of another, as after a copy by hand."""
    described = json.loads((folder / MADE_FROM).read_text())
    (folder / MADE_FROM).write_text(json.dumps(described | {"version": 1}))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / MADE_FROM).unlink(), spoil_recipe, spoil_other,
        lambda folder: truncate(folder / "params.safetensors", 0.5),
        lambda folder: (folder / "params.safetensors").unlink(),
    ],
)  # fmt: skip
def test_a_half_written_part_is_made_anew(tmp_path, caplog, spoil):
    obtain(tmp_path)
    spoil(tmp_path / RECIPE.name)
    with caplog.at_level("WARNING", logger="absl"):
        assert obtain(tmp_path, value=2.0) == obtain(tmp_path, value=3.0) == 2.0
    assert f"makes {tmp_path / RECIPE.name}: the one there is not whole" in caplog.text


def test_a_process_that_dies_while_it_writes_leaves_no_part(tmp_path):
    def write(folder):
        (folder / "params.safetensors").write_bytes(b"half")
        raise MemoryError

    with pytest.raises(MemoryError):
        cache.obtain(tmp_path, RECIPE, lambda _: write)
    assert not list(tmp_path.iterdir()) and obtain(tmp_path) == 1.0


def test_a_full_disk_is_one_line(tmp_path):
    def write(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=f"{RECIPE.name}: the part was not saved .*No space left"):
        cache.obtain(tmp_path, RECIPE, lambda _: write)


def test_of_two_processes_that_make_a_part_the_first_stays(tmp_path):
    def slower():
        obtain(tmp_path, value=1.0)
        return {"x": np.full(9, 2.0, np.float32)}

    assert float(cache.obtain_params(tmp_path, RECIPE, slower)["x"][0]) == 1.0
    assert [f.name for f in tmp_path.iterdir()] == [RECIPE.name]


def test_the_log_says_what_is_made_and_why(tmp_path, caplog):
    """Of the parts that are there, the nearest is named."""
    (tmp_path / "heads-0123456789").mkdir()  # of a version that wrote no record
    said = []
    for recipe in (RECIPE, RECIPE, *OTHERS[1:3]):
        with caplog.at_level("WARNING", logger="absl"):
            obtain(tmp_path, recipe)
        said.append(caplog.records[-1].getMessage())
    assert said == [
        f"makes {tmp_path / RECIPE.name}: heads-0123456789 {cache.SILENT}",
        f"reused: {tmp_path / RECIPE.name}",
        f"makes {tmp_path / OTHERS[1].name}: {RECIPE.name} differs in version: 2, not 3",
        f"makes {tmp_path / OTHERS[2].name}: {RECIPE.name} differs in config.a.seed: 0, not 1",
    ]
    obtain(tmp_path / "empty", RECIPE)
    assert caplog.records[-1].getMessage().endswith("the cache has none of its kind")


def test_two_trainings_of_one_part_do_not_share_checkpoints(tmp_path):
    """The second process trains without any, and leaves the first one's alone."""
    config = ConfigDict({"every_s": 0.0, "keep": 2, "best": False})
    given = []

    def make(saved):
        given.append(saved)
        return cache.writer({"x": np.ones(1)})

    unfinished = tmp_path / f"{RECIPE.name}.training"
    unfinished.mkdir()
    with own(unfinished):
        cache.obtain(tmp_path, RECIPE, make, config)
    assert given == [None] and unfinished.exists()
    cache.obtain(tmp_path, OTHERS[1], make, config)
    assert given[1] is not None and not list(tmp_path.glob(f"{OTHERS[1].name}.training"))


# --- models by their content ------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    models.save(tmp_path / "policy", *decoder())
    return tmp_path / "policy"


def test_a_model_is_known_by_what_is_read_of_it(folder, tmp_path, monkeypatch):
    before = content.of_model(str(folder))
    (folder / "README.md").write_text("trained on Monday")
    (folder / "trainer_state.json").write_text("{}")
    models.save(tmp_path / "copy", *decoder())
    assert content.of_model(str(folder)) == content.of_model(str(tmp_path / "copy")) == before
    (folder / "tokenizer.json").write_text("{}")
    assert content.of_model(str(folder)) != before
    (folder / "tokenizer.json").unlink()
    size = (folder / "model.safetensors").stat().st_size
    models.save(folder, *decoder(seed=1))  # trained anew in the same folder
    assert (folder / "model.safetensors").stat().st_size == size and content.of_model(str(folder)) != before
    monkeypatch.setattr(content.hashlib, "file_digest", lambda *_: pytest.fail("read twice"))
    assert content.of_model(str(folder)) != before


def test_a_hub_name_is_known_by_its_commit(tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / ("0123abcd" * 5)
    models.save(snapshot, *decoder())
    monkeypatch.setattr(content.hub, "download", lambda *_: snapshot)
    monkeypatch.setattr(content, "of_files", lambda *_: pytest.fail("a file was read"))
    assert content.of_model("an/owner@main") == f"hub:an/owner@{snapshot.name}"


# --- parts of a run ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("run"), "sea", **SMALL)


@pytest.fixture(scope="module")
def parts(run, tmp_path_factory):
    """A cache and a given policy that was trained anew in its folder; which parts there were after each of three calls."""
    config, folder = ConfigDict(run.config.to_dict()), tmp_path_factory.mktemp("parts")
    config.methods, config.policy.folder, config.ensemble.prior = ("sea",), str(folder / "policy"), "random"
    config.backbone.kind = "policy"
    names, params = [], jax.tree.map(np.asarray, run.assets.ref_params)
    for factor in (1.0, 1.0, 1.5):
        scaled = jax.tree.map(lambda x, factor=factor: factor * x, params)
        models.save(folder / "policy", run.assets.model, scaled)
        assets.train_parts(config, folder / "cache", run.assets.task)
        names.append({path.name: path.stat().st_mtime_ns for path in (folder / "cache").iterdir()})
    return config, folder, names


def test_a_policy_that_was_trained_anew_gets_its_own_parts(parts):
    _, _, (first, again, anew) = parts
    assert sorted(name.split("-")[0] for name in first) == ["samples", "states"]
    assert again == first and first.items() < anew.items() and len(anew) == 4


def test_a_part_names_the_parts_that_it_was_made_from(parts, run):
    """From the states back to the policy."""
    config, folder, (*_, names) = parts
    (states,) = assets.recipes(config, run.assets.task)
    read = lambda name: json.loads((folder / "cache" / name / MADE_FROM).read_text())["content"]  # noqa: E731
    assert states.name in names and read(states.name)["samples"] in names
    policy = content.of_model(str(folder / "policy"))
    assert read(states.name)["policy"] == read(read(states.name)["samples"])["policy"] == policy


VERSIONS = [
    (backbone_lib, "VERSION", {"backbone", "heads"}),
    (backbone_lib, "HEADS_VERSION", {"heads"}),
    (prepared, "SAMPLES_VERSION", {"backbone", "heads"}),
    (sft, "VERSION", {"backbone", "heads"}),
    (hidden_states, "VERSION", set()),
]


@pytest.mark.parametrize(("module", "constant", "changed"), VERSIONS)
def test_a_version_names_its_part_and_those_made_from_it(run, monkeypatch, module, constant, changed):
    config = ConfigDict(run.config.to_dict())
    config.methods = ("sea",)
    names = lambda: {recipe.kind: recipe.name for recipe in assets.recipes(config, run.assets.task)}  # noqa: E731
    before = names()
    assert before.keys() == {"backbone", "heads"}
    monkeypatch.setattr(module, constant, 99)
    assert {kind for kind, name in names().items() if before[kind] != name} == changed


def test_a_policy_that_changes_during_a_command_is_one_line(parts, run):
    config, folder, _ = parts
    read = assets._policy_reader(config, folder / "cache", run.assets.task, run.assets.mesh, "sha256:before")
    with pytest.raises(InputError, match=r"policy\.folder=.*: has changed during this command; valid"):
        read()


@pytest.mark.slow
def test_a_killed_training_of_the_backbone_goes_on(run, tmp_path, monkeypatch):
    """It ends with the parameters of one that never was killed, and the checkpoints are gone."""
    shared, rows_of = run.assets, backbone_lib.distinct_rows
    config = ConfigDict(run.config.to_dict())
    rng = np.random.default_rng(0)
    tokens = {"tokens": rng.integers(2, 400, (6, 3, 6), np.int32), "mask": np.ones((6, 3, 6), bool)}

    def train(folder, stop_at=None):
        def rows(*args):
            for i, batch in enumerate(rows_of(*args)):
                if i == stop_at:
                    raise MemoryError
                yield batch

        monkeypatch.setattr(backbone_lib, "distinct_rows", rows)
        cache.obtain_arrays(folder, prepared.samples_recipe(config, shared.task, "sft-1"), lambda: tokens)
        parts = shared.task, shared.model, shared.ref_params, shared.mesh
        return Ranker(config, folder, *parts, "sft-1").backbone.params

    whole = train(tmp_path / "whole")
    with pytest.raises(MemoryError):
        train(tmp_path / "parts", 3)
    (unfinished,) = (tmp_path / "parts").glob("*.training")
    assert {path.name for path in (unfinished / "checkpoints").iterdir()} == {"2", "3"}
    jax.tree.map(np.testing.assert_array_equal, train(tmp_path / "parts"), whole)
    assert not unfinished.exists()
