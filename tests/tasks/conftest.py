"""One mini_tldr task for all tests of this folder: building it takes seconds."""

import pytest

from sea_jax.tasks import mini_tldr


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("mini_tldr")


@pytest.fixture(scope="session")
def task(cache_dir):
    """Built, not read: the folder is fresh."""
    return mini_tldr.load(cache_dir)
