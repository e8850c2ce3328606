"""Answers that are made after the layers that handled their requests have returned."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from api.http.connection import Client
from api.http.later import Later
from api.http.middleware import RequestScope
from api.http.sse import EventStream, Write
from headrace.errors import RateLimitError

ORIGIN = "https://app.example.com"


async def tell(write: Write) -> None:
    await write([b"data: 1\n\n"])
    await write([b"data: 2\n\n"])


async def whole() -> Response:
    return Response(b"done", 200)


async def stream() -> Response:
    return EventStream(tell)


async def refused() -> Response:
    raise RateLimitError(retry_after=3)


async def broken() -> Response:
    raise ValueError("a secret")


async def ask(path: str) -> httpx.Response:
    async def answer(request: Request) -> Response:
        return Later({"/whole": whole, "/stream": stream, "/refused": refused, "/broken": broken}[request.url.path])

    cors = Middleware(CORSMiddleware, allow_origins=[ORIGIN], expose_headers=["*"])
    routes = [Route(each, answer) for each in ("/whole", "/stream", "/refused", "/broken")]
    app = RequestScope(Starlette(routes=routes, middleware=[cors]))

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": {"client": Client()}}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(with_state), base_url="http://headrace") as client:
        return await client.get(path, headers={"origin": ORIGIN})


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [("/whole", 200, "done"), ("/stream", 200, "data: 1\n\ndata: 2\n\n"), ("/refused", 429, ""), ("/broken", 500, "")],
)
async def test_an_answer_passes_the_layers_that_handled_its_request(path: str, status: int, text: str) -> None:
    answer = await ask(path)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["x-request-id"]
    if status == 200:
        assert answer.text == text
    else:
        assert answer.json()["error"]["message"]
        assert "secret" not in answer.text
