"""The workers of the oracle service: they answer many requests at once.

Mosec constructs workers without arguments, in processes of their own, so they read their `Settings` from the
environment.
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
from sea_jax.oracles import messages
from sea_jax.oracles.access import read_key
from sea_jax.oracles.bradley_terry import BradleyTerryOracle, preference
from sea_jax.tasks import TASKS

SETTINGS_VARIABLE = "SEA_JAX_ORACLE_SETTINGS"  # in the environment


class Settings(NamedTuple):
    """The service's flags that concern the model."""

    model: str  # '<task>:<oracle seed>', '<task>' for the seed of each request, a folder or a hub name
    batch_size: int = 8  # texts
    longest: int = 0  # tokens of a text; 0: the model's context
    dtype: str = "float32"
    chat: str = "auto"
    cache_dir: str = ""  # of compiled programs; empty: none
    error_file: str = ""  # to which a worker that cannot start writes the reason

    @property
    def embedded(self) -> re.Match | None:
        """Matches 'task' or 'task:seed' if the model is an embedded task's hidden reward, else None."""
        found = re.fullmatch(r"(?P<task>\w+)(?::(?P<seed>\d+))?", self.model)
        is_task = found and found["task"] in TASKS and TASKS[found["task"]].reward_fn
        return found if is_task else None


class RequestHandler:
    """Answers batches of requests; an error concerns only the request that causes it.

    Args:
        settings: see `Settings`.
        token: required of every request; empty: none is.
    """

    def __init__(self, settings: Settings, token: str):
        self._settings, self._token = settings, token
        if embedded := settings.embedded:
            self._oracle = functools.lru_cache(64)(functools.partial(_embedded_oracle, embedded["task"]))
        else:
            oracle = _load_oracle(settings)
            self._oracle = lambda seed: oracle

    def answers(self, bodies: Sequence[bytes]) -> list[bytes]:
        """Returns one answer per request, in order."""
        out = [b""] * len(bodies)
        by_seed: dict[int, list[tuple[int, messages.Request]]] = {}
        for i, body in enumerate(bodies):
            request = None
            try:
                request = messages.read_request(body)
                self._check(request)
            except messages.RefusedError as refusal:
                out[i] = _pack_refusal(request, refusal)
                continue
            if request.endpoint == "about":
                about = dict(model=self._settings.model, pid=os.getpid())
                out[i] = messages.pack_answer(request.id, about=about)
            else:
                by_seed.setdefault(request.seed, []).append((i, request))
        for seed, group in by_seed.items():
            answers = self._answer_group(self._oracle(seed), [request for _, request in group])
            for (i, _), answer in zip(group, answers, strict=True):
                out[i] = answer
        return out

    def _check(self, request: messages.Request) -> None:
        """Raises RefusedError on a wrong token, or a seed that the service does not have."""
        if not compare_digest(request.token.encode(), self._token.encode()) and self._token:
            raise messages.RefusedError("token", "the token is not the service's")
        embedded = self._settings.embedded
        if embedded and embedded["seed"] and request.seed != int(embedded["seed"]):
            valid = f"valid: {embedded['seed']}, as the service holds {embedded[0]}"
            raise messages.RefusedError("input", f"seed={request.seed}; {valid}")

    def _answer_group(self, oracle: BradleyTerryOracle, requests: list[messages.Request]) -> list[bytes]:
        """Scores all texts in one call; if that fails, answers each request by itself."""
        try:
            return _compute(oracle, requests)
        except (InputError, FloatingPointError, ValueError) as error:
            if len(requests) == 1:
                kind = "model" if isinstance(error, FloatingPointError) else "input"
                return [_pack_refusal(requests[0], messages.RefusedError(kind, str(error)))]
        return [self._answer_group(oracle, [request])[0] for request in requests]


def _compute(oracle: BradleyTerryOracle, requests: list[messages.Request]) -> list[bytes]:
    """Computes the reward of every response once, and packs each request's answer from them."""
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
        is_preference = request.endpoint == "probability"
        numbers = preference(*parts) if is_preference else parts[0].astype(np.float64)
        out.append(messages.pack_answer(request.id, **{request.endpoint: numbers}))
    return out


def _pack_refusal(request: messages.Request | None, refusal: messages.RefusedError) -> bytes:
    return messages.pack_answer(request.id if request else "", error=str(refusal), kind=refusal.kind)


def _embedded_oracle(task: str, seed: int) -> BradleyTerryOracle:
    reward_fn = TASKS[task].reward_fn
    assert reward_fn is not None
    return BradleyTerryOracle(reward_fn(seed))


def _load_oracle(settings: Settings) -> BradleyTerryOracle:
    """Loads a reward model and compiles all its programs, so that no request waits for compilation."""
    import jax
    from ml_collections import ConfigDict

    from sea_jax.experiment import reward_scorer
    from sea_jax.runtime.mesh import make_mesh

    if settings.cache_dir:
        jax.config.update("jax_compilation_cache_dir", settings.cache_dir)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config = ConfigDict(settings._asdict() | dict(folder=settings.model))
    oracle = reward_scorer.load_oracle(config, make_mesh())
    oracle.compile()
    return oracle


class OracleWorker(Worker):
    """Mosec's worker: takes and returns bytes."""

    req_mime_type = resp_mime_type = "application/msgpack"

    def __init__(self):
        settings = Settings(**json.loads(os.environ[SETTINGS_VARIABLE]))
        try:
            self._handler = RequestHandler(settings, read_key(messages.TOKEN_VARIABLE))
        except Exception as error:
            Path(settings.error_file).write_text(f"{type(error).__name__}: {error}")
            raise

    def deserialize(self, data: bytes) -> bytes:
        """Returns the body unread: an error here would fail the whole batch."""
        return bytes(data)

    def serialize(self, data: bytes) -> bytes:
        return data

    # Mosec calls these two between the stages of a pipeline, and this one has a single stage. They raise, as
    # the inherited ones would pickle, and unpickling executes code.
    def serialize_ipc(self, data: Any) -> bytes:
        raise NotImplementedError("pickle is not used: the pipeline has one stage")

    def deserialize_ipc(self, data: bytes) -> Any:
        raise NotImplementedError("pickle is not used: the pipeline has one stage")

    def forward(self, data: Any) -> Any:
        """Answers a list of requests, or a single one if --max_batch=1."""
        if self.max_batch_size > 1:
            return self._handler.answers(data)
        return self._handler.answers([data])[0]
