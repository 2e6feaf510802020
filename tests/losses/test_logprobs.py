"""Response log-probs: against transformers one sequence at a time, and what padding must not do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import batch, decoder, llama, to_transformers

from sea_jax.losses import response_states, sequence_logprobs, token_logprobs

PROMPTS, RESPONSES = (4, 1), (5, 1, 3, 2, 0, 4)  # lengths; M = 3, the fifth response is empty
L, T = 4, 5


@pytest.fixture(scope="module")
def inputs(tiny):
    V = tiny[0].config.vocab_size
    prompts, prompt_mask = batch(PROMPTS, L, "left", V, seed=1)
    tokens, mask = batch(RESPONSES, T, "right", V, seed=2)
    return prompts, prompt_mask, tokens.reshape(2, 3, T), mask.reshape(2, 3, T)


@pytest.fixture(scope="module")
def scored(tiny, inputs):
    model, params = tiny
    score = jax.jit(lambda p, *inputs: token_logprobs(model, p, *inputs))
    return score, np.asarray(score(params, *inputs))


def in_chunks(tiny, inputs, chunk):
    """The log-probs, and the gradient of their summed squares."""

    def total(params):
        found = token_logprobs(tiny[0], params, *inputs, chunk)
        return jnp.square(found).sum(), found

    (_, values), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(tiny[1])
    return values, gradient


@pytest.fixture(scope="module")
def whole(tiny, inputs):
    return in_chunks(tiny, inputs, 0)


def test_equal_to_transformers_without_padding(tiny, inputs, scored):
    """Each prompt + response alone, unpadded; log π(y_t | x, y_<t) gathered by hand."""
    torch = pytest.importorskip("torch")
    theirs = to_transformers(*tiny)
    prompts, prompt_mask, tokens, mask = inputs
    for b in range(2):
        for m in range(3):
            prompt, response = prompts[b][prompt_mask[b]], tokens[b, m][mask[b, m]]
            ids = torch.tensor(np.concatenate([prompt, response])[None], dtype=torch.long)
            with torch.no_grad():
                logp = torch.log_softmax(theirs(ids).logits[0].double(), -1).numpy()
            for t in range(T):
                expected = logp[len(prompt) + t - 1, response[t]] if t < len(response) else 0.0
                np.testing.assert_allclose(scored[1][b, m, t], expected, atol=2e-5)


def test_equal_to_the_full_forward(tiny, inputs, scored):
    """The shared prefix gives what model.apply gives on prompt + response in one row."""
    model, params = tiny
    prompts, prompt_mask, tokens, mask = inputs
    whole = np.concatenate([np.repeat(prompts, 3, 0), tokens.reshape(6, T)], 1)
    whole_mask = np.concatenate([np.repeat(prompt_mask, 3, 0), mask.reshape(6, T)], 1)
    logits = jax.jit(model.apply)({"params": params}, whole, whole_mask)
    logp = np.asarray(jax.nn.log_softmax(logits[:, L - 1 : -1]))
    expected = np.take_along_axis(logp, whole[:, L:, None], -1)[..., 0].reshape(2, 3, T)
    np.testing.assert_allclose(scored[1][mask], expected[mask], atol=1e-5)


def test_padding_counts_nothing_and_is_not_read(tiny, inputs, scored):
    """Zeros on padding, and not a bit changes with other tokens there."""
    score, values = scored
    prompts, prompt_mask, tokens, mask = inputs
    assert (values[~mask] == 0).all() and (values[mask] < 0).all()
    V = tiny[0].config.vocab_size
    other = (
        np.where(prompt_mask, prompts, (prompts + 3) % V),
        np.where(mask, tokens, (tokens + 3) % V),
    )
    np.testing.assert_array_equal(score(tiny[1], other[0], prompt_mask, other[1], mask), values)


def test_responses_of_one_token(tiny, inputs, scored):
    """Only the prompt is read for them."""
    _, params = tiny
    prompts, prompt_mask, tokens, mask = inputs
    found = scored[0](params, prompts, prompt_mask, tokens[..., :1], mask[..., :1])
    np.testing.assert_allclose(found, scored[1][..., :1], atol=1e-6)


def test_sequence_is_the_sum_and_an_empty_response_is_certain(tiny, inputs, scored):
    """log π = Σ_t, 0 for no token; gradients stay finite beside it and are 0 for it alone."""
    model, params = tiny
    prompts, prompt_mask, tokens, mask = inputs

    @jax.jit
    def total(params, prompt_mask, mask):
        def f(p):
            logps = sequence_logprobs(model, p, prompts, prompt_mask, tokens, mask)
            return logps.sum(), logps

        return jax.grad(f, has_aux=True)(params)

    gradient, logps = total(params, prompt_mask, mask)
    np.testing.assert_allclose(logps, scored[1].sum(-1), rtol=1e-5)
    assert logps[1, 1] == 0
    assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(gradient))
    gradient, logps = total(params, prompt_mask, np.zeros_like(mask))
    assert not logps.any() and not any(np.any(g) for g in jax.tree.leaves(gradient))
    # A row that is padding only, prompt and all, as fills up a batch.
    gradient, logps = total(params, prompt_mask & [[True], [False]], mask)
    assert logps[1, 1] == 0 and np.isfinite(logps).all()
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_states_have_read_the_tokens_before_them(tiny, inputs):
    """State t moves with token t − 1 and earlier, in its own response only."""
    model, params = tiny
    prompts, prompt_mask, tokens, mask = inputs
    states = jax.jit(lambda tokens: response_states(model, params, prompts, prompt_mask, tokens, mask))
    changed = tokens.copy()
    changed[0, 0, 2] = (changed[0, 0, 2] + 1) % model.config.vocab_size
    before, after = np.asarray(states(tokens)), np.asarray(states(changed))
    assert before.shape == (2, 3, T + 1, model.config.width)
    moved = (before != after).any(-1)
    expected = np.zeros((2, 3, T + 1), bool)
    expected[0, 0, 3:] = True
    np.testing.assert_array_equal(moved, expected)
    assert jnp.array_equal(before[0, 0, 0], before[0, 2, 0])  # the prompt's state, shared


@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 9])
def test_chunks_change_neither_values_nor_gradients(tiny, inputs, scored, whole, chunk):
    """T = 5: chunks that divide it, that leave a rest, and one that is longer."""
    values, gradient = in_chunks(tiny, inputs, chunk)
    np.testing.assert_allclose(values, scored[1], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradient, whole[1])


def test_chunks_bound_the_logits(tiny, inputs):
    """Of the gradient's arrays none is as large as all logits, [2, 3, 5, V], once chunks are of two."""
    model, params = tiny
    V = model.config.vocab_size

    def shapes(chunk):
        text = str(
            jax.make_jaxpr(jax.grad(lambda p: sequence_logprobs(model, p, *inputs, chunk).sum()))(params)
        )
        return f"2,3,5,{V}]" in text, f"2,3,2,{V}]" in text

    assert shapes(0) == (True, False) and shapes(2) == (False, True)


