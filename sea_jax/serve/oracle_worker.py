"""What a worker of the oracle service computes: the answers to many requests at once.

Mosec makes workers of the class, without arguments, in processes of their own: what they need is in the
environment, as `Settings`.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Sequence
from hmac import compare_digest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mosec import Worker

from sea_jax.errors import InputError
from sea_jax.oracles import messages as wire
from sea_jax.oracles.bradley_terry import BradleyTerryOracle, preference
from sea_jax.tasks import TASKS

ENVIRONMENT = "SEA_JAX_ORACLE_SETTINGS"


class Settings(NamedTuple):
    """What the service's command says of the model."""

    model: str  # '<task>:<oracle seed>', '<task>' for the seed that a request names, a folder or a hub name
    batch_size: int = 8  # texts at once
    longest: int = 0  # tokens of a text; 0: the model's context
    dtype: str = "float32"
    chat: str = "auto"
    cache_dir: str = ""  # of compiled programs; empty: none
    report: str = ""  # file in which a worker that cannot begin says why

    @property
    def embedded(self) -> re.Match | None:
        """Matches 'task' or 'task:seed' if the model is an embedded task's hidden reward, else None."""
        found = re.fullmatch(r"(?P<task>\w+)(?::(?P<seed>\d+))?", self.model)
        is_task = found and found["task"] in TASKS and TASKS[found["task"]].reward_fn
        return found if is_task else None


class Scorer:
    """Answers requests, each as if it came alone: what is wrong with one is told to that one.

    Args:
        settings: the model, and how it computes.
        token: what requests must bring; empty: nothing.
    """

    def __init__(self, settings: Settings, token: str):
        self._settings, self._token = settings, token
        if embedded := settings.embedded:
            self._oracle = functools.lru_cache(64)(functools.partial(_hidden, embedded["task"]))
        else:
            oracle = _load(settings)
            self._oracle = lambda seed: oracle

    def answers(self, bodies: Sequence[bytes]) -> list[bytes]:
        """Answers, one a request, in order."""
        out = [b""] * len(bodies)
        by_seed: dict[int, list[tuple[int, wire.Request]]] = {}
        for i, body in enumerate(bodies):
            request = None
            try:
                request = wire.read_request(body)
                self._admit(request)
            except wire.Refusal as refusal:
                out[i] = _refused(request, refusal)
                continue
            if request.ask == "about":
                out[i] = wire.pack_answer(request.id, about=dict(model=self._settings.model, pid=os.getpid()))
            else:
                by_seed.setdefault(request.seed, []).append((i, request))
        for seed, group in by_seed.items():
            found = self._together(self._oracle(seed), [request for _, request in group])
            for (i, _), answer in zip(group, found, strict=True):
                out[i] = answer
        return out

    def _admit(self, request: wire.Request) -> None:
        if not compare_digest(request.token.encode(), self._token.encode()) and self._token:
            raise wire.Refusal("token", "the token is not the service's")
        embedded = self._settings.embedded
        if embedded and embedded["seed"] and request.seed != int(embedded["seed"]):
            said = f"seed={request.seed}; valid: {embedded['seed']}, as the service holds {embedded[0]}"
            raise wire.Refusal("input", said)

    def _together(self, oracle: BradleyTerryOracle, requests: list[wire.Request]) -> list[bytes]:
        """All texts in one call; where one of them cannot be read, each request by itself."""
        try:
            return _compute(oracle, requests)
        except (InputError, FloatingPointError, ValueError) as error:
            if len(requests) == 1:
                kind = "model" if isinstance(error, FloatingPointError) else "input"
                return [_refused(requests[0], wire.Refusal(kind, str(error)))]
        return [self._together(oracle, [request])[0] for request in requests]


def _compute(oracle: BradleyTerryOracle, requests: list[wire.Request]) -> list[bytes]:
    """Every response's reward once, whatever is asked about it."""
    prompts, responses = [], []
    for request in requests:
        for column in request.texts[1:]:
            prompts += request.texts[0]
            responses += column
    rewards, start, out = oracle.rewards(prompts, responses), 0, []
    for request in requests:
        size = len(request.texts[0])
        parts = [rewards[start + k * size : start + (k + 1) * size] for k in range(len(request.texts) - 1)]
        start += size * len(parts)
        found = preference(*parts) if request.ask == "probability" else parts[0].astype(np.float64)
        out.append(wire.pack_answer(request.id, **{request.ask: found}))
    return out


def _refused(request: wire.Request | None, refusal: wire.Refusal) -> bytes:
    return wire.pack_answer(request.id if request else "", error=str(refusal), kind=refusal.kind)


def _hidden(task: str, seed: int) -> BradleyTerryOracle:
    reward_fn = TASKS[task].reward_fn
    assert reward_fn is not None
    return BradleyTerryOracle(reward_fn(seed))


def _load(settings: Settings) -> BradleyTerryOracle:
    """A reward model with all its programs compiled, so that no request waits for one."""
    import jax
    from ml_collections import ConfigDict

    from sea_jax.oracles import reward_model
    from sea_jax.runtime.mesh import make_mesh

    if settings.cache_dir:
        jax.config.update("jax_compilation_cache_dir", settings.cache_dir)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config = ConfigDict(settings._asdict() | dict(folder=settings.model))
    oracle = reward_model.load(config, make_mesh())
    oracle.compile()
    return oracle


class OracleWorker(Worker):
    """Mosec's worker: bytes in, bytes out. Nothing is pickled, since the pipeline has one stage."""

    req_mime_type = resp_mime_type = "application/msgpack"

    def __init__(self):
        settings = Settings(**json.loads(os.environ[ENVIRONMENT]))
        try:
            self._scorer = Scorer(settings, os.environ.get(wire.TOKEN, ""))
        except Exception as error:
            Path(settings.report).write_text(f"{type(error).__name__}: {error}")
            raise

    def deserialize(self, data: bytes) -> bytes:
        """A request's body as it is: what one request spoils must not fail its batch."""
        return bytes(data)

    def serialize(self, data: bytes) -> bytes:
        return data

    def serialize_ipc(self, data: Any) -> bytes:
        raise NotImplementedError("one stage only; the default would pickle")

    def deserialize_ipc(self, data: bytes) -> Any:
        raise NotImplementedError("one stage only; the default would unpickle")

    def forward(self, data: Any) -> Any:
        """Of a batch of requests their answers; of one, where batches are off, its answer."""
        if self.max_batch_size > 1:
            return self._scorer.answers(data)
        return self._scorer.answers([data])[0]
