"""Reward models against transformers' sequence classifiers, and ArmoRM's head against a torch one.

`python tests/parity/test_reward_hf.py` writes the golden file that tests/models/test_reward.py reads where
torch is absent, and prints the largest difference of each case.
"""

import itertools
import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from helpers import assert_equal, assert_same_golden, batch, rewarder

from sea_jax import models
from sea_jax.models import GatedRewardConfig, RewardConfig, convert
from sea_jax.models.reward import LLAMA_3_ASSISTANT

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "data" / "reward_golden.npz"
PAD = 12  # a token that no text has: transformers finds the last token by it
SCALED = dict(
    rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=8,
)  # fmt: skip
LLAMA = dict(
    hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=24,
    max_position_embeddings=64, rope_parameters=dict(rope_type="default", rope_theta=100.0),
)  # fmt: skip
NEOX = dict(
    hidden_size=24, num_attention_heads=3, num_hidden_layers=2, intermediate_size=40,
    max_position_embeddings=64, rotary_pct=0.5,
)  # fmt: skip

CASES = {
    "llama, 2 of 4 heads, tied": ("llama", dict(num_key_value_heads=2, tie_word_embeddings=True)),
    "llama, 1 of 4 heads, scaled rotary": ("llama", dict(num_key_value_heads=1, rope_parameters=SCALED)),
    "llama, biases, 3 labels": ("llama", dict(attention_bias=True, mlp_bias=True, num_labels=3)),
    "llama, 5 layers, 2 labels": ("llama", dict(num_hidden_layers=5, num_labels=2, rms_norm_eps=1e-2)),
    "neox, parallel": ("gpt_neox", dict()),
    "neox, sequential": ("gpt_neox", dict(use_parallel_residual=False, rotary_pct=0.25)),
    "neox, 2 labels": ("gpt_neox", dict(num_labels=2, hidden_act="gelu_new")),
}
KINDS = dict(
    llama=(transformers.LlamaConfig, transformers.LlamaForSequenceClassification, LLAMA),
    gpt_neox=(transformers.GPTNeoXConfig, transformers.GPTNeoXForSequenceClassification, NEOX),
)


HEADS = ("score", "regression_layer", "reward_transform_matrix", "gating.layers")  # their names begin so


