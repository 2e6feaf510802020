"""DeBERTa against transformers' DebertaV2Model, weights going both ways through files.

`python tests/parity/test_deberta_hf.py` writes the golden file that tests/models/test_deberta.py
reads where torch is absent.
"""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from flax.traverse_util import flatten_dict
from helpers import assert_same_golden, batch
from safetensors.numpy import load_file

from sea_jax import models
from sea_jax.errors import InputError
from sea_jax.models.disentangled import relative_index

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "data" / "deberta_golden.npz"
LENGTH = 21  # longer than all spans below: buckets merge and distances are cut

SIZES = dict(
    vocab_size=13, hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=24,
)  # fmt: skip
V3 = dict(
    relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=True, position_buckets=4,
    max_relative_positions=-1, max_position_embeddings=24, norm_rel_ebd="layer_norm",
    position_biased_input=False, type_vocab_size=0,
)  # fmt: skip
CASES = {
    "v3": V3,
    "v3, more buckets": V3 | dict(position_buckets=7, max_relative_positions=12, num_hidden_layers=5),
    "v3, own projections": V3 | dict(share_att_key=False),
    "c2p only": V3 | dict(pos_att_type="c2p", share_att_key=False, type_vocab_size=2),
    "p2c only": V3 | dict(pos_att_type=["p2c"], share_att_key=False, hidden_act="gelu_new"),
    "c2p only, shared": V3 | dict(pos_att_type="c2p", norm_rel_ebd="none"),
    "p2c only, shared, no buckets": V3 | dict(
        pos_att_type="p2c", position_buckets=-1, max_relative_positions=6, hidden_act="relu",
    ),
    "neither, but relative": V3 | dict(pos_att_type=[], share_att_key=False),
    "v2, no buckets, absolute positions": V3 | dict(
        pos_att_type="p2c|c2p", share_att_key=False, position_buckets=-1, norm_rel_ebd="none",
        position_biased_input=True, type_vocab_size=2, layer_norm_eps=1e-2,
    ),
    "no relative attention": dict(
        relative_attention=False, type_vocab_size=2, max_position_embeddings=LENGTH, hidden_act="gelu_fast",
    ),
    "no relative attention, scaled for both": dict(pos_att_type=["c2p", "p2c"], type_vocab_size=3),
    "odd sizes, projected embeddings": V3 | dict(
        hidden_size=21, embedding_size=10, num_attention_heads=3, intermediate_size=17, num_hidden_layers=3,
        vocab_size=9, position_buckets=5, position_biased_input=True, type_vocab_size=2,
        hidden_act="gelu_pytorch_tanh",
    ),
}  # fmt: skip
WRITTEN = ("v3", "v2, no buckets, absolute positions")  # to the golden file


def random_deberta(seed, kind=None, **config):
    """Their model with every weight, bias and scale random."""
    torch.manual_seed(seed)
    theirs = (kind or transformers.DebertaV2Model)(transformers.DebertaV2Config(**(SIZES | config)))
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "LayerNorm" in name or name.endswith("bias"):
                p.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.3)
            else:
                p.normal_(0, 1.0 if "embeddings." in name else 0.4)
    return theirs.eval()


def sequences(vocab_size, segments):
    """Left padding, right padding, both, none, with noise in the padding."""
    tokens, mask = batch([13, LENGTH, 12, LENGTH], LENGTH, "left", vocab_size, seed=3)
    mask[1, 15:] = False
    mask[2, :4], mask[2, 4:-5], mask[2, -5:] = False, True, False
    kinds = np.random.default_rng(4).integers(0, max(segments, 2), tokens.shape).astype(np.int32)
    return tokens, mask, kinds


def their_states(theirs, tokens, mask, segments):
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    as_long = lambda x: torch.tensor(np.asarray(x), dtype=torch.long)  # noqa: E731
    with torch.no_grad():
        out = theirs(
            as_long(tokens), attention_mask=as_long(mask), token_type_ids=as_long(segments),
            position_ids=as_long(positions),
        )  # fmt: skip
    return out.last_hidden_state.numpy()


