"""Signing in with an API key, and signing out."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.client import Api, ApiError, ApiUnavailableError
from console.forms import ANYONE, read_form
from console.render import local_path, page, redirect
from console.security import COOKIE, Acting, check_origin, set_cookie
from console.sessions import Session

router = APIRouter()

_ENDED = {
    "key": "The key of your session is no longer valid: it was revoked or rotated, or it has expired.",
    "out": "You are signed out.",
}


@router.get("/sign-in")
async def show_sign_in(request: Request) -> Response:
    """Ask for a key."""
    notice = _ENDED.get(request.query_params.get("ended", ""))
    return _ask(request, request.query_params.get("next", ""), notice=notice)


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    """Start a session with a key that the API knows."""
    check_origin(request)
    form = await read_form(request, ANYONE)
    key, target = str(form.get("key", "")).strip(), str(form.get("next", ""))
    if not key.isascii() or not key.isprintable() or not key:
        return _ask(request, target, error="Enter an API key. It begins with hr_.", status=422)
    try:
        account = await Api(request.app.state.http, key).get("/account")
    except ApiUnavailableError:
        return _ask(request, target, error="The API is unavailable. Try again in a moment.", status=503)
    except ApiError as error:
        text = "The API does not know this key, or it was revoked." if error.status == 401 else error.message
        return _ask(request, target, error=text, status=error.status)
    sessions = request.app.state.sessions
    sessions.end(request.cookies.get(COOKIE, ""))
    response = redirect(local_path(target))
    set_cookie(request, response, sessions.start(Session(key, account)))
    return response


@router.post("/sign-out")
async def sign_out(request: Request, session: Acting) -> Response:  # noqa: ARG001  (the check of the form's token)
    """End the session."""
    request.app.state.sessions.end(request.cookies.get(COOKIE, ""))
    response = redirect("/sign-in?ended=out")
    response.delete_cookie(COOKIE, path="/")
    return response


def _ask(
    request: Request, target: str, *, error: str | None = None, notice: str | None = None, status: int = 200
) -> Response:
    return page(
        request,
        "sign_in.html",
        status=status,
        error=error,
        notice=notice,
        next=local_path(target),
    )
