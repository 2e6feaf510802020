"""Oracles that are not in this process, as config.oracle describes them: a service, or a language model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from sea_jax.checks import require
from sea_jax.errors import InputError
from sea_jax.methods import METHODS
from sea_jax.oracles.judge import Judge, Prices
from sea_jax.oracles.remote import Bounds, RemoteOracle, Share

KINDS = ("remote", "judge")
# How an oracle is reached, not who it is: a later call on the same work directory may change these.
FREE_FIELDS = tuple(
    f"oracle.{name}"
    for name in (
        "url", "timeout_s", "patience_s", "attempts", "in_flight", "request_size", "requests_per_minute",
    )
)  # fmt: skip


def validate(config) -> None:
    """Raises InputError at the first field of config.oracle that cannot work; nobody is asked."""
    oracle = config.oracle
    for name in ("in_flight", "request_size", "attempts"):
        _require(oracle[name] >= 1, name, oracle[name], "at least 1")
    for name in ("timeout_s", "patience_s"):
        _require(0 < oracle[name] < math.inf, name, oracle[name], "a number of seconds above 0")
    if oracle.kind == "remote":
        _require_url("url", oracle.url, "http://127.0.0.1:8000")
        return
    _require_url("base_url", oracle.base_url, "https://api.openai.com/v1")
    _require(oracle.model != "", "model", oracle.model, "the name of a model at base_url")
    for name in ("requests_per_minute", "price_in", "price_out"):
        _require(0 <= oracle[name] < math.inf, name, oracle[name], "a number of at least 0")
    rated = [m for m in config.methods if m in METHODS and METHODS[m].scorer == "oracle"]
    if rated:
        raise InputError(f"config.methods={rated[0]!r}: valid with an oracle that has rewards, not a judge")


def oracles(config, share: Share) -> Callable[[int], Any]:
    """An oracle for every oracle seed; each is asked once, so that a mistake is found before training begins.

    Args:
        config: the experiment's config.
        share: as `RemoteOracle`'s.

    Raises:
        ServiceError: the service or the model does not answer, or not as it must.
        InputError: what cannot be used, or a package that is missing.
    """
    oracle, first = config.oracle, config.task.oracle_seed
    bounds = Bounds(
        oracle.timeout_s, oracle.patience_s, oracle.attempts, oracle.in_flight, oracle.request_size
    )
    if oracle.kind == "remote":
        make = lambda seed: RemoteOracle(oracle.url, seed, bounds, share=share)  # noqa: E731
        seeds = range(first, first + config.num_seeds)
    else:
        prices = Prices(oracle.price_in, oracle.price_out)
        make = lambda seed: Judge(  # noqa: E731
            oracle.base_url, oracle.model, seed, bounds, oracle.requests_per_minute, prices, share
        )
        seeds = [first]  # it is the same for all, and its answers cost
    for seed in seeds:
        make(seed).check()
    return make


def _require_url(name: str, url: str, example: str) -> None:
    parts = urlsplit(url)
    _require(parts.scheme in ("http", "https") and bool(parts.hostname), name, url, f"a URL, as {example}")


def _require(condition: bool, name: str, value: object, valid: str) -> None:
    require(condition, f"oracle.{name}", value, valid)
