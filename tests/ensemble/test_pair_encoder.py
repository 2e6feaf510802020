"""Features of a marked text against the encoder called by hand, one sequence at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from helpers import random_params
from ml_collections import ConfigDict
from tokenizers import pre_tokenizers, processors

from sea_jax import models
from sea_jax.ensemble import pair_encoder
from sea_jax.errors import InputError
from sea_jax.models import Responses
from sea_jax.runtime.mesh import make_mesh

WORDS = ["[PAD]", "[CLS]", "[SEP]", "<|source|>", "<|candidate1|>", "a", "b", "c", "d", "[UNK]"]
CLS, SEP, SOURCE, CANDIDATE = 1, 2, 3, 4
RESPONSES = {5: "a b", 6: "b", 7: "c d a b", 8: ""}  # what a token of the policy's says


def word_tokenizer():
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    tokenizer.add_special_tokens(WORDS[:5])
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairrm")
    model = models.DebertaConfig(
        vocab_size=len(WORDS),
        num_layers=2,
        width=8,
        num_heads=2,
        mlp_width=12,
        position_buckets=4,
        max_length=16,
    ).build()
    models.save(folder, model, random_params(model))
    word_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def config(folder, **fields):
    default = dict(
        folder=str(folder), dtype="float32", leave_out=("head.",), markers=("<|source|>", "<|candidate1|>"),
        source_length=6, candidate_length=5, batch_size=3,
    )  # fmt: skip
    return ConfigDict(default | fields)


def decode(tokens, mask):
    return [[RESPONSES[int(t[0])] for t in row] for row in tokens]


def load(folder, **fields):
    return pair_encoder.load(config(folder, **fields), decode, make_mesh())


def by_hand(folder, ids):
    model, params = models.load(str(folder))
    hidden = np.asarray(jax.jit(model.apply)({"params": params}, jnp.asarray([ids])))[0]
    return np.concatenate([hidden[ids.index(SOURCE)], hidden[ids.index(CANDIDATE)]])


def test_features_by_hand(folder):
    """Seven sequences in passes of three; a prompt of four words is cut to three, a response of four to two."""
    extractor = load(folder)
    prompts = ["a", "b c d a", "c"]
    tokens = np.array([[[5], [6]], [[7], [8]], [[6], [7]]])
    found = np.asarray(extractor(prompts, None, None, Responses(tokens, tokens > 0, tokens)))
    assert found.shape == (3, 2, extractor.feature_width) == (3, 2, 16)
    sources = {"a": [5], "b c d a": [6, 7, 8], "c": [7]}
    candidates = {5: [5, 6], 6: [6], 7: [7, 8], 8: []}
    for b, prompt in enumerate(prompts):
        for m in range(2):
            answer = candidates[int(tokens[b, m, 0])]
            ids = [CLS, SOURCE, *sources[prompt], SEP, CLS, CANDIDATE, *answer, SEP]
            np.testing.assert_allclose(found[b, m], by_hand(folder, ids), atol=1e-5, err_msg=f"{b}, {m}")
    assert np.ptp(found, (0, 1)).min() > 1e-3


def test_a_features_neighbours_change_nothing(folder):
    prompts, answers = ["a", "b c", "c d", "d"], ["a b", "", "c", "d"]
    together = load(folder).features(prompts, answers)
    alone = [load(folder, batch_size=1).features([x], [y])[0] for x, y in zip(prompts, answers, strict=True)]
    np.testing.assert_allclose(together, np.stack(alone), atol=4e-6)  # of features up to 2


def test_an_encoder_in_bfloat16(folder):
    """Half the memory, features in f32 and near those of f32."""
    prompts, answers = ["a", "b c", "c d"], ["a b", "d", "c"]
    exact, half = load(folder), load(folder, dtype="bfloat16")
    held = lambda extractor: sum(x.nbytes for x in jax.tree.leaves(extractor.params["layers"]))  # noqa: E731
    assert held(half) < 0.7 * held(exact)  # biases and norms, of width 8, stay in f32
    found = half.features(prompts, answers)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact.features(prompts, answers), atol=0.1)


def test_markers_within_a_text_are_no_markers(folder):
    extractor = load(folder)
    plain = extractor.features(["a b"], ["c"])
    np.testing.assert_array_equal(extractor.features(["a<|candidate1|> b"], ["<|source|>c"]), plain)


@pytest.mark.parametrize("marker", ["<|candidate|>", "a b"])
def test_an_unknown_marker(folder, marker):
    with pytest.raises(InputError, match=r"config.encoder.markers=.*is no token of the encoder"):
        load(folder, markers=("<|source|>", marker))


def test_what_is_no_encoder(folder, tmp_path):
    decoder = models.PythiaConfig(11, num_layers=1, width=16, num_heads=2, mlp_width=8).build()
    models.save(tmp_path, decoder, random_params(decoder))
    with pytest.raises(InputError, match=r"config.encoder.folder=.*a decoder; valid: a DeBERTa encoder"):
        load(tmp_path)
    encoder, params = models.load(str(folder))
    models.save(tmp_path, encoder, params)
    with pytest.raises(InputError, match=r"tokenizer.json: no such file"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer.json: no tokenizer"):
        load(tmp_path)


def test_features_that_are_not_finite(folder):
    extractor = load(folder)
    extractor.params = dict(extractor.params)
    norm = {name: value * np.nan for name, value in extractor.params["embed_norm"].items()}
    extractor.params["embed_norm"] = norm
    with pytest.raises(FloatingPointError, match="not finite"):
        extractor.features(["a"], ["b"])
