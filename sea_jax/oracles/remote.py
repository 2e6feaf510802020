"""The client of sea_jax.serve.oracle_service: an oracle behind HTTP."""

from __future__ import annotations

import dataclasses
import math
import os
import threading
from collections.abc import Sequence
from typing import Any

import httpx2
import numpy as np

from sea_jax.credentials import redact
from sea_jax.errors import InputError, ServiceError
from sea_jax.oracles import messages
from sea_jax.oracles.access import read_key, require_plain_url
from sea_jax.oracles.patience import RetryableError, map_in_order, retry
from sea_jax.oracles.protocol import ArrivedFn, BroadcastFn, compute_locally

_CONNECT_TIMEOUT_S = 5.0
# From a proxy, from a worker that was killed or is busy, from a service that starts or shuts down.
RETRYABLE_STATUS = (408, 429, 502, 503, 504)


@dataclasses.dataclass(frozen=True)
class RequestLimits:
    """Limits of the requests to an oracle: timeouts, retries, concurrency and size."""

    timeout_s: float = 30.0  # of one attempt
    patience_s: float = 300.0  # of one request with all its attempts
    attempts: int = 3  # malformed replies (garbage, NaN, a wrong length) after which to give up
    in_flight: int = 8  # requests at once
    request_size: int = 16  # comparisons per request


class RemoteOracle:
    """P(y ≻ y' | x) and r(x, y) from a service, in order; every wait has a limit.

    A request that fails is sent again. The service is stateless and gives the same numbers, so no label is
    bought twice.

    Args:
        url: of the service, such as http://127.0.0.1:8000.
        seed: of the hidden reward, where the service has several.
        limits: see `RequestLimits`.
        token: the service's token; by default SEA_JAX_ORACLE_TOKEN of the environment.
        broadcast: see `BroadcastFn`.

    Raises:
        ServiceError: by every method, if the service does not answer within the limits, or refuses.
        InputError: the URL has a user, a password or a query; or by every method, on a text that the
            service's model cannot read.
    """

    reports_arrivals = True

    def __init__(
        self,
        url: str,
        seed: int = 0,
        limits: RequestLimits | None = None,
        token: str | None = None,
        broadcast: BroadcastFn = compute_locally,
    ):
        require_plain_url("url", url)
        self._broadcast = broadcast
        self.url, self._seed, self._limits = url.rstrip("/"), seed, limits or RequestLimits()
        self._token = read_key(messages.TOKEN_VARIABLE) if token is None else token
        # No proxies from the environment: the service is one's own, and mostly on this machine.
        pool = httpx2.Limits(max_connections=self._limits.in_flight)
        self._client = httpx2.Client(trust_env=False, limits=pool)
        self._lock, self._id_prefix = threading.Lock(), os.urandom(8).hex()
        self._requests = self._retries = 0

    def probability(
        self,
        prompts: Sequence[str],
        first: Sequence[str],
        second: Sequence[str],
        arrived: ArrivedFn | None = None,
    ) -> np.ndarray:
        """Returns P(first ≻ second | x): [B] float64."""
        texts = _aligned(prompts=prompts, first=first, second=second)
        return self._broadcast(lambda: self._query("probability", texts, arrived), np.zeros(len(prompts)))

    def rewards(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Returns r(x, y): [B] float32, in nats of preference log-odds. It buys no label."""
        texts = _aligned(prompts=prompts, responses=responses)
        rewards = self._broadcast(lambda: self._query("rewards", texts), np.zeros(len(prompts)))
        return rewards.astype(np.float32)

    def check(self) -> None:
        """Raises ServiceError or InputError if the service does not answer, or lacks the seed."""

        def request() -> np.ndarray:
            self.about()
            return np.zeros(0)

        self._broadcast(request, np.zeros(0))

    def about(self) -> dict[str, Any]:
        """Returns the service's 'model', and the 'pid' of the worker that answered."""
        return self._request("about", (), threading.Event())

    def metrics(self) -> dict[str, float]:
        """Returns the number of requests sent, and of those that were sent again."""
        return {"oracle/requests": float(self._requests), "oracle/retries": float(self._retries)}

    def _query(
        self, endpoint: str, texts: tuple[Sequence[str], ...], arrived: ArrivedFn | None = None
    ) -> np.ndarray:
        """Returns the numbers of all rows, in order, from several requests at once."""
        size, limits = self._limits.request_size, self._limits
        chunks = [
            tuple(list(column[start : start + size]) for column in texts)
            for start in range(0, len(texts[0]), size)
        ]
        rounds = math.ceil(len(chunks) / limits.in_flight)

        def report(index: int, part: np.ndarray) -> None:
            if arrived is not None:
                arrived(range(index * size, index * size + len(part)), part)

        parts = map_in_order(
            lambda chunk, stop: self._request(endpoint, chunk, stop), chunks, limits.in_flight,
            rounds * (limits.patience_s + limits.timeout_s), self._name(endpoint), report, limits.timeout_s,
        )  # fmt: skip
        return np.concatenate(parts) if parts else np.zeros(0)

    def _request(self, endpoint: str, texts: tuple[Sequence[str], ...], stop: threading.Event) -> Any:
        """Sends one request until it is answered; returns the answer's content."""
        id, tries = f"{self._id_prefix}-{self._count()}", 0
        size = len(texts[0]) if texts else 0
        body = messages.pack_request(id, self._token, endpoint, self._seed, texts)

        def attempt(left_s: float) -> Any:
            nonlocal tries
            tries += 1
            if tries > 1:
                self._count(retries=1)
            reply = self._post(endpoint, body, min(self._limits.timeout_s, left_s))
            try:
                return messages.read_answer(reply, id, endpoint, size)
            except ValueError as error:
                raise RetryableError(str(error), malformed=True) from None

        name = self._name(endpoint)
        try:
            return retry(attempt, name, self._limits.patience_s, self._limits.attempts, stop)
        except messages.RefusedError as refusal:
            kind = InputError if refusal.kind == "input" else ServiceError
            hint = f"; set {messages.TOKEN_VARIABLE} to the service's" if refusal.kind == "token" else ""
            raise kind(f"{name}: {refusal}{hint}") from None

    def _count(self, retries: int = 0) -> int:
        """Counts a request that is sent; returns how many have been."""
        with self._lock:
            self._requests += 1
            self._retries += retries
            return self._requests

    def _post(self, endpoint: str, body: bytes, timeout_s: float) -> bytes:
        """Returns the body of a reply with status 200."""
        timeout = httpx2.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S))
        headers = {"content-type": "application/msgpack"}
        try:
            reply = self._client.post(
                f"{self.url}/{endpoint}", content=body, headers=headers, timeout=timeout
            )
        except httpx2.HTTPError as error:
            raise RetryableError(f"{type(error).__name__} {error}".strip()) from None
        if reply.status_code == 200:
            return reply.content
        reason = f"status {reply.status_code}: {redact(reply.text)[:200]!r}"
        if reply.status_code in RETRYABLE_STATUS:
            raise RetryableError(reason)
        if reply.status_code >= 500:
            raise RetryableError(reason, malformed=True)
        raise ServiceError(f"{self._name(endpoint)}: {reason}")

    def _name(self, endpoint: str) -> str:
        return f"oracle service {self.url}/{endpoint}"


def _aligned(**texts: Sequence[str]) -> tuple[Sequence[str], ...]:
    """Returns the columns; raises ValueError unless each has one text per prompt."""
    size = len(texts["prompts"])
    for name, column in texts.items():
        if len(column) != size:
            raise ValueError(f"{name}: {len(column)} given, must be one per prompt, {size}")
    return tuple(texts.values())
