"""The page on which people say which of two answers is better: a Starlette application over `Desk`.

    GET  /             the login, or the page                  POST /login, /logout     forms
    GET  /api/next     the next question                       POST /api/answer         a verdict
    GET  /api/progress how far run and annotator are           POST /api/undo, /api/show
    GET  /progress     the same for people, with agreement

Everything that a model or an annotator wrote is text: no route returns it as HTML without escaping it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from sea_jax.labels.agreement import cohen_kappa, krippendorff_alpha
from sea_jax.labels.desk import Desk, NotLeasedError, Shown
from sea_jax.labels.question_tables import BOTH_BAD, SKIP, TIE
from sea_jax.people import progress
from sea_jax.people.limits import protection
from sea_jax.people.sessions import Session, Sessions, refusal, whole_number

_HERE = Path(__file__).parent
TITLE = "Which answer is better?"
_LONGEST_SHOWN_S = 86_400.0
_AWAY_S = 15.0  # without a request, of which a page that is open sends one every 5 seconds
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


class Page:
    """The routes; `app` is the application.

    Args:
        desk: of the work directory.
        settings: see `PageSettings`.
    """

    def __init__(self, desk: Desk, settings: PageSettings):
        self._desk, self._settings = desk, settings
        self._heard: dict[str, float] = {}  # annotator -> instant of the last request
        self._since = time.monotonic()
        self._templates = Jinja2Templates(_HERE / "templates")
        self._sessions = Sessions(desk, self._templates, TITLE, settings.token, settings.requests_per_s)
        api = {
            "answer": (self._answer, "POST"), "undo": (self._undo, "POST"), "show": (self._show, "POST"),
            "next": (self._next, "GET"), "progress": (self._progress, "GET"),
        }  # fmt: skip
        self.app = Starlette(
            routes=[
                Route("/", self._index),
                Route("/progress", self._progress_page),
                *self._sessions.routes,
                *(Route(f"/api/{name}", call, methods=[method]) for name, (call, method) in api.items()),
                Mount("/static", StaticFiles(directory=_HERE / "static")),
            ],
            middleware=protection(settings.hosts),
            exception_handlers={HTTPException: refusal},
        )

    # Pages

    async def _index(self, request: Request) -> Response:
        session = await self._sessions.find(request)
        if session is None:
            self._sessions.require_rate(request)
            return await self._sessions.login_form(request)
        context = dict(session=session, title=TITLE, guideline=self._settings.guideline)
        return self._templates.TemplateResponse(request, "label.html", context)

    async def _progress_page(self, request: Request) -> Response:
        session = await self._sessions.find(request)
        if session is None:
            return RedirectResponse("/", 303)
        self._sessions.require_rate(request, session.name)
        context = dict(title="Progress") | await run_in_threadpool(self._agreement)
        context |= await run_in_threadpool(self._facts, session.name)
        return self._templates.TemplateResponse(request, "progress.html", context)

    # What the page's script calls

    async def _next(self, request: Request) -> Response:
        session = await self._required(request)
        ahead = request.query_params.get("ahead") == "1"
        besides = whole_number(request.query_params.get("besides", "0"), "question")
        shown = await run_in_threadpool(self._desk.next, session.name, not ahead, besides, self._present())
        return _question(shown)

    async def _show(self, request: Request) -> Response:
        session, body = await self._sessions.require_posted(request)
        return _question(
            await run_in_threadpool(
                self._desk.show, whole_number(body.get("question"), "question"), session.name
            )
        )

    async def _answer(self, request: Request) -> Response:
        session, body = await self._sessions.require_posted(request)
        choice, seconds = body.get("choice"), body.get("seconds", 0.0)
        if not isinstance(choice, str) or choice not in CHOICES:
            raise HTTPException(400, f"choice: valid is one of {', '.join(CHOICES)}")
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not (is_number and math.isfinite(seconds) and seconds >= 0):
            raise HTTPException(400, "seconds: valid is a number, at least 0")
        question = whole_number(body.get("question"), "question")
        spent = float(min(seconds, _LONGEST_SHOWN_S))
        try:
            await run_in_threadpool(self._desk.answer, question, session.name, choice, spent)
        except NotLeasedError as error:
            raise HTTPException(409, str(error)) from None
        return JSONResponse(await run_in_threadpool(self._facts, session.name))

    async def _undo(self, request: Request) -> Response:
        session, _ = await self._sessions.require_posted(request)
        shown = await run_in_threadpool(self._desk.undo, session.name)
        if shown is None:
            raise HTTPException(409, "no answer can be taken back: the model has learned from the last one")
        return _question(shown)

    async def _progress(self, request: Request) -> Response:
        session = await self._required(request)
        return JSONResponse(await run_in_threadpool(self._facts, session.name))

    # Who is there

    async def _required(self, request: Request) -> Session:
        """Returns the session of a request, whose annotator is at the page."""
        session = await self._sessions.require(request)
        self._heard[session.name] = time.monotonic()
        return session

    def _present(self) -> list[str] | None:
        """Returns the annotators whose pages are open; None while the server has just begun."""
        since = time.monotonic() - _AWAY_S
        self._heard = {name: heard for name, heard in self._heard.items() if heard >= since}
        return [*self._heard] if self._since < since else None

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


def _question(shown: Shown | None) -> Response:
    return JSONResponse(dict(question=None if shown is None else shown._asdict(), at=time.time()))
