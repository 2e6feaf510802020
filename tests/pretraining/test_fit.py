"""The rows that training reads, and one optimizer step for each batch."""

import itertools

import jax
import numpy as np
import optax

from sea_jax.pretraining import fit
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
