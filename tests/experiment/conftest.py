"""Shared by the tests of whole experiments."""

import pytest

from sea_jax.experiment import run as experiment


@pytest.fixture
def no_policy(monkeypatch):
    """The final policies as arrays, in place of folders that need a tokenizer on disk."""
    saved = {}

    def keep(config, folder, model, params, task):
        folder.mkdir(exist_ok=True)
        saved[folder.parents[2].name + folder.name.removeprefix("policy")] = params

    monkeypatch.setattr(experiment.policy, "save_policy", keep)
    return saved
