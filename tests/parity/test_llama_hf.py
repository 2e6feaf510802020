"""Llama against transformers' LlamaForCausalLM, weights going both ways through files.

`python tests/parity/test_llama_hf.py` writes the golden file that tests/models/test_llama.py
reads where torch is absent, and prints the largest difference of each case.
"""

import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from helpers import GOLDEN_LLAMAS, assert_same_golden, batch, llama

from sea_jax import models
from sea_jax.models import convert

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "data" / "llama_golden.npz"
SCALED = dict(
    rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=8,
)  # fmt: skip

CASES = {
    "2 of 4 heads, tied": dict(num_key_value_heads=2, tie_word_embeddings=True),
    "1 of 4 heads, scaled rotary": dict(num_key_value_heads=1, rope_parameters=SCALED),
    "all heads, biases": dict(num_key_value_heads=4, attention_bias=True, mlp_bias=True),
    "2 of 4 heads, wide heads, scaled, tied": dict(
        num_key_value_heads=2, head_dim=12, rope_parameters=SCALED, tie_word_embeddings=True,
        attention_bias=True,
    ),
    "3 of 3 heads, odd sizes": dict(
        num_attention_heads=3, hidden_size=21, head_dim=6, intermediate_size=29, vocab_size=11,
        mlp_bias=True, rms_norm_eps=1e-2,
    ),
    "2 of 6 heads, 5 layers, narrow heads": dict(
        num_attention_heads=6, num_key_value_heads=2, hidden_size=30, head_dim=2, num_hidden_layers=5,
        vocab_size=23, rope_parameters=SCALED | dict(factor=3.0, high_freq_factor=2.5, rope_theta=500.0),
    ),
}  # fmt: skip


def random_llama(seed, **config):
    """Their model with every weight, bias and scale random."""
    defaults = dict(
        vocab_size=13, hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=24,
        max_position_embeddings=64, rope_parameters=dict(rope_type="default", rope_theta=100.0),
    )  # fmt: skip
    config = transformers.LlamaConfig(**(defaults | config), attn_implementation="eager")
    torch.manual_seed(seed)
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.normal_(0, 0.2 if p.ndim > 1 else 0.3).add_(1.0 if "norm.weight" in name else 0.0)
    return theirs


def sequences(vocab_size):
    """Left padding, right padding, both, none, with noise in the padding."""
    tokens, mask = batch([9, 12, 7, 12], 12, "left", vocab_size, seed=3)
    mask[1, 8:] = False
    mask[2] = (np.arange(12) >= 2) & (np.arange(12) < 9)
    return tokens, mask


def their_logits(theirs, tokens, mask):
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    as_long = lambda x: torch.tensor(np.asarray(x), dtype=torch.long)  # noqa: E731
    with torch.no_grad():
        out = theirs(as_long(tokens), attention_mask=as_long(mask), position_ids=as_long(positions))
    return out.logits.float().numpy()


def reopened(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def both_logits(case, folder):
    """Their model and, where a token is real, their logits and ours from their files."""
    theirs = random_llama(len(case), **CASES[case])
    theirs.save_pretrained(folder)
    model, params = models.load(folder)
    tokens, mask = sequences(theirs.config.vocab_size)
    ours = jax.jit(model.apply)({"params": params}, tokens, mask=mask)
    return theirs, model, params, their_logits(theirs, tokens, mask)[mask], np.asarray(ours)[mask]


@pytest.mark.parametrize("case", CASES)
def test_files_and_logits_both_ways(case, tmp_path):
    """Their folder gives our logits; our folder gives, bit for bit, their weights and logits, and ours."""
    theirs, model, params, expected, ours = both_logits(case, tmp_path / "theirs")
    assert ours.shape == expected.shape and ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert expected.std() > 0.3
    assert ("head" in params) is not theirs.config.tie_word_embeddings

    models.save(tmp_path / "ours", model, params)
    back = reopened(tmp_path / "ours")
    for (name, a), (_, b) in zip(theirs.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    tokens, mask = sequences(theirs.config.vocab_size)
    np.testing.assert_array_equal(their_logits(back, tokens, mask)[mask], expected)

    again, same = models.load(tmp_path / "ours")
    assert again.config == model.config
    same, params = flatten_dict(same), flatten_dict(params)
    assert same.keys() == params.keys()
    for path, leaf in same.items():
        np.testing.assert_array_equal(leaf, params[path], err_msg=str(path))


def test_our_config_is_theirs(tmp_path):
    """Every field that decides a logit, the rotary scaling's included, in transformers' own reading."""
    case = "2 of 4 heads, wide heads, scaled, tied"
    theirs, model, params, *_ = both_logits(case, tmp_path / "theirs")
    models.save(tmp_path / "ours", model, params)
    read, ours = theirs.config, reopened(tmp_path / "ours").config
    assert ours.rope_parameters == read.rope_parameters
    for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "hidden_act", "rms_norm_eps", "tie_word_embeddings", "attention_bias", "mlp_bias",
        "max_position_embeddings", "vocab_size",
    ):  # fmt: skip
        assert getattr(ours, name) == getattr(read, name), name


def test_a_sharded_checkpoint_is_the_whole_one(tmp_path):
    theirs = random_llama(1, num_key_value_heads=2)
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="12KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    (_, whole), (_, sharded) = (models.load(tmp_path / name) for name in ("whole", "sharded"))
    jax.tree.map(np.testing.assert_array_equal, sharded, whole)


def test_half_precision_is_as_close_as_theirs(tmp_path):
    """Ours in bf16 against theirs in f32: no further off, up to a fifth, than theirs in bf16."""
    theirs = random_llama(5, **CASES["1 of 4 heads, scaled rotary"])
    theirs.save_pretrained(tmp_path)
    model, params = models.load(tmp_path, dtype=jax.numpy.bfloat16)
    tokens, mask = sequences(theirs.config.vocab_size)
    expected = their_logits(theirs, tokens, mask)[mask]
    ours = np.asarray(jax.jit(model.apply)({"params": params}, tokens, mask=mask))[mask]
    half = their_logits(theirs.bfloat16(), tokens, mask)[mask]
    assert np.abs(ours - expected).mean() < 1.2 * np.abs(half - expected).mean()


def golden():
    """Weights, inputs and transformers' logits of two variants."""
    arrays = {}
    for name, variant in GOLDEN_LLAMAS.items():
        model, params = llama(seed=7, **variant)
        tensors = {k: torch.tensor(v) for k, v in convert.to_hf(model, params).items()}
        config = model.config.to_hf()
        theirs = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**config, attn_implementation="eager")
        ).eval()
        theirs.load_state_dict({"lm_head.weight": tensors["model.embed_tokens.weight"]} | tensors)
        tokens, mask = sequences(model.config.vocab_size)
        arrays[f"config/{name}"] = json.dumps(config)
        arrays[f"logits/{name}"] = their_logits(theirs, tokens, mask)
        arrays |= {f"weight/{name}/{k}": v.numpy() for k, v in tensors.items()}
    return arrays | dict(tokens=tokens, mask=mask)


def test_golden_file_is_transformers_answer():
    assert_same_golden(GOLDEN, golden(), close="logits")


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **golden())
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            *_, expected, ours = both_logits(case, folder)
            print(f"{case}: {np.abs(ours - expected).max():.1e} of std {expected.std():.2f}")
