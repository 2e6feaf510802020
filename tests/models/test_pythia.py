"""Pythia without torch: a golden file from transformers, folders in and out, and refusals."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from helpers import assert_equal, batch, decoder, edit_config, edit_tensors, truncate
from safetensors.numpy import load_file, save_file

from sea_jax import models
from sea_jax.errors import InputError
from sea_jax.models import Decoder, PythiaConfig, convert

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "data" / "pythia_golden.npz"
NORM = "gpt_neox.final_layer_norm.bias"


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pythia")
    models.save(folder, *tiny)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(saved, tmp_path / "model")


def remove_field(folder, name):
    config = json.loads((folder / "config.json").read_text())
    del config[name]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("variant", ["parallel", "sequential"])
def test_golden_logits(variant):
    """Transformers' logits at unpadded positions, under left, right and two-sided padding."""
    golden = np.load(GOLDEN)
    model = Decoder(PythiaConfig.from_hf(json.loads(str(golden[f"config/{variant}"]))))
    weights = {k.removeprefix("weight/"): golden[k] for k in golden if k.startswith("weight/")}
    params, mask = convert.from_hf(model, weights), golden["mask"]
    logits = np.asarray(jax.jit(model.apply)({"params": params}, golden["tokens"], mask=mask))
    np.testing.assert_allclose(logits[mask], golden[f"logits/{variant}"][mask], atol=1e-4)


def test_no_mask_means_no_padding_and_padding_is_not_read(tiny):
    model, params = tiny
    tokens, mask = batch([3, 6], 6, "left", model.config.vocab_size)
    apply = jax.jit(model.apply)
    bare, padded = (
        apply({"params": params}, tokens[1:]),
        apply({"params": params}, tokens, mask=mask),
    )
    np.testing.assert_allclose(bare[0], padded[1], atol=1e-5)
    noise = np.where(mask, tokens, (tokens + 1) % model.config.vocab_size)
    again = apply({"params": params}, noise, mask=mask)
    np.testing.assert_array_equal(np.asarray(padded)[mask], np.asarray(again)[mask])


def test_remat_changes_no_logit_and_no_gradient():
    model, params = decoder(num_layers=1)
    tokens, mask = batch([3, 6], 6, "left", model.config.vocab_size)

    def square(p, model):
        logits = model.apply({"params": p}, tokens, mask=mask)
        return (logits**2 * mask[..., None]).sum()

    grad = jax.jit(jax.value_and_grad(square), static_argnums=1)
    plain = grad(params, model)
    remat = grad(params, Decoder(dataclasses.replace(model.config, remat="full")))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
        assert np.any(a)


def test_load_save_load_is_bit_equal(tiny, saved, tmp_path):
    """The parameters, the config, and the files themselves."""
    model, params = models.load(saved)
    assert model.config == tiny[0].config
    assert_equal(params, tiny[1])
    models.save(tmp_path / "again", model, params)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (saved / file).read_bytes()


def test_every_config_field_survives_the_file(tmp_path):
    config = dict(vocab_size=7, num_layers=3, width=24, num_heads=3, mlp_width=10, rotary_pct=0.25,
                  rope_base=123.0, norm_eps=1e-3, parallel_residual=False, gelu_approximate=True,
                  max_length=99)  # fmt: skip
    models.save(tmp_path, *decoder(**config))
    model, _ = models.load(tmp_path)
    assert {name: getattr(model.config, name) for name in config} == config
    assert models.load(tmp_path, remat="full")[0].config.remat == "full"


