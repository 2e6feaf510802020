"""Reward models without torch: a golden file, padding, folders in and out, how they are split, refusals."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from helpers import TINY_GATE, assert_equal, batch, edit_config, edit_tensors, rewarder, truncate
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file

from sea_jax import models
from sea_jax.errors import InputError
from sea_jax.models import GatedRewardConfig, LlamaConfig, PythiaConfig, RewardConfig, convert
from sea_jax.models.reward import LLAMA_3_ASSISTANT
from sea_jax.runtime.mesh import make_mesh
from sea_jax.runtime.sharding import partition_specs, shard_params

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "data" / "reward_golden.npz"
KINDS = ("llama", "pythia", "gated")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of all three kinds."""
    folder = tmp_path_factory.mktemp("reward")
    for kind in KINDS:
        models.save(folder / kind, *rewarder(kind))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """Copies to spoil."""
    return shutil.copytree(saved, tmp_path / "models")


def scores(model, params, tokens, mask=None):
    return np.asarray(jax.jit(model.apply)({"params": params}, tokens, mask=mask))


@pytest.mark.parametrize("kind", KINDS)
def test_golden_scores(kind):
    """Torch's scores under left, right and two-sided padding."""
    golden = np.load(GOLDEN)
    hf, start = json.loads(str(golden[f"config/{kind}"])), f"weight/{kind}/"
    trunk = (PythiaConfig if kind == "pythia" else LlamaConfig).from_hf(hf)
    model = (GatedRewardConfig if kind == "gated" else RewardConfig).from_hf(hf, trunk).build()
    params = convert.from_hf(model, {k.removeprefix(start): golden[k] for k in golden if k.startswith(start)})
    found, expected = scores(model, params, golden["tokens"], golden["mask"]), golden[f"scores/{kind}"]
    assert found.dtype == np.float32 and expected.shape == (4, 1) and expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_not_read(kind):
    """A text scores the same bare and behind, before and within noise; a row of padding alone is NaN."""
    model, params = rewarder(kind)
    rng = np.random.default_rng(0)
    row = np.array([3, 1, 8, 9, 5, 2, 8], np.int32)
    tokens, mask = rng.integers(0, 11, (5, 11)).astype(np.int32), np.zeros((5, 11), bool)
    for i, start in enumerate((0, 2, 4)):
        tokens[i, start : start + 7], mask[i, start : start + 7] = row, True
    tokens[1, -2:], mask[3] = (8, 9), True  # a prompt's end that is padding; a row with none
    tokens[3, 2:4] = 8, 9
    found, bare = scores(model, params, tokens, mask), scores(model, params, row[None])
    np.testing.assert_allclose(found[:3], np.repeat(bare, 3, 0), atol=1e-5)
    assert np.abs(found[3] - bare).max() > 1e-2 and np.isnan(found[4]).all() and np.isfinite(found[:4]).all()


def test_the_gate_reads_the_last_end_of_a_prompt():
    """By hand from the states: g's input is the first token of the last (8, 9), and none gives NaN."""
    model, params = rewarder("gated")
    tokens = np.array([[8, 9, 1, 8, 9, 8], [8, 9, 1, 9, 8, 8], [1, 2, 8, 3, 9, 9]], np.int32)
    trunk = model.config.trunk.build()
    inputs = np.ones((3, 1, 6), bool)
    hidden = trunk.apply({"params": params}, tokens[:, None], inputs, method="encode")[0][:, 0]
    hidden = np.asarray(hidden, np.float64)

    for i, at in ((0, 3), (1, 0)):
        x = hidden[i, at]
        for layer in range(3):
            x = x @ params[f"gating_{layer}"]["kernel"] + params[f"gating_{layer}"]["bias"]
            x = np.maximum(x, 0) if layer < 2 else x
        gate = np.exp(x / TINY_GATE["temperature"]) / np.exp(x / TINY_GATE["temperature"]).sum()
        rewards = hidden[i, -1] @ params["regression"]["kernel"] @ params["transform"]
        expected = params["logit_scale"][0] * (gate @ rewards)
        np.testing.assert_allclose(scores(model, params, tokens)[i, 0], expected, atol=1e-5)
    assert np.isnan(scores(model, params, tokens)[2]).all()
    # A text shorter than the pattern lacks it too.
    assert np.isnan(scores(model, params, tokens[:, :1])).all()


def test_half_precision_keeps_the_score_in_f32():
    model, params = rewarder("llama")
    tokens, mask = batch([9, 12, 7], 12, "left", 11, seed=3)
    exact = scores(model, params, tokens, mask)
    trunk = dataclasses.replace(model.config.trunk, dtype=jax.numpy.bfloat16)
    half = scores(RewardConfig(trunk).build(), params, tokens, mask)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 0.1 * exact.std() + 0.2


