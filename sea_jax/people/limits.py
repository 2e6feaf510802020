"""Bounds of what a client may send, and headers that bound what a browser may do with a page."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LONGEST_BODY = 16_384  # bytes
_BURST = 2.0  # seconds' worth of requests at once
_CLIENTS = 10_000  # that are remembered
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class SecurityHeaders:
    """Adds the headers: scripts and styles from here alone, in no frame, kept in no cache."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, with_headers)


class BodyLimit:
    """Refuses a long body with status 413, whatever length it claims to have.

    Args:
        app: gets the others.
        longest: bytes.
    """

    def __init__(self, app: ASGIApp, longest: int = _LONGEST_BODY):
        self._app, self._longest = app, longest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the whole body, as far as it is allowed, and answers the request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        claimed = Headers(scope=scope).get("content-length", "0")
        too_long = not claimed.isdigit() or int(claimed) > self._longest
        while more and not too_long:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more, too_long = message.get("more_body", False), len(body) > self._longest
        if too_long:
            await JSONResponse(dict(error="the request is too long"), 413)(scope, receive, send)
            return
        whole = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(whole, None) or await receive()

        await self._app(scope, replay, send)


def protection(hosts: Sequence[str], longest: int = _LONGEST_BODY) -> list[Middleware]:
    """Returns what stands before the routes of a page: security headers, and bounds of what is answered.

    Args:
        hosts: values of the header Host that are answered; '*' is any.
        longest: body, in bytes.
    """
    return [
        Middleware(SecurityHeaders),
        Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)),
        Middleware(BodyLimit, longest=longest),
    ]


class RequestRates:
    """Counts requests by client, and refuses more than so many a second with status 429.

    Args:
        per_second: of one client, at most, after a burst of twice as many.
    """

    def __init__(self, per_second: float):
        self._rate, self._most = per_second, max(per_second * _BURST, 1.0)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, and since when

    def require(self, client: str) -> None:
        """Counts a request.

        Raises:
            HTTPException: the client has sent too many.
        """
        now = time.monotonic()
        left, since = self._left.pop(client, (self._most, now))
        left = min(self._most, left + (now - since) * self._rate)
        self._left[client] = (left - 1 if left >= 1 else left, now)
        while len(self._left) > _CLIENTS:
            self._left.popitem(last=False)
        if left < 1:
            raise HTTPException(429, "too many requests", {"retry-after": "1"})
