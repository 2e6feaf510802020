"""The rows that training reads, and one optimizer step for each batch."""

import itertools
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sea_jax.errors import StoppedError
from sea_jax.pretraining import backbone, fit
from sea_jax.runtime.checkpoint_folder import CheckpointFolder
from sea_jax.runtime.mesh import make_mesh


def take(rows, number):
    return [batch.tolist() for batch in itertools.islice(rows, number)]


def test_every_epoch_is_a_permutation():
    flat = np.ravel(take(fit.shuffled_rows(jax.random.key(0), 6, 4), 6)).reshape(4, 6)
    assert all(sorted(epoch) == list(range(6)) for epoch in flat)
    assert len({tuple(epoch) for epoch in flat}) > 1
    assert take(fit.shuffled_rows(jax.random.key(1), 6, 4), 6) != take(
        fit.shuffled_rows(jax.random.key(0), 6, 4), 6
    )


def test_a_batch_larger_than_the_data_repeats_it():
    (batch,) = take(fit.shuffled_rows(jax.random.key(0), 2, 5), 1)
    assert sorted(batch[:2]) == sorted(batch[2:4]) == [0, 1]


def test_distinct_rows_are_distinct_within_a_batch_only():
    batches = take(fit.distinct_rows(jax.random.key(0), 6, 4), 5)
    assert all(len(set(batch)) == 4 and set(batch) <= set(range(6)) for batch in batches)
    assert any(set(first) & set(second) for first, second in itertools.pairwise(batches))


def test_one_step_for_each_batch():
    """Plain gradient descent on (w − x)² / 2 of one example a step."""
    loss = lambda w, x: (((w - x) ** 2).mean() / 2, {"toy/loss": w})  # noqa: E731
    data, rows = np.array([1.0, 2.0, 4.0], np.float32), iter(np.array([[0], [2], [1]]))
    found = fit.fit(
        loss, optax.sgd(0.5), jax.numpy.float32(0), rows, lambda rows: data[rows], make_mesh(),
        steps=3, metric="toy/loss", progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(found, 0.5 * (0.5 * (0.5 * 1 + 4) + 2))


RATES = types.SimpleNamespace(learning_rate=0.1, decoder_rate=0.3, steps=9)


@pytest.mark.parametrize(
    ("killed", "optimizer"),
    [(False, optax.adam(0.1)), (True, optax.adam(0.1)), (True, backbone._optimizer(RATES))],
    ids=["stopped", "killed", "the backbone's"],
)
def test_a_stopped_fit_goes_on(tmp_path, killed, optimizer):
    """Twice stopped, it ends with the parameters of one that was never stopped, and read the same rows."""
    loss = lambda p, x: (  # noqa: E731
        ((p["decoder"] * p["pooling"] + p["heads"] - x) ** 2).mean() / 2, {"toy/loss": p["heads"].sum()}
    )  # fmt: skip
    data, seen = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32), []

    def train(folder, stop_at=None):
        def examples(rows):
            if len(seen) == stop_at:
                if killed:
                    raise MemoryError
                signal.raise_signal(signal.SIGTERM)
            seen.append(rows.tolist())
            return data[rows]

        rows = fit.shuffled_rows(jax.random.key(1), len(data), 4)
        with CheckpointFolder(folder, 0, 2) as saved:
            params = {name: jnp.full(3, 0.5) for name in ("decoder", "pooling", "heads")}
            return fit.fit(
                loss, optimizer, params, rows, examples, make_mesh(), steps=9,
                metric="toy/loss", progress=False, saved=saved,
            )  # fmt: skip

    whole, expected = train(tmp_path / "whole"), seen[:]
    seen.clear()
    for stop_at in (2, 5):
        with pytest.raises(MemoryError if killed else StoppedError):
            train(tmp_path / "parts", stop_at)
    jax.tree.map(np.testing.assert_array_equal, train(tmp_path / "parts"), whole)
    assert seen == expected and len(seen) == 9


def test_without_checkpoints_signals_are_left_alone():
    """The default handler of SIGINT raises inside the loop."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start jobs with SIGINT ignored
    with pytest.raises(KeyboardInterrupt):
        fit.fit(
            lambda w, x: (w, {"toy/loss": w}), optax.sgd(0.5), jnp.float32(0), iter(np.zeros((3, 1), int)),
            lambda rows: signal.raise_signal(signal.SIGINT) or rows, make_mesh(),
            steps=3, metric="toy/loss", progress=False,
        )  # fmt: skip
