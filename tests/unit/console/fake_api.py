"""A console whose API is a function in this process."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx
from fastapi import FastAPI

from console.app import create_app

ACCOUNT = {
    "id": "acct_own",
    "object": "account",
    "name": "own",
    "key": {
        "id": "key_1",
        "name": "first",
        "account_id": "acct_own",
        "scopes": [],
        "read_only": False,
        "expires_at": None,
    },
}
EMPTY = {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}
KEY = "hr_the-key-of-this-session"


def answers(request: httpx.Request) -> httpx.Response:
    """Answer as an API with one valid key and no rows."""
    if request.headers["authorization"] != f"Bearer {KEY}":
        return httpx.Response(401, json={"error": {"message": "Wrong key.", "type": "x", "param": None, "code": "x"}})
    return httpx.Response(200, json=ACCOUNT if request.url.path == "/api/v1/account" else EMPTY)


def console(api: Callable[[httpx.Request], httpx.Response] = answers, *, public_url: str = "") -> FastAPI:
    """Return a console that asks `api`, which has a public address or not."""
    app = create_app("http://api.invalid", public_url)
    app.state.http = httpx.AsyncClient(base_url="http://api.invalid/api/v1", transport=httpx.MockTransport(api))
    return app


def browser(app: FastAPI, *, scheme: str = "http", raises: bool = True) -> httpx.AsyncClient:
    """Return a client with cookies of its own that follows redirects.

    A fault of the console is raised in the test, or without `raises` answered as a server answers it.
    """
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=raises),
        base_url=f"{scheme}://console.invalid",
        follow_redirects=True,
    )


async def sign_in(client: httpx.AsyncClient, **form: Any) -> httpx.Response:
    """Send the form of the sign-in."""
    return await client.post("/sign-in", data={"key": KEY} | form)


def token_of(page: httpx.Response) -> str:
    """Return the token that a page's forms send back."""
    found = re.search(r'name="csrf" content="([^"]+)"', page.text)
    assert found is not None
    return found[1]
