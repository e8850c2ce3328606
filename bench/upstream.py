"""A fake upstream of three formats that costs next to nothing beside the system in front of it.

It speaks just enough HTTP/1.1 for keep-alive clients, and renders every answer once per model name. The name is the
script: `fake` answers at once, `fake-d20` after 20 ms, `fake-s100` says 100 words, and `fake-s100-p20` waits 20 ms
between two of them. Only whole answers are delayed. A stream at full speed is one write; each chunk of a paced one is a
write of its own. The formats are OpenAI's `chat.completion` and `chat.completion.chunk`, and in streams of models named
`anthropic…` and `gemini…` those providers'.

`python -m bench.upstream` prints its port as one line of JSON and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import uvloop

TICK = 0.002
"""Seconds between two looks at the paced streams: a tenth of the shortest pace that is measured."""

_DEFAULT_CHUNKS = 10
_MAX_CHUNKS = 100_000
_MODEL = re.compile(
    r"(?:fake|anthropic|gemini)(?:-s(?P<chunks>\d{1,6}))?(?:-p(?P<pace>\d{1,6}))?(?:-d(?P<delay>\d{1,6}))?"
)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_GEMINI_PATH = re.compile(rb"/models/([^/:]+):streamGenerateContent")
_ID = "chatcmpl-fake"
_CREATED = 1_700_000_000
_PROMPT_TOKENS = 9


@dataclass(frozen=True, slots=True)
class Script:
    """The script in a model's name. Times are in milliseconds."""

    chunks: int
    """The number of words."""
    pace: int
    """The time between two words of a stream."""
    delay: int = 0
    """The time between a request and its whole answer."""

    @classmethod
    def of(cls, model: str) -> Script | None:
        """Return the script that `model` names, or None for a name of another kind."""
        match = _MODEL.fullmatch(model)
        if match is None:
            return None
        chunks = min(int(match["chunks"] or _DEFAULT_CHUNKS), _MAX_CHUNKS)
        return cls(chunks, int(match["pace"] or 0), int(match["delay"] or 0))

    def words(self) -> list[str]:
        """Return the words of an answer, one for each chunk. Each has its number, so that a lost word is noticed."""
        return [f"tok{index} " for index in range(self.chunks)]


@dataclass(frozen=True, slots=True)
class Reel:
    """A stream's bytes, rendered once: its beginning, a frame for each word, and its end."""

    opening: bytes
    frames: list[bytes]
    ending: bytes
    coalesced: bytes


def _usage(script: Script) -> dict[str, int]:
    return {
        "prompt_tokens": _PROMPT_TOKENS,
        "completion_tokens": script.chunks,
        "total_tokens": _PROMPT_TOKENS + script.chunks,
    }


def _http(status: str, body: Any) -> bytes:
    data = json.dumps(body, separators=(",", ":")).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


@lru_cache(maxsize=64)
def whole(model: str) -> bytes:
    """Render the HTTP answer of a request that does not stream."""
    script = Script.of(model)
    if script is None:
        error = {"message": f"no model {model!r}", "type": "invalid_request_error", "param": "model", "code": None}
        return _http("404 Not Found", {"error": error | {"code": "model_not_found"}})
    content = "".join(script.words())
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
    return _http(
        "200 OK",
        {
            "id": _ID,
            "object": "chat.completion",
            "created": _CREATED,
            "model": model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": _usage(script),
            "service_tier": "default",
            "system_fingerprint": "fp_fake",
        },
    )


def _frame(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


def _event(body: dict[str, Any]) -> bytes:
    return _frame(json.dumps(body, separators=(",", ":")).encode())


def _reel(opening: bytes, frames: list[bytes], ending: bytes) -> Reel:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    opening, ending = head + opening, ending + b"0\r\n\r\n"
    return Reel(opening, frames, ending, opening + b"".join(frames) + ending)


@lru_cache(maxsize=64)
def reel(model: str, include_usage: bool) -> Reel | None:
    """Render the HTTP answer of a request that streams, or None for an unknown model."""
    script = Script.of(model)
    if script is None:
        return None
    if model.startswith("anthropic"):
        return _anthropic_reel(model, script)
    if model.startswith("gemini"):
        return _gemini_reel(model, script)

    def chunk(choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        body: dict[str, Any] = {
            "id": _ID,
            "object": "chat.completion.chunk",
            "created": _CREATED,
            "model": model,
            "service_tier": "default",
            "system_fingerprint": "fp_fake",
            "choices": choices,
        }
        if include_usage:
            body["usage"] = usage
        return _event(body)

    def choice(delta: dict[str, Any], finish_reason: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]

    ending = chunk(choice({}, "stop"))
    if include_usage:
        ending += chunk([], _usage(script))
    return _reel(
        chunk(choice({"role": "assistant", "content": "", "refusal": None})),
        [chunk(choice({"content": word})) for word in script.words()],
        ending + _frame(b"[DONE]"),
    )


def _anthropic_reel(model: str, script: Script) -> Reel:
    usage = {"input_tokens": _PROMPT_TOKENS, "output_tokens": 1}
    message = {"id": "msg_fake", "type": "message", "role": "assistant", "model": model, "content": [], "usage": usage}
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    return _reel(
        _event({"type": "message_start", "message": message})
        + _event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        [
            _event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}})
            for word in script.words()
        ],
        _event({"type": "content_block_stop", "index": 0})
        + _event({"type": "message_delta", "delta": ended, "usage": {"output_tokens": script.chunks}})
        + _event({"type": "message_stop"}),
    )


