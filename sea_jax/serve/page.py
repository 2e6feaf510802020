"""The chat and its status as pages of a browser: a Starlette application.

    GET  /             the login, or the chat                  POST /login, /logout   forms
    POST /api/chat     an answer, streamed, or two             POST /api/choose       a choice between two
    GET  /status       labels, versions, online win rate       POST /api/operate      pause, resume, roll back
    GET  /api/status   the same as JSON                        /v1/…      see `openai_api`

Everything that a model or a user wrote is text: no route returns it as HTML without escaping it.
"""

from __future__ import annotations

import dataclasses
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from sea_jax import people
from sea_jax.labels.chat import CHOICES, ChatDuels, NotYoursError
from sea_jax.people.limits import protection
from sea_jax.people.sessions import Sessions, refusal, whole_number
from sea_jax.serve.chat import Chat, Compared, ConversationError
from sea_jax.serve.engine import Engine
from sea_jax.serve.events import Answer, BusyError, Part
from sea_jax.serve.learner import Learner
from sea_jax.serve.openai_api import OpenAiApi

_HERE, _PEOPLE = Path(__file__).parent, Path(people.__file__).parent
_TITLE = "Chat"
_LONGEST_BODY = 262_144  # bytes
_RECENT = 200  # comparisons of the online win rate of late
_ALL = 2**31 - 1
PAUSE, RESUME, ROLLBACK = ACTIONS = ("pause", "resume", "rollback")


@dataclasses.dataclass(frozen=True)
class Access:
    """Tokens, and bounds of what a client may send.

    Attributes:
        token: of users and programs; empty: none is needed.
        operator_token: of those who pause learning and roll back; empty: none is needed where `token` is
            empty too, and else nobody may on the page.
        hosts: values of the header Host that are answered; '*' is any.
        requests_per_s: of one user, or of an address without one, at most.
    """

    token: str = ""
    operator_token: str = ""
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost")
    requests_per_s: float = 10.0


