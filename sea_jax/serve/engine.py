"""Writes the answers of the chat in a thread of its own, with the newest policy that the learner published.

Requests that wait are answered together. A request for two answers samples M, lets the method's strategy
choose two of them by the posterior's rewards, as a step of a run does (Alg. 2, lines 4 to 7), and shows both
only where the posterior is unsure which is better.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from sea_jax import algorithm
from sea_jax.ensemble import uncertainty
from sea_jax.methods.method import no_rewards
from sea_jax.methods.scorers import member_rewards
from sea_jax.models.decoder import Decoder
from sea_jax.models.generate import Responses, Weights, unstack_layers
from sea_jax.runtime.mesh import to_host
from sea_jax.serve.decoding import Written, programs
from sea_jax.serve.events import CONTROL, ONE, TWO, Answer, BusyError, Failure, Part, Request, Two
from sea_jax.tasks.protocol import Task
from sea_jax.types import Array, Candidates, Params

_HALF_CHARACTER = "\ufffd"  # of a text that ends within a character


class Policy(NamedTuple):
    """A version of the policy and of the posterior, copied from the learner's state."""

    version: int
    weights: Weights
    heads: Params | None


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of batches, and how two answers are chosen.

    Attributes:
        num_responses: M, of which two are chosen.
        temperature: of these.
        strategy: returns a row of `selection.STRATEGIES`; asked anew for each pair.
        least_std: standard deviation of P(y ≻ y') from which two answers are shown.
        at_once: requests that are answered together, at most.
        waiting: requests that wait, at most.
        chunk: tokens between two parts of an answer.
    """

    num_responses: int
    temperature: float
    strategy: Callable[[], str]
    least_std: float
    at_once: int
    waiting: int
    chunk: int


class Engine:
    """Answers requests; `submit` and `publish` may be called from any thread.

    Args:
        task: encodes and decodes.
        model: the policy's module.
        backbone: an `ensemble.features.Extractor`; None for a method without an ensemble.
        ref_params: of the starting policy.
        settings: see `Settings`.
        seed: of the samples.
    """

    def __init__(
        self, task: Task, model: Decoder, backbone: Any, ref_params: Params, settings: Settings, seed: int
    ):
        self._task, self._model, self._backbone, self._settings = task, model, backbone, settings
        self._programs = programs(model, task.response_length, task.eos_id)
        self._reference = _copied_weights(model, ref_params)
        self._policy: Policy | None = None
        self._waiting: deque[Request] = deque()
        self._changed, self._ended = threading.Condition(), False
        self._key, self._batches = jax.random.key(seed), 0
        self.answered = 0  # requests, of this process

    def publish(self, version: int, params: Params, heads: Params | None) -> None:
        """Takes over a version; copies it, as the learner's next update uses its arrays up."""
        copied = jax.tree.map(jnp.copy, heads)
        self._policy = Policy(version, _copied_weights(self._model, params), copied)

    @property
    def version(self) -> int:
        """The version that writes now."""
        assert self._policy is not None
        return self._policy.version

    def submit(self, request: Request) -> None:
        """Queues a request; its events follow, of which the last is an `Answer`, `Two` or `Failure`.

        Raises:
            BusyError: too many wait already.
        """
        with self._changed:
            if len(self._waiting) >= self._settings.waiting or self._ended:
                raise BusyError
            self._waiting.append(request)
            self._changed.notify()

    def warm_up(self) -> None:
        """Compiles all programs, so that no user waits for that; before `running`."""
        for kind in (ONE, TWO, CONTROL):
            for size in {1, self._size(kind)}:
                self._answer([Request(self._task.prompts["train"][0], lambda event: None, kind)] * size)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Answers while the context lasts, and what waits at its end."""
        thread = threading.Thread(target=self._work, name="engine", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()
            thread.join()

    def _work(self) -> None:
        while batch := self._next():
            try:
                self._answer(batch)
            except Exception:
                logging.exception("%d requests could not be answered", len(batch))
                for request in batch:
                    request.emit(Failure())
            self.answered += len(batch)

    def _next(self) -> list[Request]:
        """Waits for requests; returns the oldest and others of its kind, none at the end."""
        with self._changed:
            while True:
                while self._waiting and self._waiting[0].cancelled:
                    self._waiting.popleft()
                if self._waiting or self._ended:
                    break
                self._changed.wait()
            if not self._waiting:
                return []
            kind = self._waiting[0].kind
            batch = [request for request in self._waiting if request.kind == kind and not request.cancelled]
            batch = batch[: self._size(kind)]
            self._waiting = deque(request for request in self._waiting if request not in batch)
            return batch

    def _size(self, kind: str) -> int:
        """Returns the requests of a kind that are answered together, at most."""
        return self._settings.at_once if kind != TWO else max(self._settings.at_once // 4, 1)

    def _answer(self, batch: list[Request]) -> None:
        policy, kind = self._policy, batch[0].kind
        assert policy is not None
        self._batches += 1
        key = jax.random.fold_in(self._key, self._batches)
        prompts = [request.prompt for request in batch]
        rows = 1 if len(batch) == 1 else self._size(kind)  # two shapes, so that two programs are compiled
        prompts += prompts[:1] * (rows - len(batch))
        tokens, mask = self._task.encode_prompts(prompts)
        if kind == ONE:
            self._answer_one(batch, policy, tokens, mask, key)
        elif kind == TWO:
            self._answer_two(batch, policy, prompts, tokens, mask, key)
        else:
            self._answer_control(batch, policy, tokens, mask, key)

    def _answer_one(
        self, batch: list[Request], policy: Policy, tokens: np.ndarray, mask: np.ndarray, key: Array
    ) -> None:
        """Streams an answer to each request."""
        temperature = np.zeros(len(tokens), np.float32)
        temperature[: len(batch)] = [request.temperature for request in batch]
        streams = [_Stream(self._task, request) for request in batch]
        written = self._programs.begin(policy.weights, tokens, mask, key, temperature, 1)
        while True:
            state = to_host(
                (written.state.tokens, written.state.length, written.state.ended, written.state.t)
            )
            drawn, length, ended, t = state
            for row, stream in enumerate(streams):
                over = bool(ended[row, 0]) or int(t) >= len(drawn)
                stream.extend(drawn[: length[row, 0], row, 0], over)
                if stream.open and stream.done:
                    stream.open = False
                    size = int(mask[row].sum())
                    stream.request.emit(Answer(stream.reason, size, stream.count, policy.version))
            wanted = np.zeros(len(tokens), bool)
            wanted[: len(streams)] = [stream.open and not stream.request.cancelled for stream in streams]
            if not wanted.any():
                return
            written = self._programs.advance(policy.weights, written, wanted, self._settings.chunk)

    def _complete(
        self, weights: Weights, tokens: np.ndarray, mask: np.ndarray, key: Array, size: int, M: int
    ) -> Responses:
        """Samples M complete answers to the first `size` prompts; those to the others are cut."""
        temperature = np.full(len(tokens), self._settings.temperature, np.float32)
        written: Written = self._programs.begin(weights, tokens, mask, key, temperature, M)
        wanted = np.arange(len(tokens)) < size
        written = self._programs.advance(weights, written, wanted, self._task.response_length)
        drawn = jnp.moveaxis(written.state.tokens, 0, -1)
        kept = jnp.arange(drawn.shape[-1]) < written.state.length[..., None]
        return Responses(jnp.where(kept, drawn, self._task.pad_id), kept, jnp.zeros(drawn.shape))

    def _answer_two(
        self, batch: list[Request], policy: Policy, prompts: list[str], tokens: np.ndarray, mask: np.ndarray,
        key: Array,
    ) -> None:  # fmt: skip
        """Sends each request two of M answers, or the first of the two where the other teaches little."""
        sample_key, select_key = jax.random.split(key)
        M = self._settings.num_responses
        responses = self._complete(policy.weights, tokens, mask, sample_key, len(batch), M)
        candidates, rewards = Candidates(responses.tokens, responses.mask, None), no_rewards(len(tokens), M)
        if policy.heads is not None:
            rewards = member_rewards(policy.heads, self._backbone(prompts, tokens, mask, responses))
        rewards = _merge_duplicates(rewards, candidates)
        duel = _propose(select_key, rewards, strategy=self._settings.strategy())
        std = _duel_std(rewards, duel.first, duel.second)
        duel, std, drawn, kept = to_host((duel, std, responses.tokens, responses.mask))
        for row, request in enumerate(batch):
            pair = [int(duel.first[row]), int(duel.second[row])]
            texts = self._task.decode(drawn[row, pair], kept[row, pair])
            ids = tuple(drawn[row, place][kept[row, place]] for place in pair)
            sure = policy.heads is not None and std[row] < self._settings.least_std
            size = int(mask[row].sum())
            if sure or duel.void[row] or texts[0] == texts[1]:
                _emit_whole(self._task, request, texts[0], ids[0], size, policy.version)
            else:
                request.emit(Two((texts[0], texts[1]), (ids[0], ids[1]), policy.version, None, size))

    def _answer_control(
        self, batch: list[Request], policy: Policy, tokens: np.ndarray, mask: np.ndarray, key: Array
    ) -> None:
        """Sends each request an answer of the policy and one of the policy that it began from."""
        parts = [
            self._complete(weights, tokens, mask, part, len(batch), 1)
            for weights, part in zip((policy.weights, self._reference), jax.random.split(key), strict=True)
        ]
        found = [to_host((part.tokens, part.mask)) for part in parts]
        for row, request in enumerate(batch):
            texts = [self._task.decode(drawn[row, 0], kept[row, 0]) for drawn, kept in found]
            ids = [drawn[row, 0][kept[row, 0]] for drawn, kept in found]
            size = int(mask[row].sum())
            if texts[0] == texts[1]:
                _emit_whole(self._task, request, texts[0], ids[0], size, policy.version)
            else:
                request.emit(Two((texts[0], texts[1]), (ids[0], ids[1]), policy.version, 1, size))


class _Stream:
    """The part of an answer that was sent."""

    def __init__(self, task: Task, request: Request):
        self.request, self._task, self._sent = request, task, ""
        self.open, self.done, self.reason, self.count = True, False, "", 0

    def extend(self, tokens: np.ndarray, over: bool) -> None:
        """Sends what is new in the tokens so far; `over` says that no more follow."""
        if not self.open:
            return
        tokens = tokens[: self.request.max_tokens]
        at_end = len(tokens) > 0 and tokens[-1] == self._task.eos_id
        self.count, self.done = len(tokens), over or len(tokens) == self.request.max_tokens
        self.reason = "stop" if at_end else "length"
        text = self._task.decode(tokens, np.ones(tokens.shape, bool))
        if not self.done:
            text = text.rstrip(_HALF_CHARACTER)  # the rest of the character follows
        if len(text) > len(self._sent):
            self.request.emit(Part(text[len(self._sent) :]))
            self._sent = text


def _emit_whole(
    task: Task, request: Request, text: str, tokens: np.ndarray, prompt_tokens: int, version: int
) -> None:
    request.emit(Part(text))
    reason = "stop" if len(tokens) and tokens[-1] == task.eos_id else "length"
    request.emit(Answer(reason, prompt_tokens, len(tokens), version))


def _copied_weights(model: Decoder, params: Params) -> Weights:
    """Returns the parameters as decoding takes them, in arrays of their own."""
    return _unstacked(model, jax.tree.map(jnp.copy, params))


def _std(rewards: Array, first: Array, second: Array) -> Array:
    return jnp.sqrt(uncertainty.duel_variance(rewards, first, second))


_unstacked = jax.jit(unstack_layers, static_argnums=0)
_merge_duplicates = jax.jit(algorithm.merge_duplicates)
_propose = jax.jit(algorithm.propose, static_argnames="strategy")
_duel_std = jax.jit(_std)
