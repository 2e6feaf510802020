"""The chat as an endpoint of OpenAI's API, for programs that speak it.

POST /v1/chat/completions     an answer, streamed if `stream`; with "compare": true two, to choose between
POST /v1/feedback             {"duel": id, "choice": 0, 1, "tie" or "both_bad"}: a choice
GET  /v1/models               the policy and its version
"""

from __future__ import annotations

import hmac
import json
import math
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sea_jax.labels.chat import ChatDuels, NotYoursError
from sea_jax.labels.question_tables import BOTH_BAD, TIE
from sea_jax.people.sessions import Sessions, read_object, whole_number
from sea_jax.serve.chat import Chat, Compared, ConversationError
from sea_jax.serve.engine import Engine
from sea_jax.serve.events import ONE, Answer, BusyError, Failure, Part

MODEL = "sea_jax"
_ANYBODY, _LONGEST_NAME = "api", 40
# Options that would change an answer, and the values that ask for nothing.
_UNKNOWN: dict[str, tuple[Any, ...]] = {
    "n": (1,), "top_p": (1,), "stop": ([],), "logprobs": (False,), "top_logprobs": (0,), "tools": ([],),
    "functions": ([],), "response_format": ({"type": "text"},), "presence_penalty": (0,),
    "frequency_penalty": (0,), "logit_bias": ({},), "modalities": (["text"],),
}  # fmt: skip
_CHOICES = {0: "left", 1: "right", TIE: TIE, BOTH_BAD: BOTH_BAD}


class OpenAiApi:
    """The routes under /v1.

    Args:
        chat: answers.
        engine: whose version is named.
        duels: takes choices.
        sessions: counts requests without the token.
        token: that programs must send; empty: none.
    """

    def __init__(self, chat: Chat, engine: Engine, duels: ChatDuels, sessions: Sessions, token: str):
        self._chat, self._engine, self._duels, self._token = chat, engine, duels, token
        self._sessions = sessions

    @property
    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
            Route("/v1/feedback", self._take_choice, methods=["POST"]),
            Route("/v1/models", self._models),
        ]

    async def _models(self, request: Request) -> Response:
        self._authorise(request)
        model = dict(id=MODEL, object="model", created=0, owned_by=MODEL, version=self._engine.version)
        return JSONResponse(dict(object="list", data=[model]))

    async def _complete(self, request: Request) -> Response:
        try:
            return await self._answer(request, await self._body(request))
        except HTTPException as error:
            return _error(error)
        except ConversationError as error:
            return _error(HTTPException(400, f"messages: {error}"))
        except BusyError:
            return _error(HTTPException(503, "too many requests wait", {"retry-after": "1"}))

    async def _answer(self, request: Request, body: dict[str, Any]) -> Response:
        """Answers one request."""
        user, two = _user(body), _flag(body, "compare")
        for name, values in _UNKNOWN.items():
            if body.get(name) is not None and body[name] not in values:
                raise HTTPException(400, f"{name}: valid is {values[0]!r}, or nothing")
        temperature, most = _temperature(body, self._chat.temperature), _most_tokens(body)
        prompt = await run_in_threadpool(self._chat.prompt_of, body.get("messages"))
        stream, usage = _flag(body, "stream"), _flag(_object(body, "stream_options"), "include_usage")
        if two and stream:
            raise HTTPException(400, "compare: valid without stream")
        kind = await run_in_threadpool(self._chat.kind, 1.0) if two else ONE
        events = self._chat.answer(user, prompt, kind, temperature, most)
        head = dict(id=f"chatcmpl-{secrets.token_hex(12)}", created=int(time.time()), model=MODEL)
        first = await anext(events)  # a full queue is refused before the reply begins
        if stream:
            parts = _stream(first, events, head | dict(object="chat.completion.chunk"), usage)
            return StreamingResponse(parts, media_type="text/event-stream")
        return await _whole(first, events, head | dict(object="chat.completion"))

    async def _take_choice(self, request: Request) -> Response:
        try:
            body = await self._body(request)
            duel, choice = whole_number(body.get("duel"), "duel"), body.get("choice")
            valid = isinstance(choice, int | str) and not isinstance(choice, bool) and choice in _CHOICES
            if not valid:
                raise HTTPException(400, f"choice: valid is one of {[*_CHOICES]}")
            await run_in_threadpool(self._duels.choose, duel, _user(body), _CHOICES[choice])
        except HTTPException as error:
            return _error(error)
        except NotYoursError as error:
            return _error(HTTPException(409, str(error)))
        return JSONResponse(dict(duel=duel, choice=choice))

    async def _body(self, request: Request) -> dict[str, Any]:
        self._authorise(request)
        return await read_object(request)

    def _authorise(self, request: Request) -> None:
        """Raises HTTPException without the token; only requests without it are counted."""
        sent = request.headers.get("authorization", "")
        if self._token and not hmac.compare_digest(sent.encode(), f"Bearer {self._token}".encode()):
            self._sessions.require_rate(request)
            raise HTTPException(401, "valid with the header Authorization: Bearer <token>")