class ChatPage:
    """The routes; `app` is the application.

    Args:
        chat: answers.
        engine: whose version is shown.
        learner: learns from choices.
        duels: keeps them.
        access: see `Access`.
    """

    def __init__(self, chat: Chat, engine: Engine, learner: Learner, duels: ChatDuels, access: Access):
        self._chat, self._engine, self._learner, self._duels = chat, engine, learner, duels
        self._access = access
        self._templates = Jinja2Templates([_HERE / "templates", _PEOPLE / "templates"])
        self._sessions = Sessions(duels, self._templates, _TITLE, access.token, access.requests_per_s)
        api = OpenAiApi(chat, engine, duels, self._sessions, access.token)
        self.app = Starlette(
            routes=[
                Route("/", self._index),
                Route("/status", self._status_page),
                *self._sessions.routes,
                Route("/api/chat", self._answer, methods=["POST"]),
                Route("/api/choose", self._choose, methods=["POST"]),
                Route("/api/status", self._status),
                Route("/api/operate", self._operate, methods=["POST"]),
                *api.routes,
                Mount("/static", StaticFiles(directory=_PEOPLE / "static")),
                Mount("/chat", StaticFiles(directory=_HERE / "static")),
            ],
            middleware=protection(access.hosts, _LONGEST_BODY),
            exception_handlers={HTTPException: refusal},
        )

    async def _index(self, request: Request) -> Response:
        session = await self._sessions.find(request)
        if session is None:
            self._sessions.require_rate(request)
            return await self._sessions.login_form(request)
        return self._templates.TemplateResponse(request, "chat.html", dict(session=session, title=_TITLE))

    async def _answer(self, request: Request) -> Response:
        session, body = await self._sessions.require_posted(request)
        try:
            prompt = await run_in_threadpool(self._chat.prompt_of, body.get("messages"))
            kind = await run_in_threadpool(self._chat.kind)
            events = self._chat.answer(session.name, prompt, kind, self._chat.temperature, _ALL)
            first = await anext(events)  # a full queue is refused before the reply begins
        except ConversationError as error:
            raise HTTPException(400, f"this conversation cannot be answered: {error}") from None
        except BusyError:
            raise HTTPException(503, "too many people are waiting", {"retry-after": "1"}) from None
        return StreamingResponse(_lines(first, events), media_type="text/event-stream")

    async def _choose(self, request: Request) -> Response:
        session, body = await self._sessions.require_posted(request)
        duel, choice = whole_number(body.get("duel"), "duel"), body.get("choice")
        if not isinstance(choice, str) or choice not in CHOICES:
            raise HTTPException(400, f"choice: valid is one of {', '.join(CHOICES)}")
        try:
            await run_in_threadpool(self._duels.choose, duel, session.name, choice)
        except NotYoursError as error:
            raise HTTPException(409, str(error)) from None
        return JSONResponse(dict(duel=duel))

    async def _status_page(self, request: Request) -> Response:
        session = await self._sessions.find(request)
        if session is None:
            return RedirectResponse("/", 303)
        self._sessions.require_rate(request, session.name)
        context = dict(session=session, title="Status", operates=self._operates)
        context |= await run_in_threadpool(self._facts)
        context["needs_token"] = bool(self._access.operator_token)
        return self._templates.TemplateResponse(request, "status.html", context)

    async def _status(self, request: Request) -> Response:
        await self._sessions.require(request)
        return JSONResponse(await run_in_threadpool(self._facts))

    @property
    def _operates(self) -> bool:
        """True if somebody may pause learning and roll back on the page."""
        return bool(self._access.operator_token) or not self._access.token

    async def _operate(self, request: Request) -> Response:
        _, body = await self._sessions.require_posted(request)
        token = body.get("token") or ""
        given = token.encode("utf-8", "replace") if isinstance(token, str) else b""
        if not self._operates or not hmac.compare_digest(given, self._access.operator_token.encode()):
            raise HTTPException(403, "this operator token is not valid")
        action = body.get("action")
        if not isinstance(action, str) or action not in ACTIONS:
            raise HTTPException(400, f"action: valid is one of {', '.join(ACTIONS)}")
        if action == ROLLBACK:
            version, known = whole_number(body.get("version"), "version"), self._learner.versions()
            if version not in known:
                raise HTTPException(400, f"version: valid is one of {known}")
            if self._learner.ended:
                raise HTTPException(409, "learning has ended, so that nothing is rolled back")
            await run_in_threadpool(self._duels.ask_rollback, version)
        else:
            await run_in_threadpool(self._duels.set_paused, action == PAUSE)
        return JSONResponse(await run_in_threadpool(self._facts))

    def _facts(self) -> dict[str, Any]:
        """Returns how far learning is, and how the policy fares."""
        totals, run = self._duels.totals(), self._learner.run
        online, recent = self._duels.online(), self._duels.online(_RECENT)
        last = self._duels.last_rollback()
        rollback = None if last is None else dict(zip(("version", "step", "failure"), last, strict=True))
        return dict(
            version=self._engine.version, versions=self._learner.versions(), rollback=rollback,
            paused=self._duels.paused(), ended=self._learner.ended,
            labels=run.labeller.num_queries, budget=run.config.train.query_budget,
            answered=self._engine.answered, pairs=totals._asdict(),
            online=dict(compared=online.compared, win_rate=online.rate),
            recent=dict(compared=recent.compared, win_rate=recent.rate),
        )  # fmt: skip


async def _lines(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[str]:
    """Yields the events of an answer as the page's script reads them."""
    yield _line(first)
    async for event in rest:
        yield _line(event)


def _line(event: Any) -> str:
    if isinstance(event, Part):
        found: dict[str, Any] = dict(part=event.text)
    elif isinstance(event, Answer):
        found = dict(end=event.reason, version=event.version)
    elif isinstance(event, Compared):
        found = dict(two=event.shown._asdict())
    else:
        found = dict(error="The answer failed.")
    return f"data: {json.dumps(found)}\n\n"
