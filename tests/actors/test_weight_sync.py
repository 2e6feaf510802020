"""Shared memory holds the written weights, the digest distinguishes weights, and no memory leaks."""

import os

import helpers
import jax.numpy as jnp
import numpy as np
import pytest

from sea_jax.actors.weight_sync import SharedWeights, digest
from sea_jax.models import convert
from sea_jax.models.params import View


def read(weights, rows):
    """Reads the tensors by name from the file, as another process does."""
    content, found = os.pread(weights.fd, os.fstat(weights.fd).st_size, 0), {}
    for name, dtype, shape, transposed, offset in rows:
        kind = jnp.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        array = np.frombuffer(content, kind, int(np.prod(shape)), offset).reshape(shape)
        found[name] = array.T if transposed else array
    return content, found


@pytest.mark.parametrize("make", [helpers.decoder, helpers.llama, lambda s: helpers.llama(s, tied=False)])
def test_every_tensor_under_its_name(make):
    """The memory holds the tensors of `to_hf` bit for bit; a third write replaces them by bfloat16 ones."""
    weights = SharedWeights()
    for seed in (0, 1):
        model, params = make(seed)
        manifest = weights.write(convert.hf_views(model, params))
        content, found = read(weights, manifest.rows)
        expected = convert.to_hf(model, params)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
        assert digest(np.frombuffer(content, np.uint8), manifest.rows) == manifest.digest
    half = [View(v.name, v.array.astype(jnp.bfloat16), v.transposed) for v in convert.hf_views(model, params)]
    manifest = weights.write(half)
    _, found = read(weights, manifest.rows)
    np.testing.assert_array_equal(
        found[half[0].name].T if half[0].transposed else found[half[0].name], half[0].array
    )
    weights.close()
    weights.close()


def test_digest_sees_every_bit_name_and_place():
    weights, rng = SharedWeights(), np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 7)).astype(np.float32)
    first = weights.write([View("a", a, False), View("b", b, True)])
    again = weights.write([View("a", a.copy(), False), View("b", b, True)])
    assert first == again
    flipped = a.copy()
    flipped.view(np.uint32)[4, 6] ^= 1
    others = [
        [View("a", flipped, False), View("b", b, True)],
        [View("a", b, False), View("b", a, True)],
        [View("a", a, False), View("c", b, True)],
        [View("a", a, False), View("b", b, False)],
    ]
    digests = {weights.write(views).digest for views in others} | {first.digest}
    assert len(digests) == 5


def test_the_memory_has_no_name():
    before = set(os.listdir("/dev/shm"))
    weights = SharedWeights()
    weights.write([View("a", np.ones(1000, np.float32), False)])
    assert set(os.listdir("/dev/shm")) == before
    assert "memfd:" in os.readlink(f"/proc/self/fd/{weights.fd}")
