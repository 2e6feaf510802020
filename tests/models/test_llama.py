"""Llama without torch: a golden file from transformers, cached decoding, grouped queries, refusals."""

import dataclasses
import importlib
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from helpers import (
    GOLDEN_LLAMAS,
    TINY_LLAMA,
    assert_equal,
    batch,
    chosen,
    edit_config,
    edit_tensors,
    full_logits,
    llama,
    log_softmax,
    truncate,
)
from safetensors.numpy import load_file, save_file

from sea_jax import models
from sea_jax.errors import InputError
from sea_jax.models import Decoder, LlamaConfig, convert
from sea_jax.models.layers import Past, Prefix, RopeScaling, rotary_angles, shared_prefix_attention

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "data" / "llama_golden.npz"
NORM = "model.norm.weight"
KEY = "model.layers.1.self_attn.k_proj.weight"
STATIC = ("num_responses", "max_tokens", "temperature", "eos_id", "pad_id")
generate = jax.jit(
    importlib.import_module("sea_jax.models.generate").generate, static_argnums=0, static_argnames=STATIC
)


@pytest.fixture(scope="module")
def small():
    """Two layers, 4 query heads on 2 key heads, scaled rotary embedding, tied head."""
    return llama()


@pytest.fixture(scope="module")
def saved(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    models.save(folder, *small)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(saved, tmp_path / "model")


@pytest.mark.parametrize("variant", GOLDEN_LLAMAS)
def test_golden_logits(variant):
    """Transformers' logits at unpadded positions, under left, right and two-sided padding."""
    golden = np.load(GOLDEN)
    model = Decoder(LlamaConfig.from_hf(json.loads(str(golden[f"config/{variant}"]))))
    start = f"weight/{variant}/"
    params = convert.from_hf(model, {k.removeprefix(start): golden[k] for k in golden if k.startswith(start)})
    mask = golden["mask"]
    logits = np.asarray(jax.jit(model.apply)({"params": params}, golden["tokens"], mask=mask))
    np.testing.assert_allclose(logits[mask], golden[f"logits/{variant}"][mask], atol=1e-4)


@pytest.mark.parametrize("variant", [dict(), dict(num_kv_heads=1, tied=False, attention_bias=True)])
def test_cached_greedy_decoding_equals_the_full_forward(variant):
    """Tokens and log-probs, prompts of 1, 4 and 6 tokens behind left padding."""
    model, params = tiny = llama(1, **variant)
    prompts, mask = batch([1, 4, 6], 6, "left", model.config.vocab_size, seed=5)
    out = generate(
        model, params, prompts, mask, jax.random.key(0),
        num_responses=2, max_tokens=7, temperature=0, eos_id=-1, pad_id=0,
    )  # fmt: skip
    tokens = np.asarray(out.tokens)
    logits = full_logits(tiny, prompts, mask, tokens)
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    np.testing.assert_allclose(out.logprobs, chosen(log_softmax(logits), tokens), atol=1e-5)
    assert out.mask.all() and len(np.unique(tokens)) > 2


def brute_force(q, k, v, mask, prompt_k, prompt_v, prompt_mask):
    """One query at a time: head h reads key head h // G of the prompt and of what came before it."""
    B, M, T, H, D = q.shape
    G, out = H // k.shape[3], np.zeros(q.shape)
    for b, m, t, h in np.ndindex(B, M, T, H):
        seen = np.flatnonzero(mask[b, m, : t + 1])
        keys = np.concatenate([prompt_k[b, prompt_mask[b], h // G], k[b, m, seen, h // G]])
        values = np.concatenate([prompt_v[b, prompt_mask[b], h // G], v[b, m, seen, h // G]])
        weights = np.exp(keys @ q[b, m, t, h] / D**0.5)
        out[b, m, t, h] = weights @ values / weights.sum()
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_grouped_queries_are_those_of_a_loop(kv_heads):
    """All at once, the last query alone, and token by token behind a past, behind a shared prompt."""
    B, M, T, H, D, L = 2, 3, 4, 6, 4, 5
    rng = np.random.default_rng(kv_heads)
    q = rng.normal(size=(B, M, T, H, D)).astype(np.float32)
    k, v = rng.normal(size=(2, B, M, T, kv_heads, D)).astype(np.float32)
    shared = rng.normal(size=(2, B, L, kv_heads, D)).astype(np.float32)
    prompt_mask = np.arange(L) >= np.array([[2], [0]])
    prefix = Prefix(shared[0].transpose(0, 2, 3, 1), shared[1].transpose(0, 2, 1, 3), prompt_mask)
    mask = np.arange(T) < np.array([[4, 2, 1], [3, 4, 4]])[..., None]
    found = shared_prefix_attention(q, k, v, mask, prefix)
    expected = brute_force(q, k, v, mask, *shared, prompt_mask)
    np.testing.assert_allclose(np.asarray(found)[mask], expected[mask], atol=1e-5)

    real = np.ones_like(mask)
    expected = brute_force(q, k, v, real, *shared, prompt_mask)
    last = shared_prefix_attention(q[:, :, -1:], k, v, real, prefix)
    np.testing.assert_allclose(last, expected[:, :, -1:], atol=1e-5)
    past = Past(jnp.zeros((B, kv_heads, M, D, T + 1)), jnp.zeros((B, kv_heads, M, T + 1, D)), jnp.int32(0))
    for at in (np.s_[:, :, :2], np.s_[:, :, 2:3], np.s_[:, :, 3:]):
        past = past.append(k[at], v[at])
        found = shared_prefix_attention(q[at], k[at], v[at], real[at], prefix, past)
        np.testing.assert_allclose(found, expected[at], atol=1e-5)


def test_no_array_holds_keys_repeated_for_each_query_head():
    """In the compiled attention of a decoded token, nothing is as large as H / H_kv prompts' keys."""
    B, M, H, H_kv, D, L = 2, 1, 8, 1, 64, 256
    shapes = [(B, M, 1, H, D), (B, M, 1, H_kv, D), (B, M, 1, H_kv, D), (B, H_kv, D, L), (B, H_kv, L, D)]

    def attend(q, k, v, keys, values):
        mask = jnp.ones((B, M, 1), bool)
        return shared_prefix_attention(q, k, v, mask, Prefix(keys, values, jnp.ones((B, L), bool)))

    compiled = jax.jit(attend).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()
    keys = 4 * B * H_kv * D * L  # bytes
    assert compiled.memory_analysis().temp_size_in_bytes < keys


def test_rotary_scaling_by_hand():
    """Base 10,000, 4 features: wavelengths 2π and 200π in a context of 16 with factors 8, 1 and 4.

    The short one fits 16 / 2π = 2.55 times: it keeps (2.55 - 1) / 3 of its frequency. The long one is
    stretched by 8; in a context of 16,000 both stay.
    """
    positions = jnp.array([0, 3, 11])
    kept = (16 / (2 * np.pi) - 1) / 3
    for context, frequencies in ((16, [kept + (1 - kept) / 8, 0.01 / 8]), (16_000, [1.0, 0.01])):
        sin, cos = rotary_angles(positions, 4, 10_000.0, RopeScaling(8.0, 1.0, 4.0, context))
        angles = np.array([[0], [3], [11]]) * np.array(frequencies)
        np.testing.assert_allclose(sin, np.sin(angles), atol=1e-5)
        np.testing.assert_allclose(cos, np.cos(angles), atol=1e-5)


def test_remat_and_half_precision(small):
    """The same logits under remat, near ones in bf16, always f32; the gradient reaches a tied embedding."""
    model, params = small
    tokens, mask = batch([3, 6], 6, "left", model.config.vocab_size)

    def logits(params, **changes):
        return Decoder(dataclasses.replace(model.config, **changes)).apply({"params": params}, tokens, mask)

    plain, half = np.asarray(logits(params))[mask], np.asarray(logits(params, dtype=jnp.bfloat16))[mask]
    assert plain.dtype == half.dtype == np.float32
    assert 0 < np.abs(half - plain).mean() < 0.03 * plain.std()

    def loss(params, **changes):
        return (logits(params, **changes) ** 2 * mask[..., None]).mean()

    grads, again = (
        jax.jit(jax.grad(loss))(params),
        jax.jit(jax.grad(lambda p: loss(p, remat="full")))(params),
    )
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        assert np.any(a)
    unread = np.setdiff1d(np.arange(model.config.vocab_size), tokens[mask])
    assert np.any(grads["embed"]["embedding"][unread], -1).all()  # through the head alone


@pytest.mark.parametrize("variant", [dict(), dict(tied=False, attention_bias=True), dict(mlp_bias=True)])
def test_load_save_load_is_bit_equal(variant, tmp_path):
    """The parameters, the config, and the files themselves."""
    small = llama(2, **variant)
    models.save(tmp_path / "once", *small)
    model, params = models.load(tmp_path / "once")
    assert model.config == small[0].config
    assert_equal(params, small[1])
    models.save(tmp_path / "again", model, params)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "once" / file).read_bytes()


def test_every_config_field_survives_the_file(tmp_path):
    config = dict(vocab_size=7, num_layers=3, width=24, num_heads=6, num_kv_heads=3, head_dim=8, mlp_width=10,
                  rope_base=123.0, rope_scaling=RopeScaling(3.0, 0.5, 2.0, 17), norm_eps=1e-3, tied=False,
                  attention_bias=True, mlp_bias=True, max_length=99)  # fmt: skip
    models.save(tmp_path, *llama(**config))
    model, _ = models.load(tmp_path)
    assert {name: getattr(model.config, name) for name in config} == config
    assert models.load(tmp_path, remat="full")[0].config.remat == "full"


def test_what_transformers_4_and_5_write_is_read_alike():
    """Scaling in rope_scaling beside rope_theta, under either name of its type, or in rope_parameters."""
    sizes = dict(
        vocab_size=7, num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=9,
        num_key_value_heads=None, head_dim=None, max_position_embeddings=77,
    )  # fmt: skip
    plain = LlamaConfig.from_hf(sizes)
    assert (plain.num_kv_heads, plain.head_dim, plain.rope_base, plain.norm_eps) == (2, 4, 10_000.0, 1e-6)
    assert plain.rope_scaling is None and not plain.tied and plain.max_length == 77
    scaling = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
    read = [
        LlamaConfig.from_hf(sizes | rope)
        for rope in (
            dict(rope_theta=5e5, rope_scaling=scaling | dict(rope_type="llama3")),
            dict(rope_theta=5e5, rope_scaling=scaling | dict(type="llama3")),
            dict(rope_parameters=scaling | dict(rope_type="llama3", rope_theta=5e5)),
        )
    ]
    assert read[0] == read[1] == read[2]
    assert read[0].rope_base == 5e5 and read[0].rope_scaling == RopeScaling(8.0, 1.0, 4.0, 77)


def test_old_and_half_precision_folders(small, folder):
    """Two shards behind an index, one in f16, with the buffers that Llama 2's checkpoints carry."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = {name: tensors[name].astype(np.float16) for name in sorted(tensors)[::2]}
    rest = {name: tensors[name] for name in sorted(tensors)[1::2]}
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}
    shards = {"a.safetensors": half, "b.safetensors": rest | buffer}
    index = {name: file for file, shard in shards.items() for name in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for file, shard in shards.items():
        save_file(shard, folder / file)
    model, params = models.load(folder)
    assert_equal(params, convert.from_hf(model, tensors | half))


def spoil_rope(**rope):
    scaled = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
    return lambda f: edit_config(f, rope_scaling=scaled | rope)


SPOILT = {
    "another rope type": (spoil_rope(rope_type="yarn"), "rope_type='yarn'; valid: 'default' or 'llama3'"),
    "a rope that is no object": (lambda f: edit_config(f, rope_scaling="llama3"), "rope_scaling='llama3'; valid"),
    "no rope factor": (spoil_rope(factor=None), "factor=None of the rotary embedding; valid: .* at least 1"),
    "no rope range": (spoil_rope(low_freq_factor=4.0), r"high_freq_factor=4\.0; valid: more than .*=4\.0"),
    "rope base 0": (spoil_rope(rope_theta=0), "rope_theta=0 .*; valid: a number above 0"),
    "rope of a part": (spoil_rope(partial_rotary_factor=0.5), r"partial_rotary_factor=0\.5; valid: 1\.0"),
    "no context": (
        spoil_rope(original_max_position_embeddings=0),
        "original_max_position_embeddings=0; valid: .* at least 1",
    ),
    "another activation": (lambda f: edit_config(f, hidden_act="gelu"), "hidden_act='gelu'; valid: 'silu'"),
    "heads that are no groups": (
        lambda f: edit_config(f, num_key_value_heads=3),
        "num_attention_heads=4; valid: a multiple of num_key_value_heads=3",
    ),
    "no key heads": (lambda f: edit_config(f, num_key_value_heads=0), "num_key_value_heads=0; valid: .* at least 1"),
    "odd heads": (lambda f: edit_config(f, head_dim=5), "head_dim=5; valid: an even number"),
    "missing tensor": (lambda f: edit_tensors(f, lambda t: t.pop(NORM)), "missing tensor: " + NORM),
    "extra tensor": (
        lambda f: edit_tensors(f, lambda t: t.update(extra=np.zeros(1, np.float32))),
        "unexpected tensor: extra",
    ),
    "a head that is tied and another": (
        lambda f: edit_tensors(f, lambda t: t.update({"lm_head.weight": np.zeros((11, 12), np.float32)})),
        "tensor lm_head.weight: differs from model.embed_tokens.weight, .*tie_word_embeddings=True",
    ),
    "no head that is untied": (lambda f: edit_config(f, tie_word_embeddings=False), "missing tensor: lm_head"),
    "no bias": (lambda f: edit_config(f, attention_bias=True), r"missing tensor: .*k_proj\.bias.* \(8 in all\)"),
    "misshapen tensor": (
        lambda f: edit_tensors(f, lambda t: t.update({KEY: t[KEY][:-1].copy()})),
        rf"tensor {KEY}: shape \(11, 12\), expected \(12, 12\)",
    ),
    "truncated tensors": (lambda f: truncate(f / "model.safetensors", 0.9), r"model\.safetensors: not a whole"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_folders_are_refused_in_one_line(name, folder):
    spoil, message = SPOILT[name]
    spoil(folder)
    with pytest.raises(InputError, match=message) as error:
        models.load(folder)
    said = str(error.value)
    assert "\n" not in said and str(folder) in said and "valid: " in said.replace("not a whole", "valid: ")


def test_a_config_of_code_is_checked_too():
    with pytest.raises(ValueError, match="num_attention_heads=4; valid: a multiple of num_key_value_heads=3"):
        LlamaConfig(**(TINY_LLAMA | dict(num_kv_heads=3)))


def test_a_tokenizers_own_end_of_text_is_saved(small, tmp_path):
    vocabulary = {"a": 0, "<|eot_id|>": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a"))
    models.save(tmp_path / "saved", *small, tokenizer, eos_token="<|eot_id|>")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    described = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert config["eos_token_id"] == 3 and described["eos_token"] == "<|eot_id|>"
    assert again.get_vocab() == vocabulary
    with pytest.raises(InputError, match=r"eos_token='<\|endoftext\|>': not in the vocabulary"):
        models.save(tmp_path / "none", *small, tokenizer)
    assert not (tmp_path / "none").exists()
