"""A run on a user's own files: policy, reward model, encoder and prompts, from the config to the export."""

import json

import jax
import numpy as np
import pytest
from real_text import posts, small_config, user_files

from configs import tldr, ultrafeedback
from sea_jax import models, tasks
from sea_jax.errors import InputError
from sea_jax.experiment import assets, reward_scorer, validate
from sea_jax.experiment import run as experiment
from sea_jax.runtime.mesh import make_mesh
from sea_jax.runtime.run_folder import Summary, read_summary
from sea_jax.tasks.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    user_files(folder)
    return folder


@pytest.fixture(scope="module")
def chat_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    user_files(folder, chat=True)
    return folder


def test_a_whole_run(files, tmp_path):
    config = small_config(files)
    table = experiment.run(config, str(tmp_path))
    assert "\nSEA " in table
    run = tmp_path / "runs" / "sea-seed0"
    assert read_summary(run) == Summary(8, "sea", "SEA", True)
    before, after = (models.load(str(folder))[1] for folder in (files / "policy", run / "policy"))
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), before, after)
    assert max(jax.tree.leaves(moved)) > 1e-4
    exported = load_tokenizer(run / "policy")
    given = load_tokenizer(files / "policy")
    assert exported.backend.to_str() == given.backend.to_str() and exported.eos_id == given.eos_id
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert {row["prompt"] for row in samples} <= {row["prompt"] for row in posts(40)}


def test_a_run_without_an_encoder(files, tmp_path):
    """Two methods on linear posteriors over the policy's own states, to the report; prepared once.

    The layer learns, and the embedding does not.
    """
    config = small_config(files)
    config.methods, config.encoder.folder = ("sea", "posterior_rl"), ""
    config.backbone.update(dict(kind="policy", num_prompts=8, num_responses=3, width=7))
    config.ensemble.update(dict(kind="linear", prior="random"))
    config.rloo.update(
        dict(pool_factor=2, num_prompts=4, num_responses=3, burst_labels=(4,), burst_updates=(2,),
             updates_per_label=0.5, learning_rate=1e-3)
    )  # fmt: skip
    config.policy.trained_layers = 1
    assert config.policy.dtype == "bfloat16"  # prepared from f32, then found with π_ref's cast parameters
    assets.train_parts(config, tmp_path / "cache", tasks.load(config, tmp_path / "cache" / "task"))
    table = experiment.run(config, str(tmp_path))
    assert "\nSEA " in table and "\nRLOO" in table
    rows = (tmp_path / "runs" / "posterior_rl-seed0" / "metrics.jsonl").read_text().splitlines()
    assert 0 <= json.loads(rows[-1])["ensemble/accuracy_heldout"] <= 1
    assert len(list((tmp_path / "cache").glob("states-*"))) == 1
    assert read_summary(tmp_path / "runs" / "sea-seed0").queries == 8
    before = models.load(str(files / "policy"))[1]
    for method in ("sea", "posterior_rl"):
        after = models.load(str(tmp_path / "runs" / f"{method}-seed0" / "policy"))[1]
        moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), before, after)
        assert max(jax.tree.leaves(moved["layers"])) > 1e-4
        assert moved["embed"]["embedding"] == 0 and moved["head"]["kernel"] == 0


def test_the_policy_reads_a_chat_and_the_oracle_another(chat_files):
    config = small_config(chat_files)
    config.task.chat = "auto"
    task = tasks.load(config, chat_files / "cache")
    prompt = task.prompts["train"][0]
    tokens, mask = task.encode_prompts([prompt])
    shown = task.tokenizer.decode(tokens[0][mask[0]].tolist(), skip_special_tokens=False)
    assert shown == f"<|start|>user\n{prompt}<|end|><|start|>assistant\n"
    assert task.eos_id == task.tokenizer.token_to_id("<|end|>")
    config.task.chat = "no"
    plain = tasks.load(config, chat_files / "cache")
    tokens, mask = plain.encode_prompts([prompt])
    assert plain.tokenizer.decode(tokens[0][mask[0]].tolist(), skip_special_tokens=False) == prompt


@pytest.mark.parametrize("chat", ["no", "auto"])
def test_rewards_are_the_models_own(files, chat_files, chat):
    """Each text alone, its tokens written by hand; the oracle has them in one batch, padded."""
    folder = files if chat == "no" else chat_files
    config = small_config(folder).oracle
    config.update(dict(chat=chat, dtype="float32"))
    oracle = reward_scorer.load_oracle(config, make_mesh())
    model, params = models.load(config.folder)
    backend = load_tokenizer(config.folder).backend
    pairs = [(row["prompt"], row["completion"]) for row in posts(3)]
    found = oracle.rewards(*zip(*pairs, strict=True))
    for (prompt, response), reward in zip(pairs, found, strict=True):
        if chat == "no":
            text = f"{prompt}{response}<|endoftext|>"
        else:
            text = f"<|start|>user\n{prompt}<|end|><|start|>assistant\n{response}<|end|>"
        ids = np.array([backend.encode(text).ids])
        np.testing.assert_allclose(reward, model.apply({"params": params}, ids)[0, 0], rtol=1e-5, atol=1e-5)
    assert len(set(found)) == 3


