"""A work directory whose runs were begun from a model that has changed since is refused."""

import dataclasses
import json

import pytest
from helpers import decoder, write_rows
from ml_collections import ConfigDict
from real_text import posts, user_files
from small_run import small_run

from sea_jax import models
from sea_jax.errors import InputError
from sea_jax.experiment import finetune, inputs, reward_training
from sea_jax.pretraining import sft


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("run"), "passive")


@pytest.fixture
def config(run, tmp_path):
    """Of a given policy and a reward model, both in folders of their own."""
    config = ConfigDict(run.config.to_dict())
    config.methods, config.policy.folder = ("passive",), str(tmp_path / "policy")
    config.oracle.update(dict(kind="reward_model", folder=str(tmp_path / "oracle")))
    for name in ("policy", "oracle"):
        models.save(tmp_path / name, *decoder())
    (tmp_path / "work/runs").mkdir(parents=True)
    return config


def call(config, run, tmp_path, task=None):
    inputs.claim(config, tmp_path / "work", inputs.of_run(config, task or run.assets.task))


def test_another_policy_in_the_folder_is_refused(config, run, tmp_path):
    """Also where the oracle, or the prompts, are others; nothing is overwritten, and what was there is taken again."""
    call(config, run, tmp_path)
    recorded = (tmp_path / "work" / inputs.FILE).read_text()
    for name in ("policy", "oracle"):
        models.save(tmp_path / name, *decoder(seed=1))
        said = f"workdir .*/work: the content of config.{name}.folder='.*/{name}' has changed since its runs were "
        with pytest.raises(InputError, match=said + "begun; valid: that of then, or another --workdir"):
            call(config, run, tmp_path)
        models.save(tmp_path / name, *decoder())
    prompts = dict(run.assets.task.prompts, tuning=("Another prompt.",))
    with pytest.raises(InputError, match=r"the content of config\.task\.name='mini_tldr' has changed"):
        call(config, run, tmp_path, dataclasses.replace(run.assets.task, prompts=prompts))
    call(config, run, tmp_path)
    assert (tmp_path / "work" / inputs.FILE).read_text() == recorded


def test_before_anything_was_begun_a_policy_may_change(config, run, tmp_path):
    call(config, run, tmp_path)
    models.save(tmp_path / "policy", *decoder(seed=1))
    (tmp_path / "work/runs").rmdir()
    call(config, run, tmp_path)
    (tmp_path / "work/runs").mkdir()
    call(config, run, tmp_path)


def test_a_work_directory_of_an_earlier_version_gets_a_record(config, run, tmp_path):
    """Its runs have none yet; a spoilt one is named."""
    call(config, run, tmp_path)
    models.save(tmp_path / "policy", *decoder(seed=1))
    with pytest.raises(InputError):
        call(config, run, tmp_path)
    (tmp_path / "work" / inputs.FILE).write_text("{")
    with pytest.raises(InputError, match=r"inputs.json: no record of contents; valid: delete it, or another"):
        call(config, run, tmp_path)


def test_parts_of_another_version_are_refused_and_new_ones_are_added(run, tmp_path, monkeypatch):
    config = ConfigDict(run.config.to_dict())
    config.methods = ("passive",)
    (tmp_path / "work/checkpoints").mkdir(parents=True)
    read = lambda: json.loads((tmp_path / "work" / inputs.FILE).read_text())  # noqa: E731
    call(config, run, tmp_path)
    assert set(read()) == {"task.name", "sft"}
    config.methods, config.ensemble.prior = ("passive", "sea"), "pretrained"
    call(config, run, tmp_path)
    assert set(read()) == {"task.name", "sft", "backbone", "heads"}
    monkeypatch.setattr(sft, "VERSION", 99)
    said = r"runs were begun with part sft-\w{10}, not sft-\w{10}; valid: the sea_jax of then"
    with pytest.raises(InputError, match=said):
        call(config, run, tmp_path)


def test_a_stopped_sft_does_not_go_on_from_another_policy(config, run, tmp_path, monkeypatch):
    """Before a weight is read."""
    monkeypatch.setattr(finetune.tasks, "load", lambda *_: run.assets.task)
    monkeypatch.setattr(finetune, "check_policy_on_task", lambda *_: None)
    inputs.claim(config, tmp_path / "work", inputs.of_sft(config, run.assets.task))
    models.save(tmp_path / "policy", *decoder(seed=1))
    with pytest.raises(InputError, match=r"the content of config\.policy\.folder=.* has changed"):
        finetune.run(config, tmp_path / "cache", tmp_path / "work")


def test_a_stopped_rm_does_not_go_on_with_other_pairs(tmp_path):
    """Nor from another model; the oracle is not read, which may be what is trained here."""
    config = user_files(tmp_path)
    rows = [dict(row, chosen=" a", rejected=" b") for row in posts(40)]
    write_rows(tmp_path / "pairs", rows[:30])
    config.task.update(dict(path=str(tmp_path / "pairs"), num_heldout=5))
    config.oracle.folder, work = "no/such", tmp_path / "work"
    reward_training._preference_set(config, work)
    (work / "checkpoints").mkdir()
    reward_training._preference_set(config, work)
    write_rows(tmp_path / "pairs", rows)
    with pytest.raises(InputError, match=r"the content of config\.task\.path=.* has changed"):
        reward_training._preference_set(config, work)
