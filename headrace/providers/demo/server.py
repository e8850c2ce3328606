"""The demo models' provider: a small HTTP server that speaks OpenAI's format, so that a first run needs no account.

It answers on a loopback port inside the worker, and the worker calls it as it calls any provider. What it answers is
made in `headrace/providers/demo/answer.py`; when it answers, and when it fails, is decided here, by the model's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from headrace.catalogue.demo import DEMO_BASE_URL
from headrace.catalogue.models import Catalogue
from headrace.providers.demo.answer import Answer, RefusedError, answer
from headrace.runtime.quiet_server import QuietServer


@dataclass(frozen=True, slots=True)
class _Pace:
    """Seconds until the first token of a stream, and between two; a whole answer takes `first` and one token's time."""

    first: float
    token: float


_USUAL = _Pace(first=0, token=0.03)
_PACES = {"demo-slow": _Pace(first=5, token=0.33)}
# Rounds of tokens after which `demo-broken` ends its stream.
_ROUNDS_BEFORE_THE_BREAK = 12
# Requests that `demo-flaky` remembers to have failed.
_MOST_REMEMBERED = 10_000


class DemoUpstream:
    """The server of the demo models; it starts when a catalogue first needs it."""

    def __init__(self) -> None:
        """Serve nothing yet."""
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def place(self, catalogue: Catalogue) -> Catalogue:
        """Return the catalogue with the port filled in at the demo models' providers, if it has any."""
        waiting = [name for name, provider in catalogue.providers.items() if provider.base_url == DEMO_BASE_URL]
        if not waiting:
            return catalogue
        base_url = DEMO_BASE_URL.replace(":0/", f":{await self._port()}/")
        here = {name: catalogue.providers[name].model_copy(update={"base_url": base_url}) for name in waiting}
        return catalogue.having({**catalogue.providers, **here})

    async def close(self) -> None:
        """Stop serving."""
        if self._server is not None and self._serving is not None:
            self._server.force_exit = True
            self._server.exit()
            await self._serving

    async def _port(self) -> int:
        if self._server is None:
            self._server = _Server(
                uvicorn.Config(
                    Starlette(routes=[Route("/v1/chat/completions", _Model().complete, methods=["POST"])]),
                    host="127.0.0.1",
                    port=0,
                    log_config=None,
                    log_level="warning",  # uvicorn would log at INFO that it runs and how to stop it
                    access_log=False,
                    lifespan="off",
                )
            )
            self._serving = asyncio.create_task(self._server.serve())
        while not self._server.started:  # noqa: ASYNC110  (uvicorn has no event to wait for)
            await asyncio.sleep(0.01)
        port: int = self._server.servers[0].sockets[0].getsockname()[1]
        return port


class _Server(QuietServer):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Leave signals to the worker that this runs in."""
        yield


class _Model:
    """All demo models, and what one of them remembers."""

    def __init__(self) -> None:
        self._failed: set[bytes] = set()

    async def complete(self, request: Request) -> Response:
        """Answer a request, or fail as its model does."""
        body = await request.body()
        asked = orjson.loads(body)
        failure = self._failure(asked["model"], body)
        if failure is not None:
            return failure
        try:
            made = await asyncio.to_thread(answer, asked)  # beside the worker's loop: a schema may take a while
        except RefusedError as error:
            return _error(400, str(error), "invalid_request_error", param=error.param)
        about = {"id": "chatcmpl-demo", "created": 0, "model": asked["model"]}
        pace, broken = _PACES.get(asked["model"], _USUAL), asked["model"] == "demo-broken"
        if asked.get("stream"):
            with_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
            stream = _stream(about, made, pace, with_usage=with_usage, broken=broken)
            return StreamingResponse(stream, media_type="text/event-stream")
        await asyncio.sleep(pace.first + pace.token)
        whole = orjson.dumps({**about, "object": "chat.completion", "choices": made.whole(), "usage": made.usage})
        return Response(whole[: len(whole) // 2] if broken else whole, media_type="application/json")

    def _failure(self, model: str, body: bytes) -> Response | None:
        match model:
            case "demo-failing":
                return _error(500, "The model demo-failing always fails.", "server_error")
            case "demo-overloaded":
                headers = {"retry-after": "2"}
                return _error(
                    429, "The model demo-overloaded is always overloaded.", "rate_limit_error", headers=headers
                )
            case "demo-flaky" if self._is_first(body):
                return _error(503, "The model demo-flaky fails once for each request.", "server_error")
        return None

    def _is_first(self, body: bytes) -> bool:
        """Return whether a request comes for the first time, or for the first time since it was answered."""
        digest = hashlib.blake2b(body, digest_size=16).digest()
        if digest in self._failed:
            self._failed.discard(digest)
            return False
        if len(self._failed) >= _MOST_REMEMBERED:
            self._failed.clear()
        self._failed.add(digest)
        return True


def _error(
    status: int, message: str, kind: str, *, param: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    error = {"message": message, "type": kind, "param": param, "code": None}
    return JSONResponse({"error": error}, status, headers)


async def _stream(
    about: dict[str, Any], made: Answer, pace: _Pace, *, with_usage: bool, broken: bool
) -> AsyncIterator[bytes]:
    def event(choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        chunk = {**about, "object": "chat.completion.chunk", "choices": choices, "usage": usage}
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    await asyncio.sleep(pace.first)
    for number, choices in enumerate(made.rounds()):
        if number:
            await asyncio.sleep(pace.token)
        if broken and number == _ROUNDS_BEFORE_THE_BREAK:
            return
        for choice in choices:
            yield event([choice])
    if broken:
        return
    if with_usage:
        yield event([], made.usage)
    yield b"data: [DONE]\n\n"
