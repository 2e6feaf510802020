"""Shared by all tests: where modules are found, XLA's compile cache, and one tiny model.

Tests run on the CPU unless JAX_PLATFORMS says otherwise.
"""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import jax  # noqa: E402
import pytest  # noqa: E402

import helpers  # noqa: E402

CACHE = ROOT / ".cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def tiny():
    """A two-layer decoder of 11 tokens and its random parameters, biases included."""
    return helpers.decoder()
