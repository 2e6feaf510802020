"""Training of a reward model: its loss by hand, what padding and micro-batches change, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_equal, decoder, llama, pad, rewarder, sigmoid
from ml_collections import ConfigDict
from real_text import byte_tokenizer, posts

from sea_jax.experiment.reward_scorer import make_oracle
from sea_jax.oracles.bradley_terry import BradleyTerryOracle
from sea_jax.oracles.reward_model import make_encode
from sea_jax.pretraining import fit, rm
from sea_jax.runtime.mesh import make_mesh
from sea_jax.tasks.preferences import Pair
from sea_jax.tasks.tokenizer import Tokenizer

LENGTHS = [(3, 7), (7, 3), (3, 3), (7, 7)]  # tokens of y+ and y−, prompts in


def encode(prompts, responses):
    """A letter is a token: a is 0."""
    return [[ord(c) - ord("a") for c in p + r] for p, r in zip(prompts, responses, strict=True)]


def random_texts(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 11, n).tolist() for n in np.ravel(LENGTHS)]


def batch(texts, width, value=0):
    return tuple(jnp.asarray(x.reshape(-1, 2, width)) for x in pad(texts, width, "right", value))


@pytest.mark.parametrize("kind", ["pythia", "llama"])
def test_loss_by_hand(kind):
    """Rewards of bare texts, one at a time, then Eq. 5 in NumPy; padding of any kind changes nothing."""
    model, params = rewarder(kind)
    texts = random_texts()
    apply, loss_of = jax.jit(model.apply), jax.jit(functools.partial(rm.rm_loss, model))
    rewards = np.array([apply({"params": params}, np.array([t]))[0, 0] for t in texts], np.float64)
    margin = rewards[::2] - rewards[1::2]
    assert (margin > 0).any() and (margin < 0).any() and np.abs(margin).min() > 0.01
    for width, value in ((7, 0), (16, 3)):
        loss, metrics = loss_of(params, batch(texts, width, value))
        np.testing.assert_allclose(loss, -np.log(sigmoid(margin)).mean(), rtol=1e-5)
        assert metrics["rm/nll"] == loss
        np.testing.assert_allclose(metrics["rm/accuracy"], (margin > 0).mean())


def test_micro_batches_add_up():
    """Metrics and gradient of four pairs at once are those of two times two."""
    model, params = rewarder("pythia")
    gradient = jax.jit(
        functools.partial(fit.gradient, functools.partial(rm.rm_loss, model)), static_argnums=2
    )
    data = batch(random_texts(), 7)
    whole, parts = (gradient(params, data, size) for size in (0, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, parts)
    assert np.abs(whole[1]["score"]["kernel"]).max() > 1e-3


def preferences(number, seed):
    """Of two responses the one with more letters a is preferred."""
    rng = np.random.default_rng(seed)
    word = lambda n: "".join(rng.choice(list("abcdefg"), n))  # noqa: E731
    pairs = []
    while len(pairs) < number:
        x, *both = word(3), word(rng.integers(2, 7)), word(rng.integers(2, 7))
        both.sort(key=lambda y: -y.count("a"))
        if both[0].count("a") > both[1].count("a"):
            pairs.append(Pair(x, *both))
    return pairs


def config(**fields):
    return ConfigDict(dict(steps=120, batch_size=16, learning_rate=1e-2, micro_batch=0) | fields)


def test_it_learns():
    """On pairs that it has not seen."""
    heldout = preferences(200, seed=1)
    mesh = make_mesh()
    model, params = rm.with_head(*decoder(max_length=64), jax.random.key(0), None)
    measure = lambda params: rm.accuracy(make_oracle(model, params, encode, 32, mesh), heldout)  # noqa: E731
    tokens = rm.tokenize_pairs(encode, preferences(400, seed=0))
    before = measure(params)
    trained = rm.train(config(), tokens, model, params, jax.random.key(1), mesh, progress=False)
    after = measure(trained)
    assert 0.3 < before["accuracy"] < 0.7
    assert after["accuracy"] > 0.9 and after["nll"] < 0.5 * before["nll"]


def test_a_loss_that_is_not_finite():
    model, params = rewarder("pythia")
    params["score"]["kernel"] *= np.nan
    tokens = rm.tokenize_pairs(encode, preferences(8, seed=0))
    with pytest.raises(FloatingPointError, match="rm/nll at step 2: nan, must be finite"):
        rm.train(config(steps=2), tokens, model, params, jax.random.key(1), make_mesh(), False)


def test_accuracy_by_hand():
    """Margins 2, −1, 0: right, wrong, a tie."""
    rewards = {"good": 2.0, "bad": 0.0, "worse": -1.0}
    oracle = BradleyTerryOracle(lambda _, ys: np.array([rewards[y] for y in ys]))
    pairs = [Pair("x", "good", "bad"), Pair("x", "worse", "bad"), Pair("x", "bad", "bad")]
    found = rm.accuracy(oracle, pairs)
    assert found["accuracy"] == 0.5
    np.testing.assert_allclose(found["nll"], (0.126928 + 1.313262 + 0.693147) / 3, rtol=1e-5)


@pytest.mark.parametrize("make", [decoder, llama])
def test_a_language_model_gets_a_new_head(make):
    lm, params = make()
    model, start = rm.with_head(lm, params, jax.random.key(0), 10, max_length=500)
    assert (model.config.num_labels, model.config.padding_idx, model.config.max_length) == (
        1, 10, max(500, lm.config.max_length),
    )  # fmt: skip
    trunk = {name: tree for name, tree in params.items() if name != "head"}
    assert_equal({k: v for k, v in start.items() if k != "score"}, trunk)
    kernels = [
        rm.with_head(lm, params, jax.random.key(i), 10)[1]["score"]["kernel"] for i in range(200)
    ]  # of the width + 1 the inverse is their variance
    np.testing.assert_allclose(np.var(kernels), 1 / (lm.config.width + 1), rtol=0.1)
    states = jax.jit(functools.partial(lm.apply, method="encode"))
    hidden, _, _ = states({"params": params}, np.ones((1, 1, 3), int), np.ones((1, 1, 3), bool))
    reward = jax.jit(model.apply)({"params": start}, np.ones((1, 3), int))[0]
    np.testing.assert_allclose(reward, hidden[0, 0, -1] @ start["score"]["kernel"], rtol=1e-5)


def test_a_reward_model_keeps_its_head():
    given, params = rewarder("llama")
    model, start = rm.with_head(given, params, jax.random.key(0), 3)
    assert model.config.trunk == given.config.trunk and model.config.padding_idx == 3
    assert_equal(start, params)


@pytest.mark.parametrize(
    ("special", "pad", "expected"),
    [
        (("<eos>", "<own>"), "<own>", "<own>"),
        (("<eos>", "<|padding|>"), "<eos>", "<|padding|>"),
        (("<eos>", "<bos>"), "<eos>", "<bos>"),
        (("<eos>",), "<eos>", None),
    ],
)
def test_padding_is_no_end_of_a_text(special, pad, expected):
    """Transformers would take the token before it for the last."""
    backend = byte_tokenizer([dict(row) for row in posts(3)], special=special)
    pad_id, eos_id = backend.token_to_id(pad), backend.token_to_id("<eos>")
    tokenizer = Tokenizer("ours", None, backend, eos_id, pad_id, 320, (), None, None)
    found = rm.padding_token(tokenizer, make_encode(tokenizer))
    assert found == (None if expected is None else backend.token_to_id(expected))
