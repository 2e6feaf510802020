"""An oracle behind a wire: the client of sea_jax.serve.oracle_service."""

from __future__ import annotations

import dataclasses
import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import numpy as np

from sea_jax.errors import InputError, ServiceError
from sea_jax.oracles import messages as wire
from sea_jax.oracles.patience import Retry, in_order, persist

Share = Callable[[Callable[[], np.ndarray], np.ndarray], np.ndarray]  # (compute, like) -> what compute gives
_CONNECT = 5.0  # seconds; a host that is there answers sooner
# A proxy's words, a worker that was killed or is busy, a service that is coming up or going down.
_PASSING = (408, 429, 502, 503, 504)


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How long to wait, and how much to ask at once."""

    timeout_s: float = 30.0  # of one attempt
    patience_s: float = 300.0  # of one request with all its attempts
    attempts: int = 3  # answers that are none (garbage, NaN, a wrong length) before it is given up
    in_flight: int = 8  # requests
    request_size: int = 16  # comparisons in a request


class RemoteOracle:
    """P(y ≻ y' | x) and r(x, y) of a service. Order is kept; every wait has a bound.

    A request that fails is sent again: the service keeps nothing and gives the same numbers, so no label is
    bought twice, and the caller gets each number once.

    Args:
        url: of the service, as http://127.0.0.1:8000.
        seed: of the hidden reward, where the service holds a family of them.
        bounds: see `Bounds`.
        token: what the service asks for; by default the environment's SEA_JAX_ORACLE_TOKEN.
        share: lets one process ask for all, in a run on several hosts; see `mesh.broadcast_from_main`.

    Raises:
        ServiceError: every method, if the service does not answer within the bounds or refuses.
        InputError: every method, on a text that the service's model cannot read.
    """

    def __init__(
        self,
        url: str,
        seed: int = 0,
        bounds: Bounds | None = None,
        token: str | None = None,
        share: Share = lambda compute, like: compute(),
    ):
        self._share = share
        self.url, self._seed, self._bounds = url.rstrip("/"), seed, bounds or Bounds()
        self._token = os.environ.get(wire.TOKEN, "") if token is None else token
        # No proxies from the environment: the service is one's own, and most often on this machine.
        limits = httpx2.Limits(max_connections=self._bounds.in_flight)
        self._client = httpx2.Client(trust_env=False, limits=limits)
        self._lock, self._salt = threading.Lock(), os.urandom(8).hex()
        self._requests = self._retries = 0

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """P(first ≻ second | x): [B] float64."""
        texts = _aligned(prompts=prompts, first=first, second=second)
        return self._share(lambda: self._gather("probability", texts), np.zeros(len(prompts)))

    def rewards(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """r(x, y): [B] float32, in nats of preference log-odds. Asking it buys no label."""
        texts = _aligned(prompts=prompts, responses=responses)
        return self._share(lambda: self._gather("rewards", texts), np.zeros(len(prompts))).astype(np.float32)

    def check(self) -> None:
        """Raises ServiceError or InputError if the service does not answer, or lacks what is wanted."""

        def asked() -> np.ndarray:
            self.about()
            return np.zeros(0)

        self._share(asked, np.zeros(0))

    def about(self) -> dict[str, Any]:
        """What the service says of itself: 'model', and 'pid' of the worker that answered."""
        return self._request("about", (), threading.Event())

    def metrics(self) -> dict[str, float]:
        """Requests sent so far, and how many of these were sent again."""
        return {"oracle/requests": float(self._requests), "oracle/retries": float(self._retries)}

    def _gather(self, ask: str, texts: tuple[Sequence[str], ...]) -> np.ndarray:
        """The numbers of all rows, in order."""
        size, bounds = self._bounds.request_size, self._bounds
        chunks = [
            tuple(list(column[start : start + size]) for column in texts)
            for start in range(0, len(texts[0]), size)
        ]
        rounds = math.ceil(len(chunks) / bounds.in_flight)
        parts = in_order(
            lambda chunk, stop: self._request(ask, chunk, stop), chunks, bounds.in_flight,
            rounds * (bounds.patience_s + bounds.timeout_s), self._what(ask),
        )  # fmt: skip
        return np.concatenate(parts) if parts else np.zeros(0)

    def _request(self, ask: str, texts: tuple[Sequence[str], ...], stop: threading.Event) -> Any:
        with self._lock:
            self._requests += 1
            id = f"{self._salt}-{self._requests}"
        size = len(texts[0]) if texts else 0
        body = wire.pack_request(id, self._token, ask, self._seed, texts)
        tries = 0

        def attempt(left: float) -> Any:
            nonlocal tries
            tries += 1
            if tries > 1:
                with self._lock:
                    self._requests, self._retries = self._requests + 1, self._retries + 1
            reply = self._post(ask, body, min(self._bounds.timeout_s, left))
            try:
                return wire.read_answer(reply, id, ask, size)
            except ValueError as error:
                raise Retry(f"an answer that is none: {error}", faulty=True) from None

        what = self._what(ask)
        try:
            return persist(attempt, what, self._bounds.patience_s, self._bounds.attempts, stop)
        except wire.Refusal as refusal:
            kind = InputError if refusal.kind == "input" else ServiceError
            hint = f"; set {wire.TOKEN}, as the service has it" if refusal.kind == "token" else ""
            raise kind(f"{what}: {refusal}{hint}") from None

    def _post(self, ask: str, body: bytes, timeout_s: float) -> bytes:
        """The body of an answer with status 200."""
        timeout = httpx2.Timeout(timeout_s, connect=min(timeout_s, _CONNECT))
        headers = {"content-type": "application/msgpack"}
        try:
            reply = self._client.post(f"{self.url}/{ask}", content=body, headers=headers, timeout=timeout)
        except httpx2.HTTPError as error:
            raise Retry(f"{type(error).__name__} {error}".strip()) from None
        if reply.status_code == 200:
            return reply.content
        why = f"status {reply.status_code}: {reply.text[:200]!r}"
        if reply.status_code in _PASSING:
            raise Retry(why)
        if reply.status_code >= 500:
            raise Retry(why, faulty=True)
        raise ServiceError(f"{self._what(ask)}: {why}")

    def _what(self, ask: str) -> str:
        return f"oracle service {self.url}/{ask}"


def _aligned(**texts: Sequence[str]) -> tuple[Sequence[str], ...]:
    """The columns; raises ValueError unless there are as many texts as prompts."""
    size = len(texts["prompts"])
    for name, column in texts.items():
        if len(column) != size:
            raise ValueError(f"{name}: {len(column)} given, must be one per prompt, {size}")
    return tuple(texts.values())
