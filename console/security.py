"""What protects a session: its cookie, the checks of a request that changes something, and the headers of every answer.

A page's script and style come from this process alone, so text that a model or a client wrote can run nothing.
"""

from __future__ import annotations

import secrets
from typing import Annotated
from urllib.parse import urlsplit

import httpx
from fastapi import Depends, Request
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from console.client import Api
from console.forms import read_form
from console.render import REFRESH_HEADER
from console.sessions import Session, Sessions

COOKIE = "headrace_console"

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class SignedOutError(Exception):
    """The request has no session, or its session has ended."""


class ForgedError(Exception):
    """A request that changes something did not come from a page of the console."""


class SecurityHeaders:
    """The outermost layer, which puts the headers on every answer. Only static files are kept by browsers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def set_cookie(request: Request, response: Response, token: str) -> None:
    """Give the browser its session. Scripts cannot read it, and other sites' links and forms do not send it.

    A browser that came by TLS sends it by TLS alone.
    """
    response.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=_by_tls(request), path="/")


def _by_tls(request: Request) -> bool:
    """Return whether the browser came by TLS, also where a proxy ends it.

    The browser's word decides, as the server believes a proxy's headers only from its own host. `check_origin` has
    compared the origin's host.
    """
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https:")


def check_origin(request: Request) -> None:
    """Raise ForgedError unless the browser says that a page of the console sent the request."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site not in {None, "same-origin"} or (origin and urlsplit(origin).netloc != request.headers.get("host")):
        raise ForgedError


async def signed_in(request: Request) -> Session:
    """Return the session of a request.

    Raises:
        SignedOutError: The request has no session, or it has ended.
    """
    sessions: Sessions = request.app.state.sessions
    token = request.cookies.get(COOKIE, "")
    session = sessions.find(token, refresh=REFRESH_HEADER in request.headers)
    if session is None:
        raise SignedOutError
    request.state.session = session
    return session


async def acting(request: Request, session: Annotated[Session, Depends(signed_in)]) -> Session:
    """Return the session of a request that changes something. Its token is in a header or in the form.

    Raises:
        SignedOutError: There is no session.
        ForgedError: Another site sent the request.
    """
    check_origin(request)
    token = request.headers.get("x-csrf-token")
    if token is None:
        token = str((await read_form(request)).get("csrf", ""))
    if not secrets.compare_digest(token.encode(), session.csrf.encode()):
        raise ForgedError
    return session


SignedIn = Annotated[Session, Depends(signed_in)]
Acting = Annotated[Session, Depends(acting)]


def api_of(request: Request, session: Session) -> Api:
    """Return the API as the session's key sees it."""
    http: httpx.AsyncClient = request.app.state.http
    return Api(http, session.key, session.reading)


async def _reading(request: Request, session: SignedIn) -> Api:
    return api_of(request, session)


async def _writing(request: Request, session: Acting) -> Api:
    return api_of(request, session)


Reading = Annotated[Api, Depends(_reading)]
"""The API, for a page that only reads."""
Writing = Annotated[Api, Depends(_writing)]
"""The API, for a request that changes something."""
