"""A fake provider: a real HTTP server on loopback that speaks all wire formats, and misbehaves as it is told.

A test scripts what the next calls for a model get (`provider.script("fake-1", status(429), answer("hello"))`), one
behaviour a call; calls beyond the script get a deterministic answer made of the last message. Every call is kept in a
ledger with what came in and whether the client went away before its answer was over. The server runs on a loop and a
thread of its own, so it answers while a test blocks; futures and gates cross that border safely.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import struct
import threading
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from tests.connections import closing
from tests.fakes import formats, native_provider
from tests.fakes.formats import PATHS, Said
from tests.fakes.native_provider import Native
from tests.waiting import PATIENCE

T = TypeVar("T")
Json = dict[str, Any]

DONE: Final = b"data: [DONE]\n\n"
"""The last event of a stream that ends as it should. A script without it is half a stream."""

RESET: Final = object()
"""In a stream's script: reset the connection here, in the middle of the body."""


async def settled(future: Future[T], patience: float = PATIENCE) -> T:
    """Return the future's result when it has one.

    Raises:
        TimeoutError: it had none within `patience` seconds.
    """
    return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), patience)


class Gate:
    """A place where an answer stops until the test lets it go on."""

    def __init__(self) -> None:
        self.reached: Future[None] = Future()
        self._opened: Future[None] = Future()

    def release(self) -> None:
        """Let everyone through, now and later."""
        if not self._opened.done():
            self._opened.set_result(None)

    @property
    def is_open(self) -> bool:
        """Return whether it was released."""
        return self._opened.done()

    async def pass_through(self) -> None:
        """Stop here until `release`."""
        if not self.reached.done():
            self.reached.set_result(None)
        await asyncio.shield(asyncio.wrap_future(self._opened))


