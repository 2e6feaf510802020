"""DeBERTa without torch: a golden file from transformers, folders in and out, refusals, markers."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers import batch
from safetensors.numpy import load_file, save_file

from sea_jax import models
from sea_jax.errors import InputError
from sea_jax.models import DebertaConfig, convert, marker_states
from sea_jax.models.disentangled import relative_index

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "data" / "deberta_golden.npz"
TINY = dict(
    vocab_size=11, num_layers=2, width=8, num_heads=2, mlp_width=12, position_buckets=4, max_length=16
)
NORM = "encoder.layer.1.output.LayerNorm.bias"


def encoder(**config):
    """An encoder and random parameters."""
    model = DebertaConfig(**(TINY | config)).build()
    rng = np.random.default_rng(0)
    flat = {}
    for path, leaf in sorted(convert.shapes(model).items()):
        flat[path] = (rng.normal(size=leaf.shape) * 0.4 + path.endswith("scale")).astype(np.float32)
    return model, unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def small():
    return encoder()


@pytest.fixture
def folder(small, tmp_path):
    """A saved one, to spoil."""
    models.save(tmp_path / "model", *small)
    return tmp_path / "model"


def apply(model, params, *inputs):
    return np.asarray(jax.jit(model.apply)({"params": params}, *inputs))


@pytest.mark.parametrize("case", ["v3", "v2, no buckets, absolute positions"])
def test_golden_states(case):
    """Transformers' hidden states at unpadded positions, under left, right and two-sided padding."""
    golden = np.load(GOLDEN)
    model = DebertaConfig.from_hf(json.loads(str(golden[f"{case}/config"]))).build()
    start = f"{case}/weight/"
    weights = {name.removeprefix(start): golden[name] for name in golden if name.startswith(start)}
    params, mask = convert.from_hf(model, weights), golden["mask"]
    states = apply(model, params, golden["tokens"], mask, golden["segments"])
    np.testing.assert_allclose(states[mask], golden[f"{case}/states"][mask], atol=1e-4)


@pytest.mark.parametrize("biased", [False, True])
def test_padding_is_not_read(biased):
    """Neither its tokens, nor on which side it is, nor whether it is there; no mask means none."""
    model, params = encoder(position_biased_input=biased, type_vocab_size=2)
    tokens, mask = batch([5, 9], 9, "left", 11)
    states = apply(model, params, tokens, mask)
    assert np.isfinite(states).all()
    noise = np.where(mask, tokens, (tokens + 1) % 11)
    np.testing.assert_array_equal(apply(model, params, noise, mask)[mask], states[mask])
    shifted = apply(model, params, np.roll(tokens, -4, 1)[:1], np.roll(mask, -4, 1)[:1])
    np.testing.assert_allclose(shifted[0, :5], states[0, 4:], atol=1e-5)
    np.testing.assert_allclose(apply(model, params, tokens[:1, 4:])[0], states[0, 4:], atol=1e-5)
    np.testing.assert_allclose(apply(model, params, tokens[1:])[0], states[1], atol=1e-5)
    zeros, ones = np.zeros_like(tokens), np.ones_like(tokens)
    np.testing.assert_allclose(apply(model, params, tokens, mask, zeros), states, atol=1e-5)
    assert np.abs(apply(model, params, tokens, mask, ones) - states)[mask].max() > 0.1


def test_a_sequence_of_padding_alone_stays_finite(small):
    tokens, mask = np.zeros((2, 3), np.int32), np.array([[False] * 3, [True] * 3])
    assert np.isfinite(apply(*small, tokens, mask)).all()


def test_remat_changes_no_gradient(small):
    model, params = small
    tokens, mask = batch([3, 6], 6, "left", 11)

    def loss(p, model):
        return jnp.sum(jnp.sin(model.apply({"params": p}, tokens, mask)) * mask[..., None])

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    remat = dataclasses.replace(model.config, remat="full").build()
    plain = flatten_dict(grad(params, model))
    for path, leaf in flatten_dict(grad(params, remat)).items():
        np.testing.assert_allclose(leaf, plain[path], rtol=1e-3, atol=1e-4)


