"""Pythia against transformers' GPTNeoXForCausalLM, weights going both ways through files.

`python tests/parity/test_pythia_hf.py` writes the golden file that tests/models/test_pythia.py
reads where torch is absent.
"""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from helpers import assert_same_golden, batch, decoder, to_transformers

from sea_jax import models
from sea_jax.models import convert

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "data" / "pythia_golden.npz"
VARIANTS = dict(
    parallel=dict(parallel_residual=True, rotary_pct=0.5, gelu_approximate=False),
    sequential=dict(parallel_residual=False, rotary_pct=1.0, gelu_approximate=True),
)

CASES = {
    "parallel, rotary 0.25": dict(rotary_pct=0.25, hidden_act="gelu", vocab_size=12),
    "sequential, rotary 0.5": dict(
        use_parallel_residual=False, rotary_pct=0.5, hidden_act="gelu_new",
    ),
    "rotary 1.0, base 500": dict(
        rotary_pct=1.0, rope=500.0, hidden_act="gelu_fast", layer_norm_eps=1e-2,
    ),
    "sequential, 5 layers": dict(
        use_parallel_residual=False, rotary_pct=0.25, hidden_act="gelu_pytorch_tanh",
        num_hidden_layers=5, num_attention_heads=4, vocab_size=23,
    ),
}  # fmt: skip


def random_gpt_neox(seed, rotary_pct, rope=10_000.0, **config):
    """Their model with every weight, bias and scale random."""
    rope = dict(rope_type="default", rope_theta=rope, partial_rotary_factor=rotary_pct)
    defaults = dict(
        vocab_size=13, hidden_size=32, num_attention_heads=2, num_hidden_layers=2,
        intermediate_size=24, max_position_embeddings=64, rope_parameters=rope,
    )  # fmt: skip
    config = transformers.GPTNeoXConfig(**(defaults | config), attn_implementation="eager")
    torch.manual_seed(seed)
    theirs = transformers.GPTNeoXForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.normal_(0, 0.2 if p.ndim > 1 else 0.3).add_(1.0 if "norm.weight" in name else 0.0)
    return theirs


def sequences(vocab_size):
    """Left padding, right padding, both, none, with noise in the padding."""
    tokens, mask = batch([5, 7, 4, 7], 7, "left", vocab_size, seed=3)
    mask[1, 4:] = False
    mask[2] = [0, 0, 1, 1, 1, 1, 0]
    return tokens, mask


def their_logits(theirs, tokens, mask):
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    as_long = lambda x: torch.tensor(np.asarray(x), dtype=torch.long)  # noqa: E731
    with torch.no_grad():
        out = theirs(as_long(tokens), attention_mask=as_long(mask), position_ids=as_long(positions))
    return out.logits.numpy()


@pytest.mark.parametrize("case", CASES)
def test_files_and_logits_both_ways(case, tmp_path):
    """Their folder gives our logits; our folder gives, bit for bit, their weights and logits."""
    theirs = random_gpt_neox(len(case), **CASES[case])
    theirs.save_pretrained(tmp_path / "theirs")
    model, params = models.load(tmp_path / "theirs")
    tokens, mask = sequences(theirs.config.vocab_size)
    expected = their_logits(theirs, tokens, mask)
    ours = np.asarray(jax.jit(model.apply)({"params": params}, tokens, mask=mask))
    assert ours.shape == expected.shape and ours.dtype == np.float32
    np.testing.assert_allclose(ours[mask], expected[mask], atol=1e-4)
    assert expected[mask].std() > 0.3

    models.save(tmp_path / "ours", model, params)
    back = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager"
    ).eval()
    for (name, a), (_, b) in zip(theirs.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    if theirs.config.hidden_act in ("gelu", "gelu_new"):
        np.testing.assert_array_equal(their_logits(back, tokens, mask), expected)
    else:  # other spellings of the same approximation
        np.testing.assert_allclose(their_logits(back, tokens, mask), expected, atol=1e-5)


def golden():
    """Weights, inputs and transformers' logits of two variants."""
    arrays = {}
    for name, variant in VARIANTS.items():
        model, params = decoder(seed=7, **variant)
        tokens, mask = sequences(model.config.vocab_size)
        arrays[f"config/{name}"] = json.dumps(model.config.to_hf())
        arrays[f"logits/{name}"] = their_logits(to_transformers(model, params), tokens, mask)
    weights = {f"weight/{k}": v for k, v in convert.to_hf(model, params).items()}
    return arrays | weights | dict(tokens=tokens, mask=mask)


def test_golden_file_is_transformers_answer():
    assert_same_golden(GOLDEN, golden(), close="logits")


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **golden())