@pytest.mark.parametrize("case", CASES)
def test_files_and_states_both_ways(case, tmp_path):
    """Their folder gives our states; our folder gives, bit for bit, their weights and states."""
    theirs = random_deberta(len(case), **CASES[case])
    theirs.save_pretrained(tmp_path / "theirs")
    model, params = models.load(tmp_path / "theirs")
    inputs = sequences(theirs.config.vocab_size, theirs.config.type_vocab_size)
    mask, expected = inputs[1], their_states(theirs, *inputs)
    ours = np.asarray(jax.jit(model.apply)({"params": params}, *inputs))
    assert ours.shape == expected.shape and ours.dtype == np.float32
    difference = np.abs(ours - expected)[mask].max()
    print(f"{case}: {difference:.1e}")
    assert difference < 1e-4
    assert expected[mask].std() > 0.3

    models.save(tmp_path / "ours", model, params)
    again, params_again = models.load(tmp_path / "ours")
    assert again.config == model.config
    for path, leaf in flatten_dict(params).items():
        np.testing.assert_array_equal(leaf, flatten_dict(params_again)[path], err_msg=str(path))
    written, read = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert written.keys() == read.keys()
    back = transformers.AutoModel.from_pretrained(tmp_path / "ours").eval()
    assert type(back) is transformers.DebertaV2Model
    for (name, a), (_, b) in zip(theirs.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    np.testing.assert_array_equal(their_states(back, *inputs), expected)


@pytest.mark.parametrize("case", ["v3", "v2, no buckets, absolute positions", "no relative attention"])
def test_every_switch_of_the_embeddings_is_read(case):
    """That the cases can fail: positions and segments change their states."""
    theirs = random_deberta(1, **CASES[case])
    tokens, mask, segments = sequences(13, 2)
    mask[:] = True
    base = their_states(theirs, tokens, mask, segments)
    moved = their_states(theirs, tokens[:, ::-1].copy(), mask, segments[:, ::-1].copy())[:, ::-1]
    assert np.abs(base - moved).max() > 0.1
    other = their_states(theirs, tokens, mask, 1 - segments)
    assert (np.abs(base - other).max() > 0.1) == (theirs.config.type_vocab_size > 0)


@pytest.mark.parametrize(
    ("buckets", "most"), [(4, 24), (5, 24), (7, 12), (8, 33), (32, 128), (256, 512), (-1, 12), (-1, 1000)]
)
def test_relative_index(buckets, most):
    """Rows of the embeddings, for sequences far longer than the span."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

    span, x = (buckets if buckets > 0 else most), torch.zeros(1, 700, 1)
    theirs = torch.clamp(build_relative_position(x, x, buckets, most)[0] + span, 0, 2 * span - 1)
    np.testing.assert_array_equal(relative_index(700, span, buckets, most), theirs.numpy())


def test_head_classes(tmp_path):
    """The prefix comes off; the head is refused by name unless it is left out explicitly."""
    kind = transformers.DebertaV2ForSequenceClassification
    theirs = random_deberta(0, kind, **V3)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"unexpected tensor: classifier\.bias, classifier\.weight, pooler"):
        models.load(tmp_path)
    with pytest.raises(
        InputError, match=r"unexpected tensor: pooler\.dense\.bias, pooler\.dense\.weight \(2"
    ):
        models.load(tmp_path, leave_out=("classifier.",))
    model, params = models.load(tmp_path, leave_out=("classifier.", "pooler."))
    inputs = sequences(13, 2)
    ours = np.asarray(jax.jit(model.apply)({"params": params}, *inputs))
    expected = their_states(theirs.deberta, *inputs)
    np.testing.assert_allclose(ours[inputs[1]], expected[inputs[1]], atol=1e-4)


def golden():
    """Config, weights and transformers' states of two variants, and the inputs of both."""
    inputs = sequences(13, 2)
    arrays = dict(zip(("tokens", "mask", "segments"), inputs, strict=True))
    for case in WRITTEN:
        config = SIZES | CASES[case] | dict(hidden_size=9, num_attention_heads=3, intermediate_size=11)
        theirs = random_deberta(0, **config)
        arrays[f"{case}/config"] = json.dumps(config)
        arrays[f"{case}/states"] = their_states(theirs, *inputs)
        arrays |= {f"{case}/weight/{name}": value.numpy() for name, value in theirs.state_dict().items()}
    return arrays


def test_golden_file_is_transformers_answer():
    assert_same_golden(GOLDEN, golden(), close="states")


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **golden())
