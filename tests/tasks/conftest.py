"""One task of each kind for all tests of this folder: building one takes seconds."""

import pytest

from sea_jax.tasks import mini_tldr


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    """Both tasks share it."""
    return tmp_path_factory.mktemp("mini_tldr")


@pytest.fixture(scope="session")
def task(cache_dir):
    """Built, not read: the folder has none yet."""
    return mini_tldr.load(cache_dir)


@pytest.fixture(scope="session")
def task_v2(cache_dir):
    return mini_tldr.V2.load(cache_dir)