# --- folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_load_save_load_is_bit_equal(kind, saved, tmp_path):
    """The parameters, the config, and the files themselves."""
    expected, params = rewarder(kind)
    model, loaded = models.load(saved / kind)
    assert model.config == expected.config and type(model) is type(expected)
    assert_equal(loaded, params)
    models.save(tmp_path, model, loaded)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / file).read_bytes() == (saved / kind / file).read_bytes()


def test_names_and_shapes_of_the_files(saved):
    """Hugging Face's, and no LM head."""
    for kind, trunk in (("llama", "model."), ("pythia", "gpt_neox."), ("gated", "model.")):
        tensors = load_file(saved / kind / "model.safetensors")
        heads = {name: array.shape for name, array in tensors.items() if not name.startswith(trunk)}
        gate = {
            "regression_layer.weight": (5, 12), "reward_transform_matrix": (5, 5), "gating.logit_scale": (1,),
            "gating.layers.0.weight": (7, 12), "gating.layers.0.bias": (7,),
            "gating.layers.1.weight": (7, 7), "gating.layers.1.bias": (7,),
            "gating.layers.2.weight": (5, 7), "gating.layers.2.bias": (5,),
        }  # fmt: skip
        width = 16 if kind == "pythia" else 12
        assert heads == (gate if kind == "gated" else {"score.weight": (1, width)})


def test_fields_of_a_trunk_can_be_overridden(saved):
    model, _ = models.load(saved / "llama", remat="full", dtype=jax.numpy.bfloat16)
    assert model.config.trunk.remat == "full" and model.config.trunk.dtype == jax.numpy.bfloat16


def test_what_is_absent_has_the_published_value():
    """ArmoRM's defaults, and two labels where a file names none."""
    trunk = LlamaConfig(num_layers=1)
    gated = GatedRewardConfig.from_hf({}, trunk)
    assert gated == GatedRewardConfig(trunk, 1, None, 19, 1024, 3, 10.0, LLAMA_3_ASSISTANT)
    assert LLAMA_3_ASSISTANT == (128009, 128006, 78191, 128007, 271)
    assert RewardConfig.from_hf({}, trunk) == RewardConfig(trunk, 2, None)
    names = {"0": "a", "1": "b", "2": "c"}
    for hf in (dict(num_labels=3), dict(id2label=names), dict(id2label=names, num_labels=3)):
        assert RewardConfig.from_hf(hf, trunk).num_labels == 3


def test_the_class_is_read_from_the_config(folder):
    """The same decoder with and without its head; no `architectures` is a language model."""
    assert isinstance(models.read_config(folder / "llama"), RewardConfig)
    for absent in ({"architectures": None}, {"architectures": []}, {"architectures": ["LlamaForCausalLM"]}):
        edit_config(folder / "llama", **absent)
        assert isinstance(models.read_config(folder / "llama"), LlamaConfig)
    with pytest.raises(InputError, match=r"missing tensor: lm_head\.weight \(1 in all\)"):
        models.load(folder / "llama")


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_an_axis_to_be_split_along(kind):
    """The heads along fsdp, small matrices whole; the trunk as a language model's."""
    model, params = rewarder(kind)
    specs = partition_specs(model, convert.shapes(model))
    assert set(specs) == set(convert.shapes(model))
    spec = PartitionSpec
    heads = {"score/kernel": spec("fsdp", None)}
    if kind == "gated":
        heads = {
            "regression/kernel": spec("fsdp", None), "transform": spec(None, None), "logit_scale": spec(None),
            "gating_0/kernel": spec("fsdp", None), "gating_1/kernel": spec(None, None),
            "gating_2/kernel": spec(None, None), **{f"gating_{i}/bias": spec(None) for i in range(3)},
        }  # fmt: skip
    trunk = model.config.trunk.build()
    of_trunk = partition_specs(trunk, convert.shapes(trunk))
    of_trunk.pop("head/kernel", None)
    assert specs == of_trunk | heads
    assert_equal(jax.device_get(shard_params(make_mesh(), model, params)), params)


# --- refusals -----------------------------------------------------------------------------------

SCORE, LAST = "score.weight", "gating.layers.2.bias"


def change(name, **tensors):
    return lambda f: edit_tensors(f, lambda t: t.update({name: tensors["to"](t)}))