def randomise(theirs, seed):
    """Every weight, bias and scale random, the heads' wide enough for scores that differ."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            spread = 0.5 if name.startswith(HEADS) else 0.2 if p.ndim > 1 else 0.3
            p.normal_(0, spread).add_(1.0 if "norm.weight" in name or "logit_scale" in name else 0.0)
    return theirs.eval()


def random_classifier(kind, seed, **config):
    """Their classifier with every weight, bias and scale random."""
    config_class, model_class, defaults = KINDS[kind]
    config = dict(vocab_size=13, num_labels=1, pad_token_id=PAD) | defaults | config
    return randomise(model_class(config_class(**config, attn_implementation="eager")), seed)


def sequences():
    """Left padding, right padding, both, none; PAD in the padding and nowhere else."""
    tokens, mask = batch([9, 12, 7, 12], 12, "left", PAD, seed=3)
    mask[1, 8:] = False
    mask[2] = (np.arange(12) >= 2) & (np.arange(12) < 9)
    return np.where(mask, tokens, PAD).astype(np.int32), mask


def as_long(x):
    return torch.tensor(np.asarray(x), dtype=torch.long)


def their_scores(theirs, tokens, mask):
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    with torch.no_grad():
        out = theirs(as_long(tokens), attention_mask=as_long(mask), position_ids=as_long(positions))
    return out.logits.float().numpy()


def our_scores(model, params, tokens, mask):
    return np.asarray(jax.jit(model.apply)({"params": params}, tokens, mask=mask))


def reopened(folder):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager"
    )
    return model.eval()


def both_scores(case, folder):
    """Their model, and their scores and ours from their files."""
    kind, config = CASES[case]
    theirs = random_classifier(kind, len(case), **config)
    theirs.save_pretrained(folder)
    model, params = models.load(folder)
    inputs = sequences()
    return theirs, model, params, their_scores(theirs, *inputs), our_scores(model, params, *inputs)


@pytest.mark.parametrize("case", CASES)
def test_files_and_scores_both_ways(case, tmp_path):
    """Their folder gives our scores; our folder gives, bit for bit, their weights and scores, and ours."""
    theirs, model, params, expected, ours = both_scores(case, tmp_path / "theirs")
    assert ours.shape == expected.shape == (4, CASES[case][1].get("num_labels", 1))
    assert ours.dtype == np.float32 and expected.std() > 0.3
    np.testing.assert_allclose(ours, expected, atol=1e-4)

    models.save(tmp_path / "ours", model, params)
    back = reopened(tmp_path / "ours")
    assert type(back) is type(theirs) and back.config.num_labels == theirs.config.num_labels
    for (name, a), (_, b) in zip(theirs.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    np.testing.assert_array_equal(their_scores(back, *sequences()), expected)
    again, same = models.load(tmp_path / "ours")
    assert again.config == model.config
    assert_equal(same, params)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_shards(kind, tmp_path):
    """Several of our files behind an index give their scores, bit for bit those of one file."""
    theirs = random_classifier(kind, 3)
    theirs.save_pretrained(tmp_path / "theirs")
    model, params = models.load(tmp_path / "theirs")
    models.save(tmp_path / "ours", model, params, max_shard_bytes=9_000)
    assert len(list((tmp_path / "ours").glob("model-*-of-*.safetensors"))) > 2
    expected = their_scores(theirs, *sequences())
    np.testing.assert_array_equal(their_scores(reopened(tmp_path / "ours"), *sequences()), expected)

    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="9KB")
    assert len(list((tmp_path / "sharded").glob("model-*-of-*.safetensors"))) > 2
    assert_equal(models.load(tmp_path / "sharded")[1], params)


def test_transformers_opens_a_sharded_language_model(tmp_path):
    theirs = randomise(
        transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=13, **LLAMA)), seed=2
    )
    theirs.save_pretrained(tmp_path / "theirs")
    models.save(tmp_path / "ours", *models.load(tmp_path / "theirs"), max_shard_bytes=9_000)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    for (name, a), (_, b) in zip(theirs.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


# --- ArmoRM -------------------------------------------------------------------------------------


class Gated(torch.nn.Module):
    """ArmoRM's head in torch on transformers' LlamaModel, for texts whose last token is at `mask`'s end."""

    def __init__(self, config, objectives, width, hidden, temperature, pattern):
        super().__init__()
        self.model = transformers.LlamaModel(config)
        self.regression_layer = torch.nn.Linear(config.hidden_size, objectives, bias=False)
        sizes = [config.hidden_size] + [width] * hidden + [objectives]
        self.gating = torch.nn.Module()
        self.gating.layers = torch.nn.ModuleList(torch.nn.Linear(n, m) for n, m in itertools.pairwise(sizes))
        self.gating.logit_scale = torch.nn.Parameter(torch.ones(1))
        self.reward_transform_matrix = torch.nn.Parameter(torch.eye(objectives))
        self.temperature, self.pattern = temperature, list(pattern)

    def one(self, tokens):
        """The score of one text without padding."""
        states = self.model(as_long([tokens])).last_hidden_state[0]
        n = len(self.pattern)
        begins = [i for i in range(len(tokens)) if list(tokens[i : i + n]) == self.pattern]
        gate = states[begins[-1]]
        for layer in self.gating.layers[:-1]:
            gate = layer(gate).clamp(min=0)
        weights = self.gating.layers[-1](gate) / self.temperature
        weights = (weights - weights.max()).exp()
        weights = self.gating.logit_scale * weights / weights.sum()
        score = 0
        for j in range(len(weights)):  # objective by objective
            score = (
                score
                + weights[j] * (self.regression_layer(states[-1]) * self.reward_transform_matrix[:, j]).sum()
            )
        return float(score)


def gated(seed, pattern, vocab_size, **config):
    """A random torch model and the config.json that its published kind has."""
    config = transformers.LlamaConfig(
        vocab_size=vocab_size, **(LLAMA | dict(num_key_value_heads=2) | config), attn_implementation="eager"
    )
    theirs = randomise(Gated(config, 19, 6, 3, 0.5, pattern), seed)
    head = dict(
        architectures=["LlamaForRewardModelWithGating"], num_objectives=19, gating_temperature=0.5,
        gating_hidden_dim=6, gating_n_hidden=3, id2label={"0": "LABEL_0"}, pad_token_id=vocab_size - 1,
    )  # fmt: skip
    return theirs, config.to_dict() | head


def write(folder, theirs, config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: array.numpy() for name, array in theirs.state_dict().items()}
    convert.save_file(tensors, folder / "model.safetensors")


