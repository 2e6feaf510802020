"""Supervised fine-tuning: its loss by hand, what it reads, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import batch as padded
from helpers import decoder, log_softmax
from ml_collections import ConfigDict
from small_run import small_run

from sea_jax.errors import InputError
from sea_jax.pretraining import sft
from sea_jax.runtime.mesh import make_mesh

loss = jax.jit(sft.sft_loss, static_argnums=(0, 3, 4))


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("run"), "passive").assets.task


def by_hand(tiny, prompts, prompt_mask, responses, response_mask):
    """NLL of each token of the responses, and of the prompts but their first."""
    parts = {"response": [], "prompt": []}
    for x, xm, y, ym in zip(prompts, prompt_mask, responses, response_mask, strict=True):
        x, y = x[xm], y[ym]
        logits = jax.jit(tiny[0].apply)({"params": tiny[1]}, np.concatenate([x, y])[None])
        logp = log_softmax(np.asarray(logits)[0])
        text = np.concatenate([x, y])
        nll = [-logp[t, text[t + 1]] for t in range(len(text) - 1)]
        parts["prompt"] += nll[: len(x) - 1]
        parts["response"] += nll[len(x) - 1 :]
    return {k: np.mean(v) for k, v in parts.items()}


@pytest.mark.parametrize("chunk", [0, 2])
def test_loss_by_hand(chunk):
    tiny = decoder()
    prompts = padded((2, 5, 3), 5, "left", 11)
    responses = padded((4, 1, 3), 4, "right", 11, seed=1)
    data = (*map(jnp.asarray, prompts), *map(jnp.asarray, responses))
    parts = by_hand(tiny, *prompts, *responses)
    alone, metrics = loss(*tiny, data, 0.0, chunk)
    np.testing.assert_allclose(alone, parts["response"], rtol=1e-5)
    both, metrics = loss(*tiny, data, 0.25)
    np.testing.assert_allclose(metrics["sft/response_nll"], parts["response"], rtol=1e-5)
    np.testing.assert_allclose(both, parts["response"] + 0.25 * parts["prompt"], rtol=1e-5)


def config(**fields):
    default = dict(steps=30, batch_size=4, learning_rate=1e-2, prompt_weight=0.0, token_chunk=0)
    return ConfigDict(default | fields)


def test_it_goes_on_from_given_weights(task):
    """From where it ended, the same examples are no news: their loss starts where it had got to."""
    model = decoder(vocab_size=400, max_length=200)[0]
    task = dataclasses.replace(task, demonstrations=tuple("The cat" for _ in task.demonstrations))
    mesh, key = make_mesh(), jax.random.key(0)
    trained = sft.train(config(), task, model, key, mesh, progress=False)
    data = tuple(map(jnp.asarray, sft.examples(task, "train")))
    nll = lambda params: float(loss(model, params, data, 0.0)[0])  # noqa: E731
    fresh = jax.jit(model.init)(key, data[0][:1])["params"]
    assert nll(trained) < 0.5 * nll(fresh)
    kept = jax.tree.map(np.asarray, trained)
    further = sft.train(config(steps=1), task, model, key, mesh, progress=False, params=kept)
    assert nll(further) < 1.2 * nll(kept)


def test_examples_leave_out_what_does_not_fit(task, caplog):
    """References stand in for demonstrations that are not there; an empty or long one goes with its prompt."""
    texts = list(task.references["train"])
    texts[:3] = ["", "word " * 40, "The cat"]
    texts[3:] = ["A dog"] * (len(texts) - 3)
    odd = dataclasses.replace(task, demonstrations=(), references=task.references | {"train": tuple(texts)})
    with caplog.at_level("WARNING"):
        prompts, _, responses, mask = sft.examples(odd, "train")
    assert "2 of 8 references are empty or too long" in caplog.text
    assert len(prompts) == len(responses) == 6
    assert task.decode(responses, mask)[:2] == ["The cat", "A dog"]
    np.testing.assert_array_equal(prompts[0], task.encode_prompts(task.prompts["train"][2:3])[0][0])


def test_a_task_without_responses(task):
    none = dataclasses.replace(task, demonstrations=(), references=dict.fromkeys(task.references, ()))
    with pytest.raises(InputError, match="no demonstrations and no references; valid for sft"):
        sft.examples(none, "train")
    long = dataclasses.replace(task, references=task.references | {"heldout": ("word " * 40,) * 8})
    with pytest.raises(InputError, match=r"config.task.response_length=6: no reference of the heldout"):
        sft.examples(long, "heldout")
