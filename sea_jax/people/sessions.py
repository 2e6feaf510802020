"""Sessions of people at a page of ours: logins, cookies, protection from other sites, and bounded rates."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import secrets
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

from sea_jax.labels.store import Store
from sea_jax.people.limits import RequestRates

_COOKIE = "sea_jax_session"
_LONGEST_NAME = 40  # characters


@dataclasses.dataclass(frozen=True)
class Session:
    """Somebody who has logged in."""

    name: str
    csrf: str


class Sessions:
    """The sessions of a page. What changes something is required to come from the page itself.

    Args:
        store: keeps them.
        templates: have `login.html`.
        title: of the login.
        token: that people must give; empty: none.
        requests_per_s: of one of them, or of an address without a session, at most.
    """

    def __init__(
        self, store: Store, templates: Jinja2Templates, title: str, token: str, requests_per_s: float
    ):
        self._store, self._templates, self._title, self._token = store, templates, title, token
        self._rates = RequestRates(requests_per_s)

    @property
    def routes(self) -> list[Route]:
        """The forms that log in and out."""
        return [
            Route("/login", self._login, methods=["POST"]),
            Route("/logout", self._logout, methods=["POST"]),
        ]

    async def login_form(self, request: Request, problem: str = "", status: int = 200) -> Response:
        """Asks for a name, and for the token if there is one."""
        context = dict(
            title=self._title, problem=problem, needs_token=bool(self._token), longest=_LONGEST_NAME
        )
        return self._templates.TemplateResponse(request, "login.html", context, status_code=status)

    async def find(self, request: Request) -> Session | None:
        """Returns the session of a request; None without one."""
        key = request.cookies.get(_COOKIE, "")
        found = await run_in_threadpool(self._store.session, _digest(key)) if key else None
        return Session(*found) if found else None

    async def require(self, request: Request) -> Session:
        """Returns the session of a request, and counts the request.

        Raises:
            HTTPException: there is none, or too many requests came.
        """
        if (session := await self.find(request)) is None:
            self.require_rate(request)
            raise HTTPException(401, "log in first")
        self._rates.require(f"name {session.name}")
        return session

    def require_rate(self, request: Request, name: str = "") -> None:
        """Counts a request of somebody, or of an address; raises HTTPException where there were too many."""
        self._rates.require(f"name {name}" if name else f"address {_address(request)}")

    async def require_posted(self, request: Request) -> tuple[Session, dict[str, Any]]:
        """Returns the session and the JSON object of a request that changes something.

        Raises:
            HTTPException: there is no session, no valid body, or another site sent it.
        """
        _require_same_origin(request)
        session = await self.require(request)
        if not hmac.compare_digest(request.headers.get("x-csrf-token", "").encode(), session.csrf.encode()):
            raise HTTPException(403, "the page is out of date; reload it")
        return session, await read_object(request)

    async def _login(self, request: Request) -> Response:
        _require_same_origin(request)
        self.require_rate(request)
        form = await _form(request)
        name, token = " ".join(form.get("name", "").split()), form.get("token", "")
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            return await self.login_form(request, "This token is not valid.", 403)
        if not (0 < len(name) <= _LONGEST_NAME and name.isprintable()) or "," in name:
            problem = f"Valid names have 1 to {_LONGEST_NAME} characters and no comma."
            return await self.login_form(request, problem, 400)
        key = secrets.token_urlsafe(32)
        await run_in_threadpool(self._store.add_session, _digest(key), name, secrets.token_urlsafe(32))
        reply = RedirectResponse("/", 303)
        reply.set_cookie(_COOKIE, key, httponly=True, samesite="strict", max_age=30 * 86_400)
        return reply

    async def _logout(self, request: Request) -> Response:
        _require_same_origin(request)
        await run_in_threadpool(self._store.end_session, _digest(request.cookies.get(_COOKIE, "")))
        reply = RedirectResponse("/", 303)
        reply.delete_cookie(_COOKIE)
        return reply


async def read_object(request: Request) -> dict[str, Any]:
    """Returns the JSON object of a request; raises HTTPException where its body is none."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "valid is JSON")
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise HTTPException(400, "valid is JSON") from None
    if not isinstance(body, dict):
        raise HTTPException(400, "valid is an object of JSON")
    return body


def whole_number(value: Any, name: str) -> int:
    """Returns an id; raises HTTPException where it is none."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise HTTPException(400, f"{name}: valid is a whole number")
    return int(text)


def refusal(request: Request, error: Exception) -> Response:
    """Answers an error in one line, to scripts and people alike."""
    del request
    assert isinstance(error, HTTPException)
    return JSONResponse(dict(error=error.detail), error.status_code, error.headers)


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


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


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