@dataclass(eq=False)
class Call:
    """One request that reached the provider."""

    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: Json
    number: int
    """Which call for its model this is, from 1."""
    kind: str = "openai"
    """The wire format of the path: the kind of provider, or `responses`."""
    arrived_at: float = field(default_factory=time.monotonic)
    disconnected: Future[float] = field(default_factory=Future)
    """Set, to the monotonic time in seconds, when the client disconnects before the answer is over."""
    answered: Future[None] = field(default_factory=Future)
    """Set when the answer is over, whichever it was."""

    @property
    def model(self) -> str:
        """The model that was asked for."""
        return str(self.body.get("model"))

    @property
    def streamed(self) -> bool:
        """Return whether a stream was asked for."""
        return self.body.get("stream") is True or ":streamGenerateContent" in self.path

    @property
    def wants_usage(self) -> bool:
        """Return whether the stream was asked to end with a usage chunk: OpenAI sends none unasked."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))


class Exchange:
    """What a behaviour answers through: from proper JSON down to single bytes."""

    def __init__(self, call: Call, writer: asyncio.StreamWriter) -> None:
        self.call = call
        self.keep_alive = True
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Write bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def whole(
        self, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with a body of known length."""
        fields = {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}
        await self.send(_head(status, fields) + body)

    async def json(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        """Answer with JSON."""
        await self.whole(status, json.dumps(body).encode(), "application/json", headers)

    async def open_stream(self) -> None:
        """Send the headers of an event stream, chunked."""
        fields = {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"}
        await self.send(_head(200, fields))

    async def stream(self, data: bytes) -> None:
        """Send bytes of an open stream as one HTTP chunk."""
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def close_stream(self) -> None:
        """End an open stream's body cleanly, whatever was in it."""
        await self.send(b"0\r\n\r\n")

    def reset(self) -> None:
        """Reset the connection: the client sees ECONNRESET, not an end of file."""
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        self.keep_alive = False


class _Kept(Exchange):
    """An exchange whose answer is kept rather than sent: a line's, in a batch."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.keep_alive = True
        self._data = b""

    async def send(self, data: bytes) -> None:
        self._data += data

    def reset(self) -> None:
        self._data = b""

    def answer(self) -> tuple[int, Json]:
        """Return status and JSON; an incomplete answer is a 500."""
        head, _, body = self._data.partition(b"\r\n\r\n")
        with contextlib.suppress(ValueError):
            return int(head.split(b" ", 2)[1]), json.loads(body)
        return 500, formats.error(self.call.kind, 500, "no answer")


Behaviour = Callable[[Exchange], Awaitable[None]]


def _head(status: int, fields: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def sse(value: Any) -> bytes:
    """Return one event with `value` as its JSON data."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def words(text: str) -> list[str]:
    """Split a text into pieces that join up to it again, as a model's tokens do."""
    return [word if index == 0 else " " + word for index, word in enumerate(text.split(" "))]


def chunk(delta: Json | str | None = None, *, finish: str | None = None, index: int = 0, **extra: Any) -> Json:
    """Return a `chat.completion.chunk` of one choice. A string is a content delta; `extra` goes beside `choices`.

    Its id differs in every chunk, as with some providers: a client must never see that.
    """
    if isinstance(delta, str):
        delta = {"content": delta}
    choice = {"index": index, "delta": delta or {}, "logprobs": None, "finish_reason": finish}
    return {**_envelope("chat.completion.chunk"), "choices": [choice], **extra}


def usage_chunk(usage: Json) -> Json:
    """Return the chunk without choices that carries a stream's usage."""
    return {**_envelope("chat.completion.chunk"), "choices": [], "usage": usage}


def usage_of(prompt: int, completion: int, **details: Any) -> Json:
    """Return OpenAI's usage object with these counts, and `details` beside them."""
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total, **details}


def _envelope(kind: str) -> Json:
    return {"id": f"chatcmpl-upstream{secrets.token_hex(8)}", "object": kind, "created": 1_700_000_000, "model": "fake"}


def echo_of(body: Json) -> str:
    """Return the text that an unscripted call is answered with."""
    messages = body.get("messages") or body.get("contents") or body.get("input") or [{}]
    last = messages[-1] if isinstance(messages[-1], dict) else {}
    content = last.get("content", last.get("parts"))
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return f"You said: {content}"


def answer(
    text: str | None = None,
    *,
    usage: Json | None = None,
    report_usage: bool = True,
    message: Json | None = None,
    choice: Json | None = None,
    extra: Json | None = None,
    finish: str = "stop",
    hold: Gate | None = None,
    thoughts: Sequence[str] = (),
    calls: Sequence[tuple[str, str, Json]] = (),
) -> Behaviour:
    """Answer well, whole or streamed as asked.

    Args:
        text: The content; by default the echo of the last message.
        usage: What is reported; by default a word counts as a token.
        report_usage: Whether usage is reported at all.
        message: Fields beside `role` and `content` of the message; in a stream, one delta after the text.
        choice: Fields beside `message`; in a stream, on the chunk that has them after the text.
        extra: Fields beside `choices`, on the whole answer or on every chunk.
        finish: The finish reason.
        hold: Wait here before the first byte of the answer.
        thoughts: Pieces of reasoning, in formats other than OpenAI's.
        calls: Tool calls by id, name and arguments, in formats other than OpenAI's.
    """

    async def behave(exchange: Exchange) -> None:
        call = exchange.call
        content = echo_of(call.body) if text is None else text
        counts = usage or usage_of(len(words(json.dumps(call.body.get("messages")))), len(words(content)))
        if hold is not None:
            await hold.pass_through()
        if call.kind != "openai":
            pieces = words(content) if content else []
            said = Said(call.model, pieces, counts if report_usage else None, finish, thoughts, calls)
            await _say(exchange, said)
            return
        if not call.streamed:
            body = {
                **_envelope("chat.completion"),
                "model": call.model,
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": content, "refusal": None, **(message or {})},
                        "logprobs": None,
                        "finish_reason": finish,
                        **(choice or {}),
                    }
                ],
                **(extra or {}),
            }
            await exchange.json(200, {**body, "usage": counts} if report_usage else body)
            return
        chunks: list[Json] = [chunk({"role": "assistant", "content": ""}), *map(chunk, words(content))]
        if message or choice:
            chunks.append(chunk(message or {}))
            chunks[-1]["choices"][0].update(choice or {})
        chunks.append(chunk(finish=finish))
        if report_usage and call.wants_usage:
            chunks.append(usage_chunk(counts))
        await exchange.open_stream()
        for piece in chunks:
            await exchange.stream(sse({**piece, "model": call.model, **(extra or {})}))
        await exchange.stream(DONE)
        await exchange.close_stream()

    return behave


async def _say(exchange: Exchange, said: Said) -> None:
    """Answer in a format other than chat completions."""
    call = exchange.call
    refusal = formats.problem(call.kind, call.headers, call.body)
    if refusal is not None:
        await exchange.json(400, formats.error(call.kind, 400, refusal))
        return
    choices = (call.body.get("generationConfig") or {}).get("candidateCount", 1)
    if not call.streamed:
        match call.kind:
            case "anthropic":
                body = formats.anthropic_whole(said)
            case "responses":
                body = formats.responses_whole(said)
            case _:
                body = formats.gemini_whole(said, choices)
        await exchange.json(200, body)
        return
    match call.kind:
        case "anthropic":
            events = formats.anthropic_events(said)
        case "responses":
            events = formats.responses_events(said)
        case _:
            events = formats.gemini_events(said, choices)
    await exchange.open_stream()
    for event in events:
        await exchange.stream(sse(event))
    await exchange.close_stream()