def _gemini_reel(model: str, script: Script) -> Reel:
    def event(parts: list[dict[str, str]], tokens: int, **more: str) -> bytes:
        usage = {"promptTokenCount": _PROMPT_TOKENS, "candidatesTokenCount": tokens}
        return _event(
            {
                "candidates": [{"content": {"parts": parts, "role": "model"}, "index": 0, **more}],
                "usageMetadata": {**usage, "totalTokenCount": _PROMPT_TOKENS + tokens},
                "modelVersion": model,
                "responseId": "fake",
            }
        )

    frames = [event([{"text": word}], index + 1) for index, word in enumerate(script.words())]
    return _reel(b"", frames, event([{"text": ""}], script.chunks, finishReason="STOP"))


class PacedStream:
    """One answer on its way out, a frame at a time."""

    __slots__ = ("connection", "period", "position", "reel")

    def __init__(self, connection: Connection, rendered: Reel, period: int) -> None:
        """Start at the first word; `period` is in ticks."""
        self.connection = connection
        self.reel = rendered
        self.period = period
        self.position = 0

    def step(self) -> bool:
        """Write the next frame, and tell whether there is another."""
        transport = self.connection.transport
        if transport is None:
            return False
        if self.position < len(self.reel.frames):
            transport.write(self.reel.frames[self.position])
            self.position += 1
            return True
        transport.write(self.reel.ending)
        self.connection.finished()
        return False


class Wheel:
    """Every paced stream on one timer, as a timer for each would cost more than writing."""

    def __init__(self) -> None:
        self._due: dict[int, list[PacedStream]] = {}
        self._streams = 0
        self._done = 0

    def add(self, stream: PacedStream) -> None:
        """Step `stream` once a period from now on, until it has ended."""
        loop = asyncio.get_running_loop()
        now = int(loop.time() / TICK)
        if not self._streams:
            self._done = now
            loop.call_at((now + 1) * TICK, self._turn)
        self._streams += 1
        self._due.setdefault(max(now, self._done) + stream.period, []).append(stream)

    def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        now = int(loop.time() / TICK)
        # A late turn makes up for missed ticks, and a stream's next step counts from the due time of this one.
        for tick in range(self._done + 1, now + 1):
            for stream in self._due.pop(tick, ()):
                if stream.step():
                    self._due.setdefault(tick + stream.period, []).append(stream)
                else:
                    self._streams -= 1
        self._done = max(self._done, now)
        if self._streams:
            loop.call_at((self._done + 1) * TICK, self._turn)


class Connection(asyncio.Protocol):
    """One client's connection: requests in, one answer at a time out."""

    def __init__(self, wheel: Wheel) -> None:
        """Share `wheel` with every other connection."""
        self.transport: asyncio.Transport | None = None
        self._wheel = wheel
        self._buffer = b""
        self._answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport. The class of uvloop's transports does not derive from asyncio's, but has its methods."""
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """End the paced answer, if one is under way."""
        self.transport = None

    def data_received(self, data: bytes) -> None:
        """Answer every complete request; keep the rest."""
        self._buffer = self._buffer + data if self._buffer else data
        self._advance()

    def finished(self) -> None:
        """Take the next request after the end of a paced or delayed answer."""
        self._answering = False
        self._advance()

    def _answer_late(self, model: str) -> None:
        if self.transport is not None:
            self.transport.write(whole(model))
            self.finished()

    def _advance(self) -> None:
        while self.transport is not None and not self._answering:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            match = _LENGTH.search(self._buffer, 0, end + 2)
            body_end = end + 4 + (int(match[1]) if match else 0)
            if len(self._buffer) < body_end:
                return
            line, body = self._buffer[: self._buffer.index(b"\r\n")], self._buffer[end + 4 : body_end]
            self._buffer = self._buffer[body_end:]
            self._answer(self.transport, line, body)

    def _answer(self, transport: asyncio.Transport, line: bytes, body: bytes) -> None:
        method, path, _ = line.split(b" ", 2)
        gemini = _GEMINI_PATH.search(path)
        if method != b"POST" or not (gemini or path.endswith((b"/chat/completions", b"/messages"))):
            transport.write(_http("200 OK", {"object": "list", "data": []}))
            return
        request = json.loads(body)
        model = gemini[1].decode() if gemini else request["model"]
        options = request.get("stream_options") or {}
        streams = gemini or request.get("stream")
        rendered = reel(model, bool(options.get("include_usage"))) if streams else None
        script = Script.of(model)
        if rendered is None and script is not None and script.delay:
            self._answering = True
            asyncio.get_running_loop().call_later(script.delay / 1000, self._answer_late, model)
        elif rendered is None or script is None:
            transport.write(whole(model))
        elif not script.pace:
            transport.write(rendered.coalesced)
        else:
            self._answering = True
            transport.write(rendered.opening)
            stream = PacedStream(self, rendered, max(1, round(script.pace / 1000 / TICK)))
            stream.step()
            self._wheel.add(stream)


async def serve() -> None:
    """Listen on a free loopback port, print it, and serve until standard input ends."""
    loop = asyncio.get_running_loop()
    wheel = Wheel()
    server = await loop.create_server(lambda: Connection(wheel), "127.0.0.1", 0, backlog=4096)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(serve())