def conversations(pattern, vocab_size):
    """Texts that hold the pattern once or twice, its beginning too, and their padding, full of it."""
    rng = np.random.default_rng(0)
    word = lambda n: list(rng.integers(0, min(vocab_size, 100), n))  # noqa: E731
    pattern = list(pattern)
    rows = [
        word(3) + pattern + word(2),
        pattern + word(1) + pattern + word(4) + pattern[:-1],
        word(1) + pattern,
        pattern + word(5),
    ]
    width = 4 + max(map(len, rows))
    tokens = np.resize(np.array(pattern, np.int32), (len(rows), width))
    mask = np.zeros((len(rows), width), bool)
    for i, (row, start) in enumerate(zip(rows, [0, 2, width - len(rows[2]), 1], strict=True)):
        tokens[i, start : start + len(row)], mask[i, start : start + len(row)] = row, True
    return rows, tokens, mask


@pytest.mark.parametrize(
    ("pattern", "vocab_size", "config"),
    [
        (LLAMA_3_ASSISTANT, 128_257, dict(hidden_size=8, num_attention_heads=4)),
        ((7, 8, 7), 13, dict(rope_parameters=SCALED)),
        ((5,), 13, dict()),
    ],
)
def test_armorm(pattern, vocab_size, config, tmp_path):
    """Scores of padded texts, whose padding repeats the pattern, are those of bare ones; files both ways."""
    theirs, written = gated(7, pattern, vocab_size, **config)
    if pattern != LLAMA_3_ASSISTANT:
        written |= dict(gating_token_pattern=list(pattern))
    write(tmp_path / "theirs", theirs, written)
    model, params = models.load(tmp_path / "theirs")
    assert isinstance(model.config, GatedRewardConfig) and model.config.prompt_end == pattern
    rows, tokens, mask = conversations(pattern, vocab_size)
    with torch.no_grad():
        expected = np.array([[theirs.one(row)] for row in rows])
    assert expected.std() > 0.3
    np.testing.assert_allclose(our_scores(model, params, tokens, mask), expected, atol=1e-4)

    models.save(tmp_path / "ours", model, params)
    again, same = models.load(tmp_path / "ours")
    assert again.config == model.config
    assert_equal(same, params)
    stored, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert stored.keys() == ours.keys()
    for name, array in stored.items():
        np.testing.assert_array_equal(array, ours[name], err_msg=name)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    for name in ("architectures", "num_objectives", "gating_hidden_dim", "gating_n_hidden",
                 "gating_temperature", "id2label", "pad_token_id"):  # fmt: skip
        assert config[name] == written[name], name


# --- the golden file ----------------------------------------------------------------------------


def torch_scores(model, params, tokens, mask):
    """Of a tiny reward model of ours, with its weights in torch."""
    config = model.config.to_hf()
    tensors = {k: torch.tensor(v) for k, v in convert.to_hf(model, params).items()}
    if isinstance(model.config, GatedRewardConfig):
        c = model.config
        trunk = transformers.LlamaConfig(**config, attn_implementation="eager")
        theirs = Gated(trunk, c.num_objectives, c.gating_width, c.gating_layers, c.temperature, c.prompt_end)
        theirs.load_state_dict(tensors)
        with torch.no_grad():
            return np.array(
                [[theirs.eval().one(t[m])] for t, m in zip(tokens, mask, strict=True)], np.float32
            )
    config_class, model_class, _ = KINDS[config["model_type"]]
    theirs = model_class(config_class(**config, attn_implementation="eager")).eval()
    theirs.load_state_dict(tensors)
    return their_scores(theirs, tokens, mask)


def golden():
    """Weights, inputs and torch's scores of three tiny models; 10 is the padding, (8, 9) ends a prompt."""
    tokens, mask = batch([9, 12, 7, 12], 12, "left", 8, seed=3)
    mask[1, 8:] = False
    mask[2] = (np.arange(12) >= 2) & (np.arange(12) < 9)
    tokens[:, 4:6] = 8, 9
    tokens = np.where(mask, tokens, 10).astype(np.int32)
    arrays = dict(tokens=tokens, mask=mask)
    for kind in ("llama", "pythia", "gated"):
        model, params = rewarder(kind, seed=7)
        assert isinstance(model.config, RewardConfig)
        arrays[f"config/{kind}"] = json.dumps(model.config.to_hf())
        arrays[f"scores/{kind}"] = torch_scores(model, params, tokens, mask)
        arrays |= {f"weight/{kind}/{k}": v for k, v in convert.to_hf(model, params).items()}
    return arrays


def test_golden_file_is_torchs_answer():
    assert_same_golden(GOLDEN, golden(), close="scores")


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **golden())
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            *_, expected, ours = both_scores(case, folder)
            print(f"{case}: {np.abs(ours - expected).max():.1e} of std {expected.std():.2f}")
