"""The command `rm` from the config to an oracle that reads the folder it leaves; and what a user may get wrong."""

import json

import numpy as np
import pytest
from helpers import decoder, random_params
from ml_collections import ConfigDict
from real_text import CHAT, byte_tokenizer, posts, small_config, user_files

from configs import quickstart
from sea_jax import models, tasks
from sea_jax.config.checks import Checks
from sea_jax.errors import InputError
from sea_jax.experiment import commands, pairs, reward_scorer, reward_training
from sea_jax.experiment.validate_parts import check_oracle
from sea_jax.methods import METHODS
from sea_jax.models import PythiaConfig, RewardConfig
from sea_jax.oracles.bradley_terry import BradleyTerryOracle
from sea_jax.pretraining import rm
from sea_jax.runtime.mesh import make_mesh
from sea_jax.tasks import mini_tldr

WORDS = dict(chosen=" went home again", rejected=" ran off with the red ball")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """As of test_real_text, and `pairs`: of two responses the one that goes home is preferred, and shorter."""
    folder = tmp_path_factory.mktemp("files")
    user_files(folder)
    (folder / "pairs").mkdir()
    rows = [dict(prompt=row["prompt"], **WORDS) for row in posts(60)]
    (folder / "pairs" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rm_config(files, **fields):
    config = small_config(files)
    config.task.update(dict(path=str(files / "pairs"), num_heldout=20))
    config.policy.dtype, config.oracle.dtype = "float32", "float32"
    config.rm.update(dict(steps=40, batch_size=8, learning_rate=1e-2, length=100, micro_batch=4))
    config.update_from_flattened_dict(fields)
    return config


def of(config, folder):
    """The oracle that a user makes of what a run left."""
    user = ConfigDict(config.to_dict())
    user.oracle.update(dict(kind="reward_model", folder=str(folder / "reward_model")))
    check_oracle(checks := Checks(user))
    checks.raise_problems()
    return reward_scorer.load_oracle(user.oracle, make_mesh())


def agrees(oracle, heldout, folder):
    """What the run measured is what the oracle says, to the bit: as many pairs in order, the same loss."""
    numbers = json.loads((folder / "rm.json").read_text())
    assert rm.accuracy(oracle, heldout) == numbers["after"] != numbers["before"]
    return numbers


@pytest.mark.parametrize("start", ["policy", "reward"])
def test_on_a_preference_set(files, tmp_path, start):
    config = rm_config(files, **{"policy.folder": str(files / start)})
    said = commands.run("rm", config, str(tmp_path))
    oracle = of(config, tmp_path)
    source = reward_training._preference_set(config, tmp_path)
    numbers = agrees(oracle, source.heldout, tmp_path)
    assert numbers["pairs"] == dict(train=40, heldout=20) and numbers["labels_bought"] == 0
    assert numbers["after"]["accuracy"] == 1 and numbers["after"]["nll"] < 0.2 < numbers["before"]["nll"]
    assert "accuracy on 20 heldout pairs: " in said and "1.0000 after 40 steps" in said
    assert "labels: 40 to train on, 20 held out, of the preference set" in said
    kept = {file.name for file in (tmp_path / "reward_model").iterdir()}
    assert kept == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def small_quickstart(cache, **fields):
    config = quickstart.get_config()
    config.update_from_flattened_dict(
        {
            "progress": False, "cache_dir": str(cache), "policy.width": 16,
            "policy.num_layers": 1, "policy.num_heads": 2, "policy.mlp_width": 16, "sft.steps": 2,
            "sft.batch_size": 8, "rm.steps": 30, "rm.batch_size": 16, "rm.num_pairs": 60,
            "eval.num_pairs": 20, "eval.batch_size": 20, "oracle.batch_size": 16,
        }
        | fields
    )  # fmt: skip
    return config


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    mini_tldr.load(folder / "task")
    return folder


def test_on_the_embedded_task(cache, tmp_path, monkeypatch):
    """From the SFT policy, of pairs that it wrote and the task's oracle labelled, each label counted."""
    config, label, bought = small_quickstart(cache), pairs.label, []
    monkeypatch.setattr(pairs, "label", lambda *a, **k: bought.append(label(*a, **k)) or bought[-1])
    said = commands.run("rm", config, str(tmp_path))
    task = tasks.load(config, cache / "task")
    rewards = mini_tldr.reward_fn(config.task.oracle_seed)
    prompts, chosen, rejected = zip(*bought[0], *bought[1], strict=True)
    assert prompts == (*task.prompts["train"][:60], *task.prompts["heldout"][:20])
    margin = rewards(prompts, chosen) - rewards(prompts, rejected)
    assert (margin >= 0).all() and margin.max() > 0.1
    assert len(set(chosen)) == 80  # no two batches share their draws
    numbers = agrees(of(config, tmp_path), bought[1], tmp_path)
    assert numbers["labels_bought"] == 80 and numbers["pairs"] == dict(train=60, heldout=20)
    assert "labels: 60 to train on, 20 held out, 80 bought from the oracle" in said
    # Whatever the policy writes, it can be judged.
    assert np.isfinite(of(config, tmp_path).rewards([max(task.prompts["train"], key=len)], ["\ufffd" * 26]))


def test_it_goes_on_from_what_it_left(cache, tmp_path):
    """A reward model in place of the policy: its pairs are still those of the SFT policy."""
    commands.run("rm", small_quickstart(cache, **{"rm.steps": 5}), str(tmp_path / "a"))
    config = small_quickstart(cache, **{"policy.folder": str(tmp_path / "a" / "reward_model")})
    commands.run("rm", config, str(tmp_path / "b"))
    first, further = (json.loads((tmp_path / name / "rm.json").read_text()) for name in "ab")
    assert further["before"] == first["after"] != further["after"]
    assert len(list(cache.glob("sft-*"))) == 1


def test_equal_samples_buy_no_label():
    """Of three duels one is of equal responses and one too long; flipped labels turn the pair round."""
    drawn = [pairs.Pair("x", "a", "b"), pairs.Pair("x", "a", "a"), pairs.Pair("x", "long", "b")]
    kept = pairs.distinct(drawn, lambda some: [len(pair.chosen) for pair in some], 3)
    assert kept == drawn[:1]
    oracle = BradleyTerryOracle(lambda _, ys: np.array([float(y == "a") for y in ys]))
    for flip, expected in ((0.0, ("a", "b")), (1.0, ("b", "a"))):
        labeller = pairs.Labeller(oracle, "threshold", flip)
        assert pairs.label(labeller, kept, 0)[0][1:] == expected and labeller.num_queries == 1


def test_a_policy_that_only_repeats_itself(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "distinct", lambda *_: [])
    with pytest.raises(
        InputError,
        match=r"config.train.temperature=0.7: all .* pairs of samples are equal; valid is a higher",
    ):
        commands.run("rm", small_quickstart(cache), str(tmp_path))


def test_commands():
    assert commands.COMMANDS == ("sft", "rm") and not {*commands.COMMANDS} & {*METHODS}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sampler.kind": "vlm"}, "config.sampler.kind='vlm': valid is one of ('jax', 'vllm')"),
        ({"rm.steps": 0}, "config.rm.steps=0: valid is at least 1"),
        ({"rm.batch_size": 0}, "config.rm.batch_size=0: valid is at least 1"),
        ({"rm.learning_rate": 0.0}, "config.rm.learning_rate=0.0: valid is a number above 0"),
        ({"rm.micro_batch": 3}, "config.rm.micro_batch=3: valid is 0, or a divisor of rm.batch_size=16"),
        ({"rm.length": -1}, "config.rm.length=-1: valid is at least 0"),
        ({"rm.num_pairs": 20_001}, "config.rm.num_pairs=20001: valid is at most 20000 (train split)"),
        ({"rm.num_pairs": 0}, "config.rm.num_pairs=0: valid is at least 1"),
        ({"eval.num_pairs": 1001}, "config.eval.num_pairs=1001: valid is at most 1000 (heldout split)"),
        ({"eval.split": "train"}, "config.eval.split='train': valid is one of ('tuning', 'heldout')"),
        ({"mesh.data": 3}, "config.mesh={'data': 3"),
        ({"oracle.chat": "yes"}, "config.oracle.chat='yes': valid is one of ('auto', 'no')"),
        ({"oracle.labels": "coin"}, "config.oracle.labels='coin': valid is one of"),
        ({"oracle.kind": "reward_model"}, "config.oracle.folder='': valid is a folder"),
        ({"train.temperature": 0.0}, "config.train.temperature=0.0: valid is a number above 0"),
        ({"policy.dtype": "float16"}, "config.policy.dtype='float16': valid is one of"),
        ({"policy.num_heads": 3}, "config.policy.width=16: valid is a multiple of policy.num_heads=3"),
        ({"sft.steps": 0}, "config.sft.steps=0: valid is at least 1"),
        ({"policy.folder": "no/such"}, "config.policy.folder='no/such': model 'no/such': neither a folder"),
        ({"policy.folder": "{files}/encoder"}, "valid is a language model, or a sequence classifier of one"),
        ({"policy.folder": "{files}/two"}, "valid is a language model, or a sequence classifier of one"),
        (
            {"policy.folder": "{files}/policy"},
            "valid is a vocabulary of at least the task's 1024 tokens, not 330",
        ),
        (
            {"policy.folder": "{files}/reward"},
            "valid is a vocabulary of at least the task's 1024 tokens, not 330",
        ),
        ({"task.name": "local"}, "config.task.name='local': valid is 'mini_tldr' or 'mini_tldr_v2' or "),
    ],
)
def test_mistakes_on_the_embedded_task(files, cache, tmp_path, monkeypatch, fields, said):
    if not (files / "two").exists():
        two = RewardConfig(decoder(vocab_size=1024, max_length=128)[0].config, num_labels=2).build()
        models.save(files / "two", two, random_params(two))
    refused(monkeypatch, files, small_quickstart(cache), tmp_path, fields, said)


