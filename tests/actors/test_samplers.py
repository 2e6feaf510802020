"""The default sampler equals `generate` bit for bit; vLLM's options are checked before a run starts."""

import sys

import helpers
import jax
import numpy as np
import pytest

from configs import quickstart
from sea_jax.actors.jax_sampler import JaxSampler
from sea_jax.actors.sampler import VersionedParams, new_version, sample_now
from sea_jax.errors import InputError
from sea_jax.experiment.validate import validate_parts
from sea_jax.models.generate import make_sampler
from sea_jax.runtime.mesh import make_mesh


def test_the_default_is_generate(tiny):
    """The version has no effect: the sampler keeps no weights between calls."""
    mesh = make_mesh()
    sampler = JaxSampler(tiny[0], 5, 3, 1, mesh, 2)
    tokens, mask = helpers.batch([2, 6, 1, 3], 6, "left", 11)
    for seed, temperature in ((0, 0.7), (1, 0.0)):
        params = helpers.random_params(tiny[0], seed)
        expected = make_sampler(tiny[0], 3, 5, temperature, 3, 1, mesh, 2)(
            params, tokens, mask, jax.random.key(5)
        )
        got = sample_now(
            sampler, VersionedParams(params, 1), tokens, mask, jax.random.key(5),
            num_responses=3, temperature=temperature,
        )  # fmt: skip
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert sampler.seconds == {}
    sampler.close()


def test_versions_are_never_used_twice():
    versions = [new_version({}).version for _ in range(3)]
    assert versions == sorted(set(versions)) and versions[0] > 0


def test_the_config_says_which():
    config = quickstart.get_config()
    validate_parts(config)
    config.sampler.update(kind="vllm", python=sys.executable)
    validate_parts(config)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(kind="vlm"), "config.sampler.kind='vlm': valid is one of ('jax', 'vllm')"),
        (dict(python="none/bin/python"), "config.sampler.python='none/bin/python': .*make sidecar"),
        (dict(timeout=0.0), "config.sampler.timeout=0.0: valid is a number above 0"),
        (dict(start_timeout=float("inf")), "config.sampler.start_timeout=inf"),
        (dict(kv_cache_gb=-1.0), "config.sampler.kv_cache_gb=-1.0"),
        (dict(max_num_seqs=0), "config.sampler.max_num_seqs=0: valid is at least 1"),
        (dict(restarts=-1), "config.sampler.restarts=-1: valid is at least 0"),
        (dict(kind="jax", devices=-1), "config.sampler.devices=-1: valid is at least 0"),
        (
            dict(kind="jax", devices=3),
            "config.sampler.devices=3: valid is 0, or a divisor of train.batch_size=4",
        ),
    ],
)
def test_mistakes(fields, said):
    config = quickstart.get_config()
    config.sampler.update(dict(kind="vllm", python=sys.executable) | fields)
    with pytest.raises(InputError) as error:
        validate_parts(config)
    assert all(part in str(error.value) for part in said.split(".*")) and "\n" not in str(error.value)