def stream(*script: Json | bytes | float | Gate | object) -> Behaviour:
    """Answer with an event stream, item by item, to the byte.

    A dict is an event's data, bytes are sent as they are, a number pauses for that many seconds, a `Gate` waits for
    the test, `RESET` resets the connection. The body ends after the last item: without `DONE` it is half a stream.
    """

    async def behave(exchange: Exchange) -> None:
        await exchange.open_stream()
        for item in script:
            if isinstance(item, dict):
                await exchange.stream(sse(item))
            elif isinstance(item, bytes):
                await exchange.stream(item)
            elif isinstance(item, int | float):
                await asyncio.sleep(item)
            elif isinstance(item, Gate):
                await item.pass_through()
            else:
                exchange.reset()
                return
        await exchange.close_stream()

    return behave


def status(code: int, error: Any = None, *, retry_after: float | str | None = None) -> Behaviour:
    """Answer with a status and the format's error object, or with `error` as the whole body."""
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}

    async def behave(exchange: Exchange) -> None:
        body = error
        if error is None:
            body = formats.error(exchange.call.kind, code, f"scripted {code}", retry_after=retry_after)
        await exchange.json(code, body, headers)

    return behave


def raw(body: bytes, *, code: int = 200, content_type: str = "application/json") -> Behaviour:
    """Answer with these bytes, whatever they are."""

    async def behave(exchange: Exchange) -> None:
        await exchange.whole(code, body, content_type)

    return behave


def html(code: int = 200) -> Behaviour:
    """Answer with a web page, as captive portals and broken proxies do."""
    return raw(b"<!doctype html><html><body><h1>It works!</h1></body></html>", code=code, content_type="text/html")