def test_the_papers_hyperparameters():
    """App. F.1 and F.2 of the paper."""
    for dap, beta in (("dpo", 0.1), ("ipo", 0.2), ("slic", 0.2)):
        config = tldr.get_config(f"size=6.9b,dap={dap},method=passive")
        train = config.train
        assert (train.dap, train.beta, train.batch_size, train.learning_rate) == (dap, beta, 128, 5e-7)
        assert config.policy.folder == "cleanrl/EleutherAI_pythia-6.9b-deduped__sft__tldr@refs/pr/1"
        assert config.methods == ("passive",) and train.schedule == "cosine"
        assert (config.sea.num_responses, config.ensemble.num_members) == (20, 20)
        assert (config.task.num_train, config.task.response_length) == (50_000, 53)
    config = ultrafeedback.get_config("model=llama3.2-1b")
    assert config.policy.folder == "meta-llama/Llama-3.2-1B-Instruct"
    assert (config.train.dap, config.train.beta, config.train.margin_ratio) == ("simpo", 10.0, 0.3)
    assert (config.train.learning_rate, config.task.prompt_length) == (8e-7, 1800)


@pytest.mark.parametrize("make", [tldr.get_config, ultrafeedback.get_config])
def test_a_method_between_labels_at_the_papers_size(make):
    """Its fields are valid, and its rate is that of a large model and not the miniature's."""
    config = make("method=posterior_rl")
    validate.validate_fields(config)
    assert config.rloo.learning_rate <= 10 * config.train.learning_rate


@pytest.mark.parametrize("option", ["size=3b", "colour=red", "size"])
def test_unknown_options(option):
    with pytest.raises(ValueError, match=f"config option '{option}': valid"):
        tldr.get_config(option)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"policy.folder": ""}, "config.policy.folder='': valid is a folder or a hub name"),
        ({"task.chat": "maybe"}, "config.task.chat='maybe': valid is one of"),
        ({"oracle.chat": "maybe"}, "config.oracle.chat='maybe': valid is one of"),
        (
            {"oracle.kind": "task"},
            "config.oracle.kind='task': valid is one of ('reward_model', 'function', 'remote', 'judge', 'people', 'inbox')",
        ),
        ({"oracle.folder": ""}, "config.oracle.folder='': valid is a folder"),
        ({"oracle.batch_size": 0}, "config.oracle.batch_size=0: valid is at least 1"),
        ({"oracle.folder": "{files}/policy"}, "valid is a reward model of one number"),
        ({"policy.folder": "{files}/reward"}, "valid is a language model, as encoders and reward models"),
        ({"policy.folder": "{files}/encoder"}, "tokenizer '{files}/encoder': no EOS"),
        ({"backbone.kind": "ranker"}, "config.backbone.kind='ranker': valid is one of ('policy', 'encoder')"),
        (
            {"backbone.kind": "policy", "ensemble.prior": "pretrained"},
            (
                "config.ensemble.prior='pretrained': valid is 'random' with backbone.kind='policy' and "
                "task.name='tldr', which has no family of rewards"
            ),
        ),
        (
            {"backbone.kind": "policy", "backbone.layer": 2, "backbone.num_prompts": 8},
            "config.backbone.layer=2: valid is -1 (half) to 1, the policy's layers",
        ),
        (
            {"policy.trained_layers": 2},
            "config.policy.trained_layers=2: valid is 0 (all parameters) to 1, the policy's layers",
        ),
        ({"backbone.kind": "policy"}, "config.backbone.num_prompts=6000: valid is 1 to 32"),
        ({"task.path": "{files}/none"}, "config.task.path='{files}/none': no file"),
        ({"task.num_heldout": 400}, "config.task.num_heldout=400: valid is at most 40"),
        ({"task.chat": "yes"}, "it has no chat template"),
    ],
)
def test_what_does_not_fit(files, tmp_path, fields, said):
    config = small_config(files)
    put = lambda value: value.format(files=files) if isinstance(value, str) else value  # noqa: E731
    config.update_from_flattened_dict({name: put(value) for name, value in fields.items()})
    with pytest.raises(InputError) as error:
        experiment.run(config, str(tmp_path / "run"))
    assert put(said) in str(error.value) and "\n" not in str(error.value)


def test_a_text_beyond_the_oracles_context(files):
    """Said, not cut."""
    config = small_config(files).oracle
    oracle = reward_scorer.load_oracle(config, make_mesh())
    with pytest.raises(InputError, match=r"text 0: .* tokens; valid: 1 to 128, the reward model's context"):
        oracle.rewards(["word " * 400], ["answer"])