SPOILT = {
    "an unknown class": (
        "llama",
        lambda f: edit_config(f, architectures=["LlamaForTokenClassification"]),
        (
            r"architectures=\['LlamaForTokenClassification'\]; valid: one of \['LlamaForCausalLM', "
            r"'LlamaForRewardModelWithGating', 'LlamaForSequenceClassification'\]"
        ),
    ),
    "another trunk's class": (
        "pythia",
        lambda f: edit_config(f, architectures=["LlamaForSequenceClassification"]),
        r"valid: one of \['GPTNeoXForCausalLM', 'GPTNeoXForSequenceClassification'\]",
    ),
    "a class that is no list": (
        "llama",
        lambda f: edit_config(f, architectures="LlamaForSequenceClassification"),
        "architectures='LlamaForSequenceClassification'; valid: one of .* in a list",
    ),
    "two classes": (
        "llama",
        lambda f: edit_config(f, architectures=["LlamaForCausalLM", "LlamaForSequenceClassification"]),
        r"architectures=\[.*\]; valid: one of",
    ),
    "a class of another kind": (
        "llama",
        lambda f: edit_config(f, architectures=[{}]),
        r"architectures=\[\{\}\]; valid: one of",
    ),
    "labels that disagree": (
        "llama",
        lambda f: edit_config(f, num_labels=2),
        "num_labels=2; valid: 1, as many as id2label names",
    ),
    "no labels": ("llama", lambda f: edit_config(f, id2label={}), r"id2label=\{\}; valid: an object"),
    "labels of another kind": (
        "pythia",
        lambda f: edit_config(f, id2label=None, num_labels="1"),
        "num_labels='1'; valid: a whole number of at least 1",
    ),
    "padding of another kind": ("llama", lambda f: edit_config(f, pad_token_id="<pad>"), "pad_token_id='<pad>'"),
    "a trunk that is not ported": (
        "llama",
        lambda f: edit_config(f, hidden_act="gelu"),
        "hidden_act='gelu'; valid: 'silu'",
    ),
    "more labels than scores": (
        "llama",
        lambda f: edit_config(f, id2label={"0": "a", "1": "b"}),
        rf"tensor {SCORE}: shape \(1, 12\), expected \(2, 12\)",
    ),
    "no score": ("llama", lambda f: edit_tensors(f, lambda t: t.pop(SCORE)), f"missing tensor: {SCORE}"),
    "no score of neox": ("pythia", lambda f: edit_tensors(f, lambda t: t.pop(SCORE)), f"missing tensor: {SCORE}"),
    "a score with a bias": (
        "pythia",
        change("score.bias", to=lambda t: np.zeros(1, np.float32)),
        r"unexpected tensor: score\.bias",
    ),
    "an LM head": (
        "llama",
        change("lm_head.weight", to=lambda t: t["model.embed_tokens.weight"]),
        r"unexpected tensor: lm_head\.weight",
    ),
    "a misshapen score": (
        "pythia",
        change(SCORE, to=lambda t: t[SCORE].T.copy()),
        rf"tensor {SCORE}: shape \(16, 1\), expected \(1, 16\)",
    ),
    "no gate": ("gated", lambda f: edit_tensors(f, lambda t: t.pop(LAST)), f"missing tensor: {LAST}"),
    "a deeper gate": ("gated", lambda f: edit_config(f, gating_n_hidden=3), r"missing tensor: gating\.layers\.3"),
    "a shallower gate": ("gated", lambda f: edit_config(f, gating_n_hidden=1), r"unexpected tensor: gating\.layers\.2"),
    "a wider gate": (
        "gated",
        lambda f: edit_config(f, gating_hidden_dim=8),
        r"tensor gating\.layers\.0\.weight: shape \(7, 12\), expected \(8, 12\)",
    ),
    "other objectives": (
        "gated",
        lambda f: edit_config(f, num_objectives=4),
        r"tensor regression_layer\.weight: shape \(5, 12\), expected \(4, 12\)",
    ),
    "no objectives": ("gated", lambda f: edit_config(f, num_objectives=0), "num_objectives=0; valid: .* at least 1"),
    "a cold gate": ("gated", lambda f: edit_config(f, gating_temperature=0), "gating_temperature=0; valid: .* above 0"),
    "a pattern of other tokens": (
        "gated",
        lambda f: edit_config(f, gating_token_pattern=[8, 11]),
        r"gating_token_pattern=\[8, 11\]; valid: tokens, of 0 to vocab_size - 1 = 10",
    ),
    "an empty pattern": ("gated", lambda f: edit_config(f, gating_token_pattern=[]), r"gating_token_pattern=\[\]"),
    "truncated tensors": ("llama", lambda f: truncate(f / "model.safetensors", 0.9), r"model\.safetensors: not a whole"),
    "a truncated header": ("gated", lambda f: truncate(f / "model.safetensors", 0.02), r"safetensors: not a whole"),
    "a truncated config": ("gated", lambda f: truncate(f / "config.json", 0.5), r"config\.json: not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_folders_are_refused_in_one_line(name, folder):
    kind, spoil, message = SPOILT[name]
    spoil(folder / kind)
    with pytest.raises(InputError, match=message) as error:
        models.load(folder / kind)
    assert "\n" not in str(error.value) and str(folder / kind) in str(error.value)
