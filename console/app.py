"""The application: the pages, static files, and what a page says when the API refuses or does not answer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from urllib.parse import quote

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from console.client import ApiError, ApiUnavailableError, open_http
from console.pages import (
    accounts,
    agents,
    batch,
    batches,
    job,
    jobs,
    keys,
    models,
    overview,
    playground,
    sign_in,
    usage,
    webhooks,
)
from console.render import STATIC, page, redirect
from console.security import COOKIE, ForgedError, SecurityHeaders, SignedOutError
from console.sessions import Sessions


class _Console(FastAPI):
    """FastAPI's application within `SecurityHeaders`.

    FastAPI answers a fault outside of all middleware that is added to it, and that answer needs the headers too.
    """

    def build_middleware_stack(self) -> ASGIApp:
        """Return what answers requests, from the outermost layer to the routes."""
        return SecurityHeaders(super().build_middleware_stack())


def create_app(api_url: str, public_url: str = "") -> FastAPI:
    """Return the console of the API at an address, whose clients reach it at `public_url`, or else at the same."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_http(api_url) as http:
            app.state.http = http
            yield

    app = _Console(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.sessions = Sessions()
    app.state.api_url = api_url
    app.state.public_url = public_url or api_url
    for room in (
        sign_in,
        overview,
        models,
        agents,
        webhooks,
        keys,
        accounts,
        jobs,
        job,
        batches,
        batch,
        usage,
        playground,
    ):
        app.include_router(room.router)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_exception_handler(SignedOutError, _signed_out)
    app.add_exception_handler(ForgedError, _forged)
    app.add_exception_handler(ApiUnavailableError, _unavailable)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(404, _no_page)
    app.add_exception_handler(HTTPException, _not_taken)
    app.add_exception_handler(Exception, _failed)
    return app


async def _signed_out(request: Request, _: Exception) -> Response:
    """Ask for a key, and come back afterwards."""
    if request.method != "GET":
        return redirect("/sign-in")
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return redirect("/sign-in" if target == "/" else f"/sign-in?next={quote(target)}")


def _problem(request: Request, status: int, *, title: str, text: str, retry: bool = False) -> Response:
    """Return a page that says what is wrong. With `retry` it opens again by itself once the API answers."""
    return page(request, "problem.html", status=status, title=title, text=text, retry=retry)


async def _forged(request: Request, _: Exception) -> Response:
    return _problem(
        request,
        403,
        title="Not sent by this console",
        text="The request did not come from a page of this session. Open the page again and repeat it.",
    )


async def _unavailable(request: Request, _: Exception) -> Response:
    return _problem(
        request,
        503,
        title="The API is unavailable",
        text=f"{request.app.state.api_url} does not answer. This page opens by itself once it does.",
        retry=request.method == "GET",
    )


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    if error.status == 401:  # revoked, rotated or expired since the sign-in
        request.app.state.sessions.end(request.cookies.get(COOKIE, ""))
        return redirect("/sign-in?ended=key")
    titles = {403: "This key may not do that", 404: "Not found", 429: "Too many requests"}
    return _problem(
        request,
        error.status,
        title=titles.get(error.status, "The API refused this"),
        text=error.message,
    )


async def _no_page(request: Request, _: Exception) -> Response:
    return _problem(request, 404, title="No such page", text="The navigation lists all pages.")


async def _not_taken(request: Request, error: Exception) -> Response:
    """Say what is wrong with a request, such as a form that is too large."""
    assert isinstance(error, HTTPException)
    return _problem(request, error.status_code, title="The console refused this", text=error.detail)


async def _failed(request: Request, _: Exception) -> Response:
    """Answer a fault of the console; the server logs it with its traceback."""
    return _problem(
        request,
        500,
        title="The console failed",
        text="This page has a fault. The log of the console says more.",
    )