def test_half_precision_is_close(small):
    model, params = small
    half = dataclasses.replace(model.config, dtype=jnp.bfloat16).build()
    tokens, mask = batch([3, 6], 6, "left", 11)
    ours = jax.jit(half.apply)({"params": params}, tokens, mask)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(ours, np.float32), apply(model, params, tokens, mask), atol=0.15)


def test_relative_index_by_hand():
    """8 buckets to distance 9: half of them exact, then ceil(3 log(d / 4) / log(8 / 4)) + 4 for d > 4."""
    index = relative_index(10, 8, 8, 9)
    np.testing.assert_array_equal(index[9, ::-1], [8, 9, 10, 11, 12, 13, 14, 15, 15, 15])
    np.testing.assert_array_equal(index[0], [8, 7, 6, 5, 4, 3, 2, 1, 1, 0])
    np.testing.assert_array_equal(relative_index(4, 2)[:, 0], [2, 3, 3, 3])
    np.testing.assert_array_equal(relative_index(4, 2)[0], [2, 1, 0, 0])


def test_too_many_tokens_for_absolute_positions():
    model, params = encoder(position_biased_input=True, max_length=4)
    with pytest.raises(ValueError, match="5 tokens; valid: at most max_length=4"):
        model.apply({"params": params}, np.zeros((1, 5), np.int32))


def test_load_save_load_is_bit_equal(small, folder, tmp_path):
    model, params = models.load(folder)
    assert model.config == small[0].config
    for path, leaf in flatten_dict(params).items():
        np.testing.assert_array_equal(leaf, flatten_dict(small[1])[path])
        assert leaf.dtype == np.float32
    models.save(tmp_path / "again", model, params)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def test_every_config_field_survives_the_file(tmp_path):
    config = dict(
        vocab_size=7, num_layers=3, width=12, num_heads=3, mlp_width=10, embedding_width=5, hidden_act="relu",
        norm_eps=1e-3, relative_attention=True, pos_att_type=("c2p",), share_att_key=False,
        position_buckets=6, max_relative_positions=20, norm_rel_ebd="none", position_biased_input=True,
        type_vocab_size=2, max_length=19, padding_idx=3,
    )  # fmt: skip
    models.save(tmp_path, *encoder(**config))
    model, _ = models.load(tmp_path)
    assert dataclasses.asdict(model.config) == dataclasses.asdict(DebertaConfig(**config))
    assert models.load(tmp_path, remat="full")[0].config.remat == "full"


def edit_tensors(folder, edit):
    save_file(edit(load_file(folder / "model.safetensors")), folder / "model.safetensors")


@pytest.mark.parametrize("prefix", ["", "deberta.", "pretrained_model."])
def test_prefixes_and_what_lies_beside_an_encoder(prefix, small, folder):
    """Head classes' prefixes come off; a buffer and the pretraining decoder's positions are not ours."""
    more = {
        "embeddings.position_ids": np.arange(4)[None],
        "embeddings.position_embeddings.weight": np.ones((4, 8), np.float32),
    }
    edit_tensors(folder, lambda t: {prefix + name: array for name, array in (t | more).items()})
    _, params = models.load(folder)
    for path, leaf in flatten_dict(params).items():
        np.testing.assert_array_equal(leaf, flatten_dict(small[1])[path])
    head = {"head_layer.1.weight": np.ones((8, 16), np.float32)}
    edit_tensors(folder, lambda t: t | head)
    with pytest.raises(InputError, match=r"unexpected tensor: head_layer\.1\.weight \(1 in all\)"):
        models.load(folder)
    models.load(folder, leave_out=("head_layer.",))


