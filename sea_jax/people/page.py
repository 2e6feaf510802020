"""The page on which people say which of two answers is better: a Starlette application over `Desk`.

    GET  /             the login, or the page                  POST /login, /logout     forms
    GET  /api/next     the next question                       POST /api/answer         a verdict
    GET  /api/progress how far run and annotator are           POST /api/undo, /api/show
    GET  /progress     the same for people, with agreement

Everything that a model or an annotator wrote is text: no route returns it as HTML without escaping it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import math
import secrets
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from sea_jax.labels.agreement import cohen_kappa, krippendorff_alpha
from sea_jax.labels.desk import Desk, NotLeasedError, Shown
from sea_jax.labels.question_tables import BOTH_BAD, SKIP, TIE
from sea_jax.people import progress
from sea_jax.people.limits import BodyLimit, RequestRates, SecurityHeaders

_HERE = Path(__file__).parent
_COOKIE = "sea_jax_session"
_LONGEST_NAME = 40  # characters
_LONGEST_SHOWN_S = 86_400.0
CHOICES = ("left", "right", TIE, BOTH_BAD, SKIP)


@dataclasses.dataclass(frozen=True)
class PageSettings:
    """Settings of the page.

    Attributes:
        token: that annotators must give; empty: none.
        guideline: plain text for annotators; empty: none.
        hosts: values of the header Host that are answered; '*' is any.
        requests_per_s: of one annotator, or of an address without one, at most.
    """

    token: str = ""
    guideline: str = ""
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost")
    requests_per_s: float = 20.0


@dataclasses.dataclass(frozen=True)
class Session:
    """An annotator who has logged in."""

    annotator: str
    csrf: str


class Page:
    """The routes; `app` is the application.

    Args:
        desk: of the work directory.
        settings: see `PageSettings`.
    """

    def __init__(self, desk: Desk, settings: PageSettings):
        self._desk, self._settings = desk, settings
        self._templates = Jinja2Templates(_HERE / "templates")
        self._rates = RequestRates(settings.requests_per_s)
        api = {
            "answer": (self._answer, "POST"), "undo": (self._undo, "POST"), "show": (self._show, "POST"),
            "next": (self._next, "GET"), "progress": (self._progress, "GET"),
        }  # fmt: skip
        self.app = Starlette(
            routes=[
                Route("/", self._index),
                Route("/progress", self._progress_page),
                Route("/login", self._login, methods=["POST"]),
                Route("/logout", self._logout, methods=["POST"]),
                *(Route(f"/api/{name}", call, methods=[method]) for name, (call, method) in api.items()),
                Mount("/static", StaticFiles(directory=_HERE / "static")),
            ],
            middleware=[
                Middleware(SecurityHeaders),
                Middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts)),
                Middleware(BodyLimit),
            ],
            exception_handlers={HTTPException: _refusal},
        )

    # Pages

    async def _index(self, request: Request) -> Response:
        session = await self._session(request)
        if session is None:
            self._rates.require(_address(request))
            return self._login_form(request)
        context = dict(session=session, guideline=self._settings.guideline)
        return self._templates.TemplateResponse(request, "label.html", context)

    def _login_form(self, request: Request, problem: str = "", status: int = 200) -> Response:
        context = dict(problem=problem, needs_token=bool(self._settings.token), longest=_LONGEST_NAME)
        return self._templates.TemplateResponse(request, "login.html", context, status_code=status)

    async def _login(self, request: Request) -> Response:
        _require_same_origin(request)
        self._rates.require(_address(request))
        form = await _form(request)
        name, token = " ".join(form.get("name", "").split()), form.get("token", "")
        if not hmac.compare_digest(token.encode(), self._settings.token.encode()):
            return self._login_form(request, "This token is not valid.", 403)
        if not (0 < len(name) <= _LONGEST_NAME and name.isprintable()) or "," in name:
            return self._login_form(
                request, f"Valid names have 1 to {_LONGEST_NAME} characters and no comma.", 400
            )
        key = secrets.token_urlsafe(32)
        await run_in_threadpool(self._desk.add_session, _digest(key), name, secrets.token_urlsafe(32))
        reply = RedirectResponse("/", 303)
        reply.set_cookie(_COOKIE, key, httponly=True, samesite="strict", max_age=30 * 86_400)
        return reply

    async def _logout(self, request: Request) -> Response:
        _require_same_origin(request)
        await run_in_threadpool(self._desk.end_session, _digest(request.cookies.get(_COOKIE, "")))
        reply = RedirectResponse("/", 303)
        reply.delete_cookie(_COOKIE)
        return reply

    async def _progress_page(self, request: Request) -> Response:
        session = await self._session(request)
        if session is None:
            return RedirectResponse("/", 303)
        self._rates.require(f"annotator {session.annotator}")
        context = await run_in_threadpool(self._agreement)
        context |= await run_in_threadpool(self._facts, session.annotator)
        return self._templates.TemplateResponse(request, "progress.html", context)

    # What the page's script calls

    async def _next(self, request: Request) -> Response:
        session = await self._required(request)
        ahead = request.query_params.get("ahead") == "1"
        besides = _whole(request.query_params.get("besides", "0"))
        shown = await run_in_threadpool(self._desk.next, session.annotator, not ahead, besides)
        return _question(shown)

    async def _show(self, request: Request) -> Response:
        session, body = await self._posted(request)
        return _question(
            await run_in_threadpool(self._desk.show, _whole(body.get("question")), session.annotator)
        )

    async def _answer(self, request: Request) -> Response:
        session, body = await self._posted(request)
        choice, seconds = body.get("choice"), body.get("seconds", 0.0)
        if not isinstance(choice, str) or choice not in CHOICES:
            raise HTTPException(400, f"choice: valid is one of {', '.join(CHOICES)}")
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not (is_number and math.isfinite(seconds) and seconds >= 0):
            raise HTTPException(400, "seconds: valid is a number, at least 0")
        question = _whole(body.get("question"))
        spent = float(min(seconds, _LONGEST_SHOWN_S))
        try:
            await run_in_threadpool(self._desk.answer, question, session.annotator, choice, spent)
        except NotLeasedError as error:
            raise HTTPException(409, str(error)) from None
        return JSONResponse(await run_in_threadpool(self._facts, session.annotator))

    async def _undo(self, request: Request) -> Response:
        session, _ = await self._posted(request)
        shown = await run_in_threadpool(self._desk.undo, session.annotator)
        if shown is None:
            raise HTTPException(409, "no answer can be taken back: the model has learned from the last one")
        return _question(shown)

    async def _progress(self, request: Request) -> Response:
        session = await self._required(request)
        return JSONResponse(await run_in_threadpool(self._facts, session.annotator))

    # Facts

    def _facts(self, annotator: str) -> dict[str, Any]:
        """Returns how far the newest run and an annotator are."""
        counts, budget = self._desk.counts(), self._desk.budget()
        facts: dict[str, Any] = dict(
            open=counts.open, verdicts=counts.verdicts, annotators=counts.annotators,
            yours=self._desk.count_of(annotator), run="", labels=0, budget=0, win_rate=None,
        )  # fmt: skip
        if budget is not None:
            run, labels = budget
            facts |= dict(run=run, budget=labels, **progress.of_run(self._desk.file.parent, run))
        return facts

    def _agreement(self) -> dict[str, Any]:
        """Returns the agreement of the annotators."""
        votes = self._desk.votes()
        pairs = [(a, b, kappa, n) for (a, b), (kappa, n) in cohen_kappa(votes).items()]
        names = [name for _, name, _ in votes]
        return dict(
            alpha=krippendorff_alpha(votes),
            pairs=pairs,
            by_annotator=[(n, names.count(n)) for n in sorted({*names})],
        )

    # Sessions

    async def _session(self, request: Request) -> Session | None:
        key = request.cookies.get(_COOKIE, "")
        found = await run_in_threadpool(self._desk.session, _digest(key)) if key else None
        return Session(*found) if found else None

    async def _required(self, request: Request) -> Session:
        if (session := await self._session(request)) is None:
            self._rates.require(_address(request))
            raise HTTPException(401, "log in first")
        self._rates.require(f"annotator {session.annotator}")
        return session

    async def _posted(self, request: Request) -> tuple[Session, dict[str, Any]]:
        """Returns the session and the JSON object of a request that changes something."""
        _require_same_origin(request)
        session = await self._required(request)
        if not hmac.compare_digest(request.headers.get("x-csrf-token", "").encode(), session.csrf.encode()):
            raise HTTPException(403, "the page is out of date; reload it")
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise HTTPException(415, "valid is JSON")
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError):
            raise HTTPException(400, "valid is JSON") from None
        if not isinstance(body, dict):
            raise HTTPException(400, "valid is an object of JSON")
        return session, body


def _address(request: Request) -> str:
    return f"address {request.client.host if request.client else ''}"


def _require_same_origin(request: Request) -> None:
    """Refuses a request that another site's page has sent."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "sent by another site")


async def _form(request: Request) -> dict[str, str]:
    """Returns the fields of a form, the last of each name."""
    try:
        found = parse_qs((await request.body()).decode(), max_num_fields=10)
    except ValueError:  # not UTF-8, or too many fields
        raise HTTPException(400, "valid is a form") from None
    return {name: values[-1] for name, values in found.items()}


def _whole(value: Any) -> int:
    """Returns the id of a question."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise HTTPException(400, "question: valid is a whole number")
    return int(text)


def _question(shown: Shown | None) -> Response:
    return JSONResponse(dict(question=None if shown is None else shown._asdict(), at=time.time()))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _refusal(request: Request, error: Exception) -> Response:
    """Answers an error in one line, to scripts and people alike."""
    del request
    assert isinstance(error, HTTPException)
    return JSONResponse(dict(error=error.detail), error.status_code, error.headers)
