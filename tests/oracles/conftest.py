"""Fixtures of the oracles' tests."""

import pytest
from services import QUICK_BACKOFF

from sea_jax.oracles import patience


@pytest.fixture
def quick_retries(monkeypatch):
    monkeypatch.setattr(patience, "_BACKOFF", QUICK_BACKOFF)
