"""Answers conversations: checks them, draws which get two answers, and writes pairs before users see them."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from starlette.concurrency import run_in_threadpool

from sea_jax.labels.chat import ChatDuels, Pair, ShownPair
from sea_jax.labels.journal import pack_tokens
from sea_jax.serve.engine import Engine
from sea_jax.serve.events import CONTROL, ONE, TWO, Answer, Event, Failure, Part, Request, Two
from sea_jax.serve.learner import Learner
from sea_jax.tasks.conversation import ROLES, Message, to_text
from sea_jax.tasks.protocol import Task
from sea_jax.types import Config

_MOST_TURNS = 200


class ConversationError(Exception):
    """A conversation that cannot be answered; the message says why, for whoever sent it."""


class Compared(NamedTuple):
    """Two answers that a user was shown, and is to choose between."""

    shown: ShownPair
    version: int
    prompt_tokens: int
    tokens: int  # of both


class Chat:
    """The policy as a partner of conversations.

    Args:
        task: of the policy.
        engine: writes the answers.
        duels: keeps pairs.
        learner: learns from them.
        config: the method's; its section `serve`, and train.temperature.
    """

    def __init__(self, task: Task, engine: Engine, duels: ChatDuels, learner: Learner, config: Config):
        self._task, self._engine, self._duels, self._learner = task, engine, duels, learner
        self._config, self.temperature = config.serve, config.train.temperature
        self._with_ties = config.oracle.ties == "coin"
        self._lock, self._in_work = threading.Lock(), 0  # pairs that are being written

    def prompt_of(self, messages: Any) -> str:
        """Reads a conversation as OpenAI's API has it, and returns it as a prompt.

        Raises:
            ConversationError: it is none, ends with no user's turn, or is longer than the policy reads.
        """
        prompt = to_text(_turns(messages))
        try:
            (ids,) = self._task.prompt_ids([prompt])
        except Exception as error:  # raised by a chat template's own code
            reason = (str(error).splitlines() or [""])[0]
            raise ConversationError(f"the policy's chat template refuses it: {reason[:200]}") from None
        most = self._task.prompt_length
        if len(ids) > most:
            raise ConversationError(f"it has {len(ids)} tokens; valid: at most {most}")
        return prompt

    def kind(self, share: float | None = None) -> str:
        """Draws whether a request gets one answer or two, and whether one of two is the starting policy's.

        Args:
            share: of the requests that get two, where a choice would be learned from soon; None: that of the
                page.
        """
        if random.random() >= (self._config.share if share is None else share) or not self._learner.asks:
            return ONE
        with self._lock:
            if self._in_work + self._duels.waiting(self._with_ties) >= self._config.pairs:
                return ONE
            self._in_work += 1  # until `answer` ends
        control = self._engine.version > 0 and random.random() < self._config.control_share
        return CONTROL if control else TWO

    async def answer(
        self, user: str, prompt: str, kind: str, temperature: float, max_tokens: int
    ) -> AsyncIterator[Part | Answer | Compared | Failure]:
        """Yields the parts of an answer and its end, or two answers.

        Args:
            user: who asks.
            prompt: from `prompt_of`.
            kind: see `kind`.
            temperature: of a single answer.
            max_tokens: of a single answer.

        Raises:
            BusyError: too many requests wait.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue()

        def emit(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        request = Request(prompt, emit, kind, temperature, max_tokens)
        try:
            self._engine.submit(request)
            while True:
                event = await events.get()
                if isinstance(event, Two):
                    event = await run_in_threadpool(self._compared, user, prompt, event)
                if not isinstance(event, Part):
                    self._end(request)
                    yield event
                    return
                yield event
        finally:
            self._end(request)

    def _end(self, request: Request) -> None:
        """Marks a request as one that nobody waits for; the second time it does nothing."""
        with self._lock:
            if not request.cancelled:
                request.cancelled = True
                self._in_work -= request.kind != ONE

    def _compared(self, user: str, prompt: str, two: Two) -> Compared:
        first, second = map(pack_tokens, two.tokens)
        pair = Pair(prompt, *two.texts, first, second, two.version, two.reference)
        shown, size = self._duels.show(user, pair), sum(map(len, two.tokens))
        return Compared(shown, two.version, two.prompt_tokens, size)


def _turns(messages: Any) -> list[Message]:
    """Returns the turns of OpenAI's messages; raises ConversationError where they are none."""
    if not isinstance(messages, list) or not 0 < len(messages) <= _MOST_TURNS:
        raise ConversationError(f"valid is a list of 1 to {_MOST_TURNS} messages")
    turns = []
    for place, message in enumerate(messages):
        role, content = (message.get(n) for n in ("role", "content")) if isinstance(message, dict) else (0, 0)
        role = "system" if role == "developer" else role
        if role not in ROLES:
            raise ConversationError(f"messages[{place}].role: valid is one of {', '.join(ROLES)}")
        text = _text(content)
        if not text.strip() or (not text.isascii() and text.encode("utf-8", "replace").decode() != text):
            raise ConversationError(f"messages[{place}].content: valid is a text")
        turns.append(Message(role, text))
    if turns[-1].role != "user":
        raise ConversationError(f"messages[{len(turns) - 1}].role: valid is 'user' at the end")
    return turns


def _text(content: Any) -> str:
    """Returns the text of a message, which may be in parts; empty where it has another part."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    return "".join(text for text in texts if isinstance(text, str)) if None not in texts else ""