@pytest.mark.parametrize("make", [decoder, llama])
def test_bfloat16_activations_keep_float32_weights_and_log_probs(make):
    """Gradients too; log-probs are off by bfloat16's rounding, and by some."""
    model, params = make()
    half = dataclasses.replace(model.config, dtype=jnp.bfloat16).build()
    prompts, responses = (
        batch((2, 4), 4, "left", model.config.vocab_size),
        batch((3, 5), 5, "right", model.config.vocab_size, seed=1),
    )
    inputs = (*prompts, responses[0][:, None], responses[1][:, None])
    total = lambda m: lambda p: ((found := token_logprobs(m, p, *inputs)).sum(), found)  # noqa: E731
    (grads, exact), (grads_of_half, rounded) = (
        jax.jit(jax.grad(total(m), has_aux=True))(params) for m in (model, half)
    )
    assert exact.dtype == rounded.dtype == jnp.float32
    # bfloat16 rounds by 2^-9 of a number; a few such roundings lie between a token and its log-prob.
    off = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 1e-5 < off < 16 * 2**-9, off
    assert {g.dtype for g in jax.tree.leaves(grads_of_half)} == {jnp.dtype("float32")}
    both = grads, grads_of_half
    whole, off = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in both)
    assert 1e-5 < np.linalg.norm(off - whole) / np.linalg.norm(whole) < 0.05