SPOILT = {
    "missing tensor": (lambda t: {name: t[name] for name in t if name != NORM}, "missing tensor: " + NORM),
    "extra tensor": (lambda t: t | {"extra": np.zeros(1)}, "unexpected tensor: extra"),
    "misshapen tensor": (lambda t: t | {NORM: t[NORM][:-1].copy()}, r"shape \(7,\), expected \(8,\)"),
    "a tensor of another shape of model": (
        lambda t: t | {"encoder.layer.0.attention.self.pos_key_proj.bias": np.zeros(8)},
        r"unexpected tensor: encoder\.layer\.0\.attention\.self\.pos_key_proj\.bias",
    ),
    "a tensor with the prefix and without": (
        lambda t: {"deberta." + name: array for name, array in t.items()} | {NORM: t[NORM] + 1},
        "unexpected tensor: deberta." + NORM,
    ),
    "another prefix": (
        lambda t: {"bert." + name: array for name, array in t.items()},
        r"missing tensor: embeddings\.LayerNorm\.bias",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_tensors_are_refused_in_one_line(name, folder):
    spoil, message = SPOILT[name]
    edit_tensors(folder, spoil)
    with pytest.raises(InputError, match=message) as error:
        models.load(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            dict(pos_att_type=["c2p", "p2p"]),
            "pos_att_type=['c2p', 'p2p']; valid: 'c2p', 'p2c', both or neither",
        ),
        (dict(pos_att_type="p2p|c2p"), "pos_att_type='p2p|c2p'; valid: "),
        (dict(conv_kernel_size=3, conv_act="gelu"), "conv_kernel_size=3; valid: 0"),
        (dict(hidden_act="swish"), "hidden_act='swish'; valid: one of ['gelu', "),
        (dict(norm_rel_ebd="batch_norm"), "norm_rel_ebd='batch_norm'; valid: 'none' or 'layer_norm'"),
        (
            dict(relative_attention=False),
            "norm_rel_ebd='layer_norm'; valid: 'none' without relative_attention",
        ),
        (dict(attention_head_size=7), "attention_head_size=7; valid: hidden_size / num_attention_heads = 4"),
        (dict(position_buckets=3), "position_buckets=3; valid: at most 0 for none, or at least 4"),
        (dict(position_buckets=16, max_relative_positions=9), "max_relative_positions=9; valid: at least 10"),
        (dict(position_buckets="4"), "position_buckets='4'; valid: a whole number"),
        (dict(embedding_size=0), "embedding_size=0; valid: at least 1"),
        (dict(type_vocab_size=-1), "type_vocab_size=-1; valid: at least 0"),
        (dict(num_hidden_layers=0), "num_hidden_layers=0; valid: "),
        (dict(num_attention_heads=3), "hidden_size=8; valid: a multiple of num_attention_heads=3"),
    ],
)
def test_configs_that_are_refused(changes, said, folder):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(InputError) as error:
        models.load(folder)
    assert str(error.value).startswith(f"{file}: {said}") and "\n" not in str(error.value)


def test_marker_states_by_hand():
    """The first occurrence counts; a marker that is absent gives NaN, its neighbours their states."""
    tokens = jnp.array([[7, 1, 8, 1, 9, 1], [0, 7, 2, 9, 8, 8], [1, 9, 7, 9, 7, 1]])
    hidden = jnp.arange(36.0).reshape(3, 6, 2)
    states = jax.jit(marker_states, static_argnums=2)(hidden, tokens, (7, 8))
    np.testing.assert_array_equal(states, [[0, 1, 4, 5], [14, 15, 20, 21], [28, 29, np.nan, np.nan]])
    np.testing.assert_array_equal(marker_states(hidden, tokens, [9]), [[8, 9], [18, 19], [26, 27]])


def test_marker_states_are_one_candidates_features(small):
    """Under any padding: what stands at the source marker, then what stands at the candidate's."""
    model, params = small
    tokens = np.array([[8, 1, 2, 9, 3, 10, 4], [0, 0, 8, 2, 9, 10, 1]], np.int32)
    mask = tokens > 0
    hidden = apply(model, params, tokens, mask)
    features = marker_states(jnp.asarray(hidden), tokens, (8, 10))
    assert features.shape == (2, 16)
    np.testing.assert_array_equal(features[0], np.concatenate([hidden[0, 0], hidden[0, 5]]))
    np.testing.assert_array_equal(features[1], np.concatenate([hidden[1, 2], hidden[1, 5]]))