def refused(monkeypatch, files, config, tmp_path, fields, said):
    """One line, before a weight is read or a work directory made."""
    put = lambda value: value.replace("{files}", str(files)) if isinstance(value, str) else value  # noqa: E731
    for name in ("load_policy", "trained_policy"):
        monkeypatch.setattr(reward_training.policy, name, lambda *_: pytest.fail("work began"))
    monkeypatch.setattr(reward_training, "make_mesh", lambda **_: None)
    config.update_from_flattened_dict({name: put(value) for name, value in fields.items()})
    with pytest.raises(InputError) as error:
        commands.run("rm", config, str(tmp_path / "run"))
    assert put(said) in str(error.value) and "\n" not in str(error.value), str(error.value)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"policy.folder": ""}, "config.policy.folder='': valid is a folder or a hub name"),
        (
            {"task.path": "{files}/posts"},
            "config.task.chosen_column='': valid is one of ['completion', 'prompt']",
        ),
        ({"task.num_heldout": 70}, "config.task.num_heldout=70: valid is at most 60"),
        ({"rm.length": 129}, "config.rm.length=129: valid is 0 to 128, the context of policy.folder="),
        ({"policy.trained_layers": 9}, "config.policy.trained_layers=9: valid is 0 (all parameters) to 1"),
        ({"rm.length": 3}, "leaves no pair (dropped: 60 over 3 tokens)"),
        ({"oracle.chat": "yes"}, "chat='yes', but it has no chat template"),
        ({"oracle.chat": "maybe"}, "config.oracle.chat='maybe': valid is one of"),
        ({"eval.split": "tuning"}, "config.eval.split='tuning': valid is one of ('heldout',)"),
        ({"oracle.batch_size": 0}, "config.oracle.batch_size=0: valid is at least 1"),
        ({"policy.folder": "{files}/narrow"}, "tokens; valid: at most 300, the model's vocabulary"),
    ],
)
def test_mistakes_on_real_text(files, tmp_path, monkeypatch, fields, said):
    if not (files / "narrow").exists():
        narrow = PythiaConfig(300, num_layers=1, width=16, num_heads=2, mlp_width=16, max_length=128).build()
        models.save(files / "narrow", narrow, random_params(narrow), byte_tokenizer(posts(40)))
    refused(monkeypatch, files, rm_config(files), tmp_path, fields, said)


def test_a_chat_template_is_read(files, tmp_path):
    """The template comes along with the tokenizer's files, and rewards stay what training saw."""
    policy = tmp_path / "policy"
    policy.mkdir()
    for file in (files / "policy").iterdir():
        (policy / file.name).write_bytes(file.read_bytes())
    (policy / "chat_template.jinja").write_text(CHAT)
    config = rm_config(files, **{"policy.folder": str(policy), "oracle.chat": "auto", "rm.steps": 5})
    commands.run("rm", config, str(tmp_path / "rm"))
    source = reward_training._preference_set(config, tmp_path / "rm")
    assert source.tokenizer.template is not None
    agrees(of(config, tmp_path / "rm"), source.heldout, tmp_path / "rm")
