"""The sampler against the full forward pass, and its frequencies against the softmax."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import batch, chosen, decoder, fits, full_logits, log_softmax, pad

from sea_jax.models.generate import make_sampler, sample_token

module = importlib.import_module("sea_jax.models.generate")  # the package exports the function
STATIC = ("num_responses", "max_tokens", "temperature", "eos_id", "pad_id")
generate = jax.jit(module.generate, static_argnums=0, static_argnames=STATIC)
sample = jax.jit(sample_token, static_argnums=2)
EOS, PAD, L, M, T = 9, 7, 4, 8, 6


def draw(tiny, prompts, mask, key=0, temperature=0.7, **options):
    options = dict(num_responses=M, max_tokens=T, eos_id=EOS, pad_id=PAD) | options
    out = generate(*tiny, prompts, mask, jax.random.key(key), temperature=temperature, **options)
    return jax.tree.map(np.asarray, out)


@pytest.fixture(scope="module")
def prompts(tiny):
    return batch([1, 4], L, "left", tiny[0].config.vocab_size, seed=5)


@pytest.fixture(scope="module")
def responses(tiny, prompts):
    return draw(tiny, *prompts)


def test_cached_decoding_equals_the_full_forward(tiny, prompts, responses):
    """The reported log-probs are those of softmax(logits / 0.7), recomputed without a cache."""
    logp = log_softmax(full_logits(tiny, *prompts, responses.tokens) / 0.7)
    expected = np.where(responses.mask, chosen(logp, responses.tokens), 0)
    np.testing.assert_allclose(responses.logprobs, expected, atol=1e-5)


def test_eos_is_kept_and_padding_follows(responses):
    """mask is True up to the first EOS and on it; then pad tokens with log-prob 0."""
    ended = 0
    for tokens, mask, logprobs in zip(*(x.reshape(-1, T) for x in responses), strict=True):
        length = list(tokens).index(EOS) + 1 if EOS in tokens[mask] else T
        ended += length < T
        np.testing.assert_array_equal(mask, np.arange(T) < length)
        assert (tokens[length:] == PAD).all() and not logprobs[length:].any()
        assert (logprobs[:length] < 0).all() and EOS not in tokens[: length - 1]
    assert 0 < ended < 2 * M
    assert responses.tokens.dtype == np.int32 and responses.logprobs.dtype == np.float32


def test_keys_decide(tiny, prompts, responses):
    again, other = draw(tiny, *prompts), draw(tiny, *prompts, key=1)
    jax.tree.map(np.testing.assert_array_equal, again, responses)
    assert (other.tokens != responses.tokens).any()


def test_greedy_is_the_argmax_of_the_full_forward(tiny, prompts):
    """Whatever the key, for all M alike; log-probs at temperature 1."""
    a, b = (draw(tiny, *prompts, key=key, temperature=0, num_responses=2) for key in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    np.testing.assert_array_equal(a.tokens[:, 0], a.tokens[:, 1])
    logits = full_logits(tiny, *prompts, a.tokens)
    np.testing.assert_array_equal(a.tokens[a.mask], logits.argmax(-1)[a.mask])
    np.testing.assert_allclose(a.logprobs[a.mask], chosen(log_softmax(logits), a.tokens)[a.mask], atol=1e-5)


def test_left_padding_changes_nothing():
    """The same prompt behind 0 and 5 padding tokens: same greedy tokens, same logits."""
    model, params = small = decoder(num_layers=1)
    rows = [pad([[2, 9, 4]], width, "left", value=6) for width in (3, 8)]
    bare, padded = (draw(small, *row, temperature=0, max_tokens=4, eos_id=-1) for row in rows)
    np.testing.assert_array_equal(bare.tokens, padded.tokens)
    np.testing.assert_allclose(bare.logprobs, padded.logprobs, atol=1e-5)
    assert len(set(bare.tokens[0, 0])) > 1

    @jax.jit
    def first_logits(tokens, mask):
        last, _ = model.apply({"params": params}, tokens, mask, method="prefill")
        return model.apply({"params": params}, last, method="logits")

    np.testing.assert_allclose(first_logits(*rows[0]), first_logits(*rows[1]), atol=1e-5)


def test_first_and_second_token_follow_the_softmax():
    """4000 responses on 5 tokens: pairs (y_1, y_2) as often as the model says, at temperature 0.7.

    Twice the same prompt: its two rows of draws are independent.
    """
    V, many, eos = 5, 4000, 4
    small = decoder(3, vocab_size=V, num_layers=1, width=8)
    prompts, mask = pad([[1, 2], [1, 2], [3]], 2, "left")
    out = draw(small, prompts, mask, num_responses=many, max_tokens=2, eos_id=eos, pad_id=0)
    every = np.broadcast_to(np.arange(V)[None, :, None], (3, V, 1))
    whole = np.concatenate([every, np.zeros_like(every)], -1)  # y_1, then any token
    p = np.exp(log_softmax(full_logits(small, prompts, mask, whole) / 0.7))
    for b in range(3):
        first, second = p[b, 0, 0], p[b, :, 1]  # p(y_1), p(y_2 | y_1)
        table = np.zeros((V, V + 1))
        y_2 = np.where(out.mask[b, :, 1], out.tokens[b, :, 1], V)  # V: none, after the EOS
        np.add.at(table, (out.tokens[b, :, 0], y_2), 1)
        expected = np.concatenate([first[:, None] * second, np.zeros((V, 1))], 1)
        expected[eos] = np.eye(V + 1)[V] * first[eos]
        assert fits(table, expected)
        assert not fits(table, expected**1.2 / (expected**1.2).sum())  # the test has power
    joint = np.zeros((V, V))
    np.add.at(joint, (out.tokens[0, :, 0], out.tokens[1, :, 0]), 1)
    assert fits(joint, np.outer(p[0, 0, 0], p[1, 0, 0]))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_sample_token_frequencies(temperature):
    logits = np.array([0.5, -1.0, 2.0, -np.inf, 0.0, 1.0], np.float32)
    uniform = jax.random.uniform(jax.random.key(int(10 * temperature)), (8000,))
    tokens, logprobs = sample(jnp.broadcast_to(logits, (8000, 6)), uniform, temperature)
    logp = log_softmax(logits.astype(np.float64) / temperature)
    assert fits(np.bincount(tokens, minlength=6), np.exp(logp))
    np.testing.assert_allclose(logprobs, logp[tokens], rtol=1e-5)
    assert tokens.dtype == jnp.int32


def test_sample_token_inverts_the_cumulative_sum():
    """p = (0, 1/4, 0, 1/2, 1/4, 0): each uniform's token by hand, the ends of [0, 1) included."""
    with np.errstate(divide="ignore"):
        logits = np.log(np.float32([0, 0.25, 0, 0.5, 0.25, 0]))
    largest = np.float32(1 - 2**-24)
    uniform = np.float32([0, 0.2499, 0.2501, 0.7499, 0.7501, largest])
    tokens, _ = sample(np.broadcast_to(logits, (6, 6)), uniform, 1.0)
    assert tokens.tolist() == [1, 1, 3, 3, 4, 4]


