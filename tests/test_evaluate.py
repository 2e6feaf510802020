"""Win rates, best-of-N, accuracy and KL against arithmetic done by hand."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
from helpers import TINY, decoder, pad

from sea_jax import evaluate
from sea_jax.losses import sequence_logprobs
from sea_jax.models import Responses
from sea_jax.oracles.bradley_terry import BradleyTerryOracle


def by_length(prompts, responses):
    """r*: a character of the response is worth one nat, one of the prompt two."""
    return np.array([len(y) + 2.0 * len(x) for x, y in zip(prompts, responses, strict=True)])


def test_duel_wins():
    """Three duels: both below the reference; above and equal; equal and below. Prompts cancel."""
    prompts, references = ["p", "pp", "ppp"], ["rrrr", "rr", "r"]
    pairs = [("a", "ab"), ("abc", "ab"), ("a", "")]
    oracle = BradleyTerryOracle(by_length)
    won = evaluate.duel_wins(oracle, "threshold", prompts, pairs, references)
    np.testing.assert_array_equal(won, [[0, 0], [1, 0.5], [0.5, 0]])
    won = evaluate.duel_wins(oracle, "bernoulli", prompts, pairs, references)
    margins = np.array([[-3, -2], [1, 0], [0, -1]])
    np.testing.assert_allclose(won, 1 / (1 + np.exp(-margins)), rtol=1e-6)


def test_best_responses():
    """Five prompts two at a time, three responses each: tokens say prompt, response and draw."""
    task = types.SimpleNamespace(
        decode=lambda tokens, mask: [
            " ".join(map(str, t[m])) for t, m in zip(tokens, mask, strict=True)
        ]
    )  # fmt: skip
    prompts = np.arange(5)[:, None]
    wanted = [2, 0, 1, 1, 2]  # the response that each prompt's scores are highest for
    keys = []

    def sample(tokens, mask, key):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        response, draw = np.arange(3), len(keys)
        out = np.stack(np.broadcast_arrays(tokens, response, 9, draw), -1)
        return Responses(out, np.arange(4) <= response[:, None] + 0 * tokens[..., None], None)

    score = lambda rows, out: np.eye(3)[[wanted[i] for i in rows]]  # noqa: E731
    texts, length = evaluate.best_responses(task, sample, score, prompts, prompts >= 0, 2, jax.random.key(0))
    assert texts == ("0 2 9", "1", "2 1", "3 1", "4 2 9")
    assert length == (3 + 1 + 2 + 2 + 3) / 5
    assert len(keys) == len(set(keys)) == 3


def test_ensemble_accuracy(monkeypatch):
    """Three heads, four pairs: margins by hand."""
    margins = np.array([[2.0, 1, -1, 0.2], [1, -1, -2, 0.2], [3, -3, -3, 0.2]])
    monkeypatch.setattr(
        evaluate.heads, "rewards", lambda params, features: jnp.stack([margins, 0 * margins], -1)
    )
    found = evaluate.ensemble_accuracy({}, jnp.zeros((4, 2, 1)))
    probability = (1 / (1 + np.exp(-margins))).mean(0)  # 0.85, 0.35, 0.14, 0.55
    confidence = np.array([probability[0], 1 - probability[1], 1 - probability[2], probability[3]])
    right = np.array([1, 0, 0, 1])
    bins = (confidence * 10).astype(int)
    assert bins.tolist() == [8, 6, 8, 5]
    gaps = [abs(confidence[bins == b].sum() - right[bins == b].sum()) for b in (5, 6, 8)]
    np.testing.assert_allclose(found["ensemble/ece_heldout"], sum(gaps) / 4, rtol=1e-6)
    np.testing.assert_allclose(found["ensemble/agreement_heldout"], (1 + 2 / 3 + 1 + 1) / 4, rtol=1e-6)
    np.testing.assert_allclose(found["ensemble/accuracy_heldout"], 0.5)
    np.testing.assert_allclose(found["ensemble/nll_heldout"], -np.log(probability).mean(), rtol=1e-5)


def test_kl_is_the_mean_log_ratio_of_samples():
    """KL of two tiny policies over all responses of two tokens, and the estimate from their samples."""
    model, params = decoder()
    _, ref_params = decoder(seed=1)
    V, EOS, n = TINY["vocab_size"], TINY["vocab_size"] - 1, 2000
    prompts = np.array([[3, 4, 1]])
    every = [[EOS]] + [[a, b] for a in range(V) if a != EOS for b in range(V)]
    tokens, mask = pad(every, 2, "right")
    all_responses = Responses(jnp.array(tokens)[None], jnp.array(mask)[None], None)
    arguments = prompts, np.ones_like(prompts, bool), all_responses
    ratio = np.asarray(evaluate.log_ratio(model, 0, ref_params, params, *arguments))[0]
    log_prob = np.asarray(sequence_logprobs(model, params, *arguments[:2], *all_responses[:2]))[0]
    assert abs(np.exp(log_prob).sum() - 1) < 1e-5
    kl = (np.exp(log_prob) * ratio).sum()

    drawn = np.random.default_rng(0).choice(len(every), n, p=np.exp(log_prob) / np.exp(log_prob).sum())
    rows = iter(drawn.reshape(-1, 4))

    def sample_now(sampler, policy, tokens, mask, key, *, num_responses, temperature):
        assert (num_responses, temperature) == (4, 1.0)
        chosen = np.stack([next(rows) for _ in tokens])
        return Responses(all_responses.tokens[0][chosen], all_responses.mask[0][chosen], None)

    config = types.SimpleNamespace(eval=types.SimpleNamespace(batch_size=100, kl_samples=4))
    data = types.SimpleNamespace(tokens=np.repeat(prompts, n // 4, 0), mask=np.ones((n // 4, 3), bool))
    evaluator = evaluate.Evaluator(
        config, None, None, None, None, data, None,
        lambda *a: evaluate.log_ratio(model, 0, ref_params, *a),
    )  # fmt: skip
    evaluator._sample = lambda policy, m, t: functools.partial(
        sample_now, None, policy, num_responses=m, temperature=t
    )
    found = evaluator.kl(types.SimpleNamespace(params=params), jax.random.key(0))
    assert kl > 0.1
    assert abs(found["eval/kl"] - kl) < 3 * found["eval/kl_se"]
    of_prompts = ratio[drawn].reshape(-1, 4).mean(1)
    np.testing.assert_allclose(found["eval/kl_se"], of_prompts.std(ddof=1) / (n // 4) ** 0.5, rtol=1e-4)
    np.testing.assert_allclose(found["eval/kl"], of_prompts.mean(), rtol=1e-4)
