"""The `demo` model's provider: a small HTTP server that speaks OpenAI's format, so that a first run needs no account.

It answers on a loopback port inside the worker, and the worker calls it as it calls any provider.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from headrace.catalogue import DEMO_BASE_URL, DEMO_PROVIDER, Catalogue

_SECONDS_A_WORD = 0.03
_SAYING = (
    "You said: {said} This answer came from the demo model, through the same path as any other: the API committed your"
    " job to Postgres, Celery woke a worker over Redis, the worker called this little provider over HTTP, and each word"
    " reached you as a delta."
)


class DemoUpstream:
    """The server of the demo model; it starts when a catalogue first needs it."""

    def __init__(self) -> None:
        """Serve nothing yet."""
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def place(self, catalogue: Catalogue) -> Catalogue:
        """Return the catalogue with the demo model's port filled in, if it has the model."""
        provider = catalogue.providers.get(DEMO_PROVIDER)
        if provider is None or provider.base_url != DEMO_BASE_URL:
            return catalogue
        port = await self._port()
        here = provider.model_copy(update={"base_url": DEMO_BASE_URL.replace(":0/", f":{port}/")})
        return catalogue.model_copy(update={"providers": {**catalogue.providers, DEMO_PROVIDER: here}})

    async def close(self) -> None:
        """Stop serving."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = self._server.force_exit = True
            await self._serving

    async def _port(self) -> int:
        if self._server is None:
            self._server = _Server(
                uvicorn.Config(
                    Starlette(routes=[Route("/v1/chat/completions", _complete, methods=["POST"])]),
                    host="127.0.0.1",
                    port=0,
                    log_config=None,
                    access_log=False,
                    lifespan="off",
                )
            )
            self._serving = asyncio.create_task(self._server.serve())
        while not self._server.started:  # noqa: ASYNC110  (uvicorn has no event to wait for)
            await asyncio.sleep(0.01)
        port: int = self._server.servers[0].sockets[0].getsockname()[1]
        return port


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Leave signals to the worker that this runs in."""
        yield


async def _complete(request: Request) -> Response:
    asked = orjson.loads(await request.body())
    words = re.findall(r"\S+\s*", _SAYING.format(said=_last_text(asked["messages"])))
    limit = asked.get("max_completion_tokens") or asked.get("max_tokens") or len(words)
    finish_reason = "stop" if limit >= len(words) else "length"
    words = words[:limit]
    prompt_tokens = sum(len(str(message.get("content", "")).split()) + 3 for message in asked["messages"])
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": len(words),
        "total_tokens": prompt_tokens + len(words),
    }
    about = {"id": "chatcmpl-demo", "created": 0, "model": "demo"}
    if asked.get("stream"):
        stream = _stream(about, words, finish_reason, usage)
        return StreamingResponse(stream, media_type="text/event-stream")
    await asyncio.sleep(_SECONDS_A_WORD)
    message = {"role": "assistant", "content": "".join(words), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    return JSONResponse({**about, "object": "chat.completion", "choices": [choice], "usage": usage})


async def _stream(
    about: dict[str, Any], words: list[str], finish_reason: str, usage: dict[str, int]
) -> AsyncIterator[bytes]:
    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        return (
            b"data: " + orjson.dumps({**about, "object": "chat.completion.chunk", "choices": choices, **more}) + b"\n\n"
        )

    yield event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
    for word in words:
        await asyncio.sleep(_SECONDS_A_WORD)
        yield event([{"index": 0, "delta": {"content": word}, "finish_reason": None}])
    yield event([{"index": 0, "delta": {}, "finish_reason": finish_reason}])
    yield event([], usage=usage)
    yield b"data: [DONE]\n\n"


def _last_text(messages: list[dict[str, Any]]) -> str:
    content = messages[-1].get("content") or ""
    if isinstance(content, str):
        return content[:500]
    return " ".join(part.get("text", "") for part in content)[:500]