def test_no_token_of_probability_0_is_ever_drawn():
    """Uniforms aimed at every step of the rounded cumulative sum, half of 512 tokens impossible.

    XLA sums in parallel, so that the rounded sum moves, and falls, at tokens that add nothing.
    """
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 512)).astype(np.float32) * 2
    logits[rng.random(logits.shape) < 0.5] = -np.inf
    cumulative = np.asarray(jax.jit(lambda x: jnp.cumsum(jax.nn.softmax(x), -1))(logits))
    for nudge in (-1, 0, 1):
        steps = np.round(cumulative / cumulative[:, -1:] * 2**24) + nudge
        uniform = np.clip(steps / 2**24, 0, 1 - 2**-24).astype(np.float32)
        tokens, logprobs = sample(np.broadcast_to(logits[:, None], (20, 512, 512)), uniform, 1.0)
        assert np.isfinite(logprobs).all()
        assert np.isfinite(np.take_along_axis(logits, np.asarray(tokens), 1)).all()


def test_stops_when_all_have_ended_and_no_sooner(tiny, prompts, monkeypatch):
    """All end at once: one token is sampled. One row goes on: more are, the ended row unchanged."""
    calls = []

    def counted(*args):
        jax.debug.callback(lambda: calls.append(1))
        return sample_token(*args)

    monkeypatch.setattr(module, "sample_token", counted)
    rows = np.array([prompts[0][1], (prompts[0][1] + 1) % 11])
    first = full_logits(tiny, rows, np.ones((2, L), bool), np.zeros((2, 1, 1), int)).argmax(-1).ravel()
    assert first[0] != first[1], "the two prompts must begin differently"
    run = jax.jit(
        lambda prompts: module.generate(
            *tiny, prompts, jnp.ones((2, L), bool), jax.random.key(0), num_responses=2,
            max_tokens=T, temperature=0, eos_id=int(first[0]), pad_id=PAD,
        )
    )  # fmt: skip
    seen = []
    for prompts_now in (rows[[0, 0]], rows):
        calls.clear()
        out = jax.tree.map(np.asarray, run(prompts_now))
        jax.effects_barrier()
        seen.append((len(calls), out))
    (steps_at_once, at_once), (steps, later) = seen
    lengths = later.mask.sum(-1)[1]
    assert steps_at_once == 1 and steps == lengths.max() > 1
    for a, b in zip(at_once, later, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(at_once.mask[..., 0], True)
    assert not at_once.mask[..., 1:].any() and (at_once.tokens[..., 1:] == PAD).all()


@pytest.mark.parametrize("vocabulary", [2, 5, 37, 64, 513])
def test_every_token_is_drawn_where_its_share_of_the_uniform_lies(vocabulary):
    """The inverse of the cumulative sum, computed in float64; a third of the tokens cannot be drawn.

    Uniforms lie in the middle of each possible token's share, and at the ends of [0, 1)."""
    rng = np.random.default_rng(vocabulary)
    logits = np.where(rng.random(vocabulary) < 0.3, -np.inf, rng.normal(size=vocabulary))
    logits[rng.integers(vocabulary)] = 0.0
    p = np.exp(logits.astype(np.float32).astype(np.float64) / 0.7)
    p /= p.sum()
    possible = np.flatnonzero(p)
    uniform = np.concatenate([(p.cumsum() - p / 2)[possible], [0.0, 1 - 2**-24]]).astype(np.float32)
    rows = np.broadcast_to(logits.astype(np.float32), (len(uniform), vocabulary))
    tokens, logprobs = sample(rows, uniform, 0.7)
    expected = [*possible, possible[0], possible[-1]]
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(logprobs, np.log(p[expected]), atol=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_no_micro_batch_changes_a_response(tiny, micro_batch):
    """4 does not divide six prompts: then three at a time."""
    model, params = tiny
    tokens, mask = batch((3, 5, 2, 4, 1, 5), 5, "left", 11)
    call = lambda size: make_sampler(model, 4, 6, 1.0, 0, 0, micro_batch=size)(  # noqa: E731
        params, tokens, mask, jax.random.key(0)
    )
    whole, parts = call(0), call(micro_batch)
    np.testing.assert_array_equal(whole.tokens, parts.tokens)
    np.testing.assert_array_equal(whole.mask, parts.mask)
    np.testing.assert_allclose(whole.logprobs, parts.logprobs, atol=1e-5)