def test_sharded_and_half_precision_folders(tiny, folder):
    """Two shards behind an index, one in f16 with the buffers that old checkpoints carry."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    index = {name: file for file, shard in shards.items() for name in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    half = {name: tensors[name].astype(np.float16) for name in shards["b.safetensors"]}
    buffers = {
        "gpt_neox.layers.0.attention.bias": np.ones((1, 1, 4, 4), np.float16),
        "gpt_neox.layers.1.attention.rotary_emb.inv_freq": np.ones(2, np.float32),
    }
    save_file(
        {name: tensors[name] for name in shards["a.safetensors"]} | buffers,
        folder / "a.safetensors",
    )
    save_file(half, folder / "b.safetensors")
    model, params = models.load(folder)
    assert_equal(params, convert.from_hf(model, tensors | half))
    (folder / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"b\.safetensors: no such file"):
        models.load(folder)


SPOILT = {
    "missing tensor": (
        lambda f: edit_tensors(f, lambda t: t.pop(NORM)),
        "missing tensor: " + NORM,
    ),
    "extra tensor": (
        lambda f: edit_tensors(f, lambda t: t.update(extra=np.zeros(1, np.float32))),
        "unexpected tensor: extra",
    ),
    "misshapen tensor": (
        lambda f: edit_tensors(f, lambda t: t.update({NORM: t[NORM][:-1].copy()})),
        rf"tensor {NORM}: shape \(15,\), expected \(16,\)",
    ),
    "transposed tensor": (
        lambda f: edit_tensors(f, lambda t: t.update({"embed_out.weight": t["embed_out.weight"].T.copy()})),
        r"tensor embed_out.weight: shape \(16, 11\), expected \(11, 16\)",
    ),
    "truncated tensors": (lambda f: truncate(f / "model.safetensors", 0.9), r"model\.safetensors"),
    "truncated header": (lambda f: truncate(f / "model.safetensors", 0.01), r"model\.safetensors"),
    "truncated config": (lambda f: truncate(f / "config.json", 0.5), r"config\.json"),
    "empty tensors": (lambda f: truncate(f / "model.safetensors", 0), r"model\.safetensors: not a whole"),
    "config of a list": (lambda f: (f / "config.json").write_text("[1]"), r"config\.json: holds \[1\]"),
    "config that is no text": (lambda f: (f / "config.json").write_bytes(b"\xff"), r"config\.json: not JSON"),
    "index without a map": (
        lambda f: (f / "model.safetensors.index.json").write_text("{}"),
        r"index\.json: no weight_map; valid: ",
    ),
    "unknown model_type": (
        lambda f: edit_config(f, model_type="mamba"),
        r"config\.json: model_type='mamba'; valid: one of \['deberta-v2', 'gpt_neox', 'llama'\]",
    ),
    "no model_type": (lambda f: remove_field(f, "model_type"), r"config\.json: model_type=None; valid: "),
    "a size of another kind": (
        lambda f: edit_config(f, num_hidden_layers="2"),
        r"config\.json: num_hidden_layers='2'; valid: .* at least 1",
    ),
    "no size": (lambda f: edit_config(f, vocab_size=0), r"vocab_size=0; valid: .* at least 1"),
    "heads that do not divide the width": (
        lambda f: edit_config(f, num_attention_heads=3),
        r"config\.json: hidden_size=16; valid: a multiple of num_attention_heads=3",
    ),
    "tied embeddings": (
        lambda f: edit_config(f, tie_word_embeddings=True),
        "tie_word_embeddings=True",
    ),
    "unknown activation": (lambda f: edit_config(f, hidden_act="relu"), "hidden_act='relu'"),
    "scaled rotary": (
        lambda f: edit_config(f, rope_parameters=dict(rope_type="yarn")),
        "rope scaling",
    ),
    "more layers than tensors": (
        lambda f: edit_config(f, num_hidden_layers=3),
        r"missing tensor: gpt_neox\.layers\.2\.",
    ),
    "more layers than memory": (
        lambda f: edit_config(f, num_hidden_layers=10**9),
        "num_hidden_layers=1000000000; valid: num_hidden_layers, a whole number of at most 10000",
    ),
    "a rotary share of a text": (
        lambda f: edit_config(f, rope_parameters=None, rotary_pct="half"),
        "partial_rotary_factor='half'; valid: a number above 0 and at most 1",
    ),
    "a flag of a text": (lambda f: edit_config(f, use_parallel_residual="no"), "'no'; valid: true or false"),
    "a config nested deeply": (
        lambda f: (f / "config.json").write_text('{"a":' * 9999),
        r"config\.json: nested too deeply; valid: ",
    ),
    "a folder for a file": (
        lambda f: (f / "config.json").unlink() or (f / "config.json").mkdir(),
        r"config\.json: Is a directory",
    ),
    "weights that are integers": (
        lambda f: edit_tensors(f, lambda t: t.update({NORM: t[NORM].view(np.int32)})),
        f"tensor {NORM}: no floats, expected one of BF16",
    ),
    "weights that are not finite": (
        lambda f: edit_tensors(f, lambda t: t.update({NORM: t[NORM] * np.float32(np.nan)})),
        f"tensor {NORM}: NaN or infinity, expected finite floats",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_folders_are_refused_in_one_line(name, folder):
    spoil, message = SPOILT[name]
    spoil(folder)
    with pytest.raises(InputError, match=message) as error:
        models.load(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize(
    "name", ["vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"]
)
def test_a_config_without_a_required_field_names_it(name, folder):
    remove_field(folder, name)
    with pytest.raises(InputError) as error:
        models.load(folder)
    file = folder / "config.json"
    assert str(error.value) == f"{file}: no {name}; valid: {name}, a whole number of at least 1"


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_absent_files_are_named(file, folder):
    (folder / file).unlink()
    with pytest.raises(InputError, match=file):
        models.load(folder)


def test_parameters_that_the_table_does_not_cover_are_not_saved_silently(tiny, tmp_path):
    model, params = tiny
    with pytest.raises(ValueError, match="unexpected PARAMS row: extra") as error:
        models.save(tmp_path, model, params | {"extra": np.zeros(1)})
    assert error.type is ValueError  # a mistake of the code, not of a user's file
    with pytest.raises(ValueError, match="missing PARAMS row: head/kernel"):
        models.save(tmp_path, model, {k: v for k, v in params.items() if k != "head"})
