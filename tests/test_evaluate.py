"""Win rates and best-of-N against arithmetic done by hand."""

import types

import jax
import numpy as np

from sea_jax import evaluate
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