async def not_http(exchange: Exchange) -> None:
    """Answer in another protocol."""
    await exchange.send(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
    exchange.keep_alive = False


async def endless_header(exchange: Exchange) -> None:
    """Answer with a header field of a megabyte."""
    await exchange.send(_head(200, {"x-long": "x" * 2**20, "content-length": "0"}))
    exchange.keep_alive = False


async def broken_chunks(exchange: Exchange) -> None:
    """Answer with a chunked body whose chunks have no lengths."""
    await exchange.open_stream()
    await exchange.send(b"not a length\r\n" + sse(chunk("lost")) + b"\r\n")
    exchange.keep_alive = False


async def short_body(exchange: Exchange) -> None:
    """Promise more bytes than come."""
    await exchange.send(_head(200, {"content-type": "application/json", "content-length": "5000"}) + b'{"choices": [')
    exchange.keep_alive = False


def redirect(location: str, code: int = 307) -> Behaviour:
    """Answer that another address would know."""

    async def behave(exchange: Exchange) -> None:
        await exchange.whole(code, b"", "text/plain", {"location": location})

    return behave


async def hang(exchange: Exchange) -> None:
    """Never answer: wait until the client disconnects."""
    await asyncio.Event().wait()


async def drip(exchange: Exchange) -> None:
    """Answer well, but a byte at a time: never silent, never done."""
    text = "a byte at a time " * 50
    if exchange.call.streamed:
        body = b"".join([sse(chunk({"role": "assistant", "content": text})), sse(chunk(finish="stop")), DONE])
        kind = "text/event-stream"
    else:
        whole = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        body = json.dumps({**_envelope("chat.completion"), "choices": [whole]}).encode()
        kind = "application/json"
    await exchange.send(_head(200, {"content-type": kind, "content-length": str(len(body))}))
    for position in range(len(body)):
        await exchange.send(body[position : position + 1])
        await asyncio.sleep(0.1)


async def connection_reset(exchange: Exchange) -> None:
    """Reset the connection before the first byte of an answer."""
    exchange.reset()


class Provider:
    """The server. `base_url` is what a provider's `base_url` in headrace.toml is set to."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        """Lines of batches too; their path is the batch's, with their custom id."""
        self.native = Native(self._run_line)
        """The batch APIs."""
        self._scripts: defaultdict[str, deque[Behaviour]] = defaultdict(deque)
        self._defaults: dict[str, Behaviour] = {}
        self._arrivals: defaultdict[tuple[str, int], Future[Call]] = defaultdict(Future)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._lock = threading.Lock()
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake provider", daemon=True)
        self.host = "127.0.0.1"
        self.port = 0

    def start(self) -> None:
        """Listen on a free port of the loopback interface, or of another `host`."""
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connected, self.host, self.port, limit=2**24), self._loop
        ).result()
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Close every connection and end the thread."""

        async def close() -> None:
            assert self._server is not None
            self._server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, prefix: str = "") -> str:
        """Return the base URL; a prefix tells routes to the same server apart in the ledger's paths."""
        return f"http://{self.host}:{self.port}{prefix}/v1"

    def script(self, model: str, *behaviours: Behaviour) -> None:
        """Say what the next calls for this model get, one behaviour a call."""
        with self._lock:
            self._scripts[model].extend(behaviours)

    def always(self, model: str, behaviour: Behaviour) -> None:
        """Say what every call for this model gets once its script is used up."""
        self._defaults[model] = behaviour

    def calls_for(self, model: str) -> Sequence[Call]:
        """Return the calls that came for this model, oldest first."""
        with self._lock:
            return [call for call in self.calls if call.model == model]

    async def call(self, model: str, number: int = 1) -> Call:
        """Return the call of this number for the model, once it has arrived.

        Raises:
            TimeoutError: it did not arrive.
        """
        with self._lock:
            arrival = self._arrivals[model, number]
        return await settled(arrival)

    def _next(self, path: str, headers: Mapping[str, str], body: Json, kind: str) -> tuple[Call, Behaviour]:
        with self._lock:
            model = str(body.get("model"))
            self._counts[model] += 1
            call = Call(path, headers, body, self._counts[model], kind)
            self.calls.append(call)
            arrival = self._arrivals[model, call.number]
            script = self._scripts[model]
            behaviour = script.popleft() if script else self._defaults.get(model) or answer()
        arrival.set_result(call)
        return call, behaviour

    async def _run_line(self, kind: str, path: str, headers: Mapping[str, str], body: Json) -> tuple[int, Json]:
        """Answer a line of a batch as a call would be."""
        call, behaviour = self._next(path, headers, body, kind)
        kept = _Kept(call)
        await behaviour(kept)
        call.answered.set_result(None)
        return kept.answer()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                async with closing(writer):
                    while await self._exchange(reader, writer):
                        pass
        finally:
            self._connections.discard(task)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; return whether the connection may carry another."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        body = await _read_body(reader, headers)
        if native_provider.PATHS.fullmatch(path):
            return await _reply(writer, await self.native.handle(method, path, headers, body))
        kind, match = next(
            ((kind, match) for pattern, kind in PATHS.items() if (match := pattern.fullmatch(path))), ("", None)
        )
        if method != "POST" or match is None:
            message = {"message": f"no such path: {path}", "type": "invalid_request_error", "param": None, "code": None}
            await Exchange(Call(path, headers, {}, 0), writer).json(404, {"error": message})
            return True
        asked = json.loads(body)
        if kind == "gemini":
            asked["model"] = match["model"]
        call, behaviour = self._next(path, headers, asked, kind)
        exchange = Exchange(call, writer)

        # A client that waits for an answer sends nothing: any end of this read means that it disconnected.
        answering = asyncio.ensure_future(behaviour(exchange))
        watching = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
            gone = not answering.done() or isinstance(answering.exception(), ConnectionError)
            if gone and not call.disconnected.done():
                call.disconnected.set_result(time.monotonic())
            elif answering.exception() is not None:
                raise answering.exception() or AssertionError
            return not gone and exchange.keep_alive
        finally:
            for part in (answering, watching):
                part.cancel()
            await asyncio.gather(answering, watching, return_exceptions=True)
            call.answered.set_result(None)


async def _reply(writer: asyncio.StreamWriter, reply: native_provider.Reply) -> bool:
    """Answer what a batch API was asked; return whether the connection may carry another."""
    fields = {"content-type": reply.content_type, "content-length": str(len(reply.body))}
    if reply.cut_at is not None:
        writer.write((_head(reply.status, fields) + reply.body)[: reply.cut_at])
        return False
    writer.write(_head(reply.status, fields) + reply.body)
    await writer.drain()
    return True


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


@contextlib.contextmanager
def running_provider(host: str = "127.0.0.1") -> Iterator[Provider]:
    """Yield a provider that listens, and stop it afterwards."""
    provider = Provider()
    provider.host = host
    provider.start()
    try:
        yield provider
    finally:
        provider.stop()