async def _whole(first: Any, rest: AsyncIterator[Any], head: dict[str, Any]) -> Response:
    """Returns a completion with one choice, or with two and the id of their duel."""
    texts: list[str] = []
    async for event in _after(first, rest):
        if isinstance(event, Part):
            texts.append(event.text)
        elif isinstance(event, Answer):
            choice = _choice(0, "".join(texts), event.reason)
            usage = _usage(event.prompt_tokens, event.tokens)
            return JSONResponse(head | dict(choices=[choice], usage=usage, version=event.version))
        elif isinstance(event, Compared):
            shown = event.shown
            choices = [_choice(0, shown.left, "stop"), _choice(1, shown.right, "stop")]
            facts = dict(usage=_usage(event.prompt_tokens, event.tokens), version=event.version)
            return JSONResponse(head | dict(choices=choices, duel=shown.duel) | facts)
    return _error(HTTPException(500, "the answer failed; the server's log says why"))


async def _stream(
    first: Any, rest: AsyncIterator[Any], head: dict[str, Any], with_usage: bool
) -> AsyncIterator[str]:
    """Yields the events of a streamed completion."""

    def line(delta: dict[str, Any], reason: str | None = None, **fields: Any) -> str:
        choice = dict(index=0, delta=delta, finish_reason=reason, logprobs=None)
        return f"data: {json.dumps(head | dict(choices=[choice]) | fields)}\n\n"

    yield line(dict(role="assistant", content=""))
    async for event in _after(first, rest):
        if isinstance(event, Part):
            yield line(dict(content=event.text))
        elif isinstance(event, Answer):
            yield line({}, event.reason, version=event.version)
            if with_usage:
                usage = _usage(event.prompt_tokens, event.tokens)
                yield f"data: {json.dumps(head | dict(choices=[], usage=usage))}\n\n"
        elif isinstance(event, Failure):
            yield f"data: {json.dumps(dict(error=_fields(500, 'the answer failed')))}\n\n"
    yield "data: [DONE]\n\n"


async def _after(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for event in rest:
        yield event


def _choice(index: int, text: str, reason: str) -> dict[str, Any]:
    message = dict(role="assistant", content=text, refusal=None)
    return dict(index=index, message=message, finish_reason=reason, logprobs=None)


def _usage(prompt_tokens: int, tokens: int) -> dict[str, int]:
    total = prompt_tokens + tokens
    return dict(prompt_tokens=prompt_tokens, completion_tokens=tokens, total_tokens=total)


def _user(body: dict[str, Any]) -> str:
    user = body.get("user") or _ANYBODY
    if not isinstance(user, str) or len(user) > _LONGEST_NAME or not user.isprintable() or "," in user:
        raise HTTPException(400, f"user: valid is a name of at most {_LONGEST_NAME} characters, no comma")
    return user


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise HTTPException(400, f"{name}: valid is true or false")
    return bool(value)


def _object(body: dict[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name) or {}
    if not isinstance(value, dict):
        raise HTTPException(400, f"{name}: valid is an object")
    return value


def _temperature(body: dict[str, Any], default: float) -> float:
    value = body.get("temperature")
    value = default if value is None else value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 2:
        raise HTTPException(400, "temperature: valid is a number from 0 to 2")
    return float(value)


def _most_tokens(body: dict[str, Any]) -> int:
    given = [body[name] for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None]
    value = given[0] if given else 2**31 - 1
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise HTTPException(400, "max_completion_tokens: valid is a whole number, at least 1")
    return value


def _fields(status: int, message: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return dict(message=message, type=kind, param=None, code=None)


def _error(error: HTTPException) -> Response:
    """Returns an error as OpenAI's clients read it."""
    body = dict(error=_fields(error.status_code, error.detail))
    return JSONResponse(body, error.status_code, error.headers)
