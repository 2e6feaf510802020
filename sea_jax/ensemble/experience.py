"""D_t: a ring buffer of oracle-labelled pairs, of fixed shape, on the device."""

import jax
import jax.numpy as jnp

from sea_jax.types import Array, Experience


def init(capacity: int, feature_width: int) -> Experience:
    """An empty buffer of C pairs."""
    return Experience(
        jnp.zeros((capacity, 2, feature_width), jnp.float32),
        jnp.zeros((capacity,), jnp.float32),
        jnp.int32(0),
        jnp.int32(0),
    )


def add(data: Experience, features: Array, weight: Array, keep: Array) -> Experience:
    """Appends the rows marked in `keep`, over the oldest once the buffer is full.

    Of more than C kept rows the last C are stored, as if each had been added by itself.

    Args:
        data: D_{t−1}.
        features: [B, 2, E] f32.
        weight: [B] f32.
        keep: [B] bool; rows not kept (synthetic labels, void duels) leave no trace.

    Returns:
        D_t.
    """
    capacity = data.weight.shape[0]
    slot = _slots(data.cursor, keep, capacity)
    kept = keep.sum(dtype=jnp.int32)
    return Experience(
        data.features.at[slot].set(features, mode="drop"),
        data.weight.at[slot].set(weight, mode="drop"),
        (data.cursor + kept) % capacity,
        jnp.minimum(data.size + kept, capacity),
    )


def _slots(cursor: Array, keep: Array, capacity: int) -> Array:
    """Where each row goes, no slot twice, since a scatter has no order; C, out of bounds, drops it."""
    nth = jnp.cumsum(keep)  # 1 for the first kept row
    newest = keep & (nth > nth[-1] - capacity)
    return jnp.where(newest, (cursor + nth - 1) % capacity, capacity)


def sample(key: Array, data: Experience, batch_size: int) -> tuple[Array, Array]:
    """A uniform batch with replacement: features [B, 2, E], weight [B] (0 if D_t is empty)."""
    index = jax.random.randint(key, (batch_size,), 0, jnp.maximum(data.size, 1))
    return data.features[index], jnp.where(data.size > 0, data.weight[index], 0.0)
