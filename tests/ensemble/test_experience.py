"""D_t against a Python list."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fits

from sea_jax.ensemble import experience

C, B, E = 5, 3, 2


def rows(values):
    """Features [B, 2, E] that carry a value, so that a row can be told from another."""
    values = jnp.asarray(values, jnp.float32)
    return jnp.stack([values, -values], 1)[..., None] * jnp.array([1.0, 10.0])


def add(data, values, weight=None, keep=(True,) * B):
    weight = np.ones(B) if weight is None else weight
    return experience.add(data, rows(values), jnp.float32(weight), jnp.array(keep))


def add_rows(data, values):
    """One row at a time."""
    for value in values:
        data = experience.add(data, rows([value]), jnp.float32([value / 100]), jnp.array([True]))
    return data


def test_ring_buffer_is_a_list_that_forgets_its_oldest():
    """Random adds, wrapping around many times: slots, cursor and size as the list says."""
    rng = np.random.default_rng(0)
    data, model, cursor, value = experience.init(C, E), [None] * C, 0, 1
    for _ in range(40):
        keep = rng.random(B) < 0.6
        values = np.arange(value, value + B)
        value += B
        data = add(data, values, values / 100, keep)
        for v in values[keep]:
            model[cursor] = v
            cursor = (cursor + 1) % C
        stored = [v for v in model if v is not None]
        assert (int(data.cursor), int(data.size)) == (cursor, len(stored))
        expected = np.array([v or 0 for v in model])
        np.testing.assert_array_equal(data.features, rows(expected))
        np.testing.assert_array_equal(data.weight, np.float32(expected / 100))


@pytest.mark.parametrize("before", [0, 3, 5])
def test_of_more_rows_than_slots_the_newest_stay(before):
    """Twelve rows at once, ten of them kept, into five slots: as if they came one by one."""
    old = add_rows(experience.init(C, E), np.arange(100, 100 + before))
    keep = np.arange(12) % 6 != 2
    values = np.arange(1, 13)
    data = jax.jit(experience.add)(old, rows(values), jnp.float32(values / 100), jnp.array(keep))
    expected = add_rows(old, values[keep])
    for at_once, one_by_one in zip(data, expected, strict=True):
        np.testing.assert_array_equal(at_once, one_by_one)
    assert set(np.asarray(data.features[:, 0, 0])) == set(values[keep][-C:])


def test_no_slot_is_written_twice():
    """A scatter to equal indices has no defined order, though on a CPU it happens to have one."""
    keep = jnp.arange(12) % 6 != 2
    slots = np.asarray(experience._slots(jnp.int32(3), keep, C))
    np.testing.assert_array_equal(np.sort(slots[slots < C]), np.arange(C))
    assert (slots == C).sum() == 12 - C


def test_rows_that_are_not_kept_leave_no_trace():
    data = add(experience.init(C, E), [1, 2, 3], keep=(True, False, True))
    garbage = jnp.full((B, 2, E), jnp.nan)
    after = experience.add(data, garbage, jnp.full((B,), jnp.nan), jnp.zeros(B, bool))
    for before, now in zip(data, after, strict=True):
        np.testing.assert_array_equal(before, now)


def test_sample_is_uniform_over_stored_rows_only():
    """3 of 5 slots filled: each a third of the time, with its own weight; empty ones never."""
    data = add(experience.init(C, E), [1, 2, 3], weight=[0.1, 0.2, 0.3])
    features, weight = experience.sample(jax.random.key(0), data, 3000)
    values = np.asarray(features[:, 0, 0])
    np.testing.assert_array_equal(features, rows(values))
    np.testing.assert_allclose(weight, values / 10, rtol=1e-6)
    assert fits(np.bincount(values.astype(int), minlength=6), [0, 1 / 3, 1 / 3, 1 / 3, 0, 0])


def test_sample_of_a_full_buffer_reaches_every_slot():
    data = experience.init(C, E)
    for i in range(3):
        data = add(data, [3 * i + 1, 3 * i + 2, 3 * i + 3])
    features, _ = experience.sample(jax.random.key(1), data, 3000)
    found = np.bincount(np.asarray(features[:, 0, 0]).astype(int), minlength=10)
    assert fits(found, [0, 0, 0, 0, 0, 0.2, 0.2, 0.2, 0.2, 0.2])  # the last 5 of 9


def test_sample_of_an_empty_buffer_weighs_nothing():
    features, weight = experience.sample(jax.random.key(0), experience.init(C, E), 4)
    assert features.shape == (4, 2, E) and not weight.any()
