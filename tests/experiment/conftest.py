"""Shared by the tests of whole experiments."""

import pytest

from sea_jax.experiment import run as experiment


@pytest.fixture
def no_policy(monkeypatch):
    """The final policies as arrays, in place of folders that need a tokenizer on disk."""
    saved = {}
    keep = lambda config, folder, model, params, task: saved.update({folder.parents[2].name: params})  # noqa: E731
    monkeypatch.setattr(experiment.policy, "save_policy", keep)
    return saved
