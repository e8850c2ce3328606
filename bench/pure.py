"""The pure parts of the hot path, each as an operation that repeats: `bench.instructions` counts what they take.

`python -P bench/pure.py` runs them on the `headrace` of its interpreter's venv, which may be that of another commit. So
this module imports nothing of `bench`, and each operation imports its functions by itself: an operation whose functions
a commit lacks is skipped, and the others run.

It reads lines of a name, a tab and a number of repetitions. For each it forks a process that does so many, and prints
the process's id, or 0 for an operation that the commit lacks. The forks share one start, hash seed and layout of
memory, so two of them differ only by their repetitions and by what the parent does between them.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from typing import Any

_JOB = "job_019a5e0c3d7f4b1e8a2c6d9f0b3e5a71"
_CREATED = 1_763_900_000
_WORDS = 100
_WARM = 20
_MESSAGE = {"role": "user", "content": "Why does water that runs downhill turn a wheel? Answer in one sentence."}
_CHAT = {"model": "fake", "messages": [_MESSAGE], "temperature": 0.2, "stream": True}
_RESPONSE = {"model": "fake", "input": [_MESSAGE], "temperature": 0.2, "stream": True}
_USAGE = {"prompt_tokens": 9, "completion_tokens": _WORDS, "total_tokens": 9 + _WORDS}

Operation = Callable[[], object]
PARTS: dict[str, Callable[[], Operation]] = {}
"""What prepares each operation, by the operation's name."""


def _part(name: str) -> Callable[[Callable[[], Operation]], Callable[[], Operation]]:
    def register(prepare: Callable[[], Operation]) -> Callable[[], Operation]:
        PARTS[name] = prepare
        return prepare

    return register


def _chunk(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    """Return a chunk as the fake upstream sends it."""
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "created": _CREATED,
        "model": "fake",
        "service_tier": "default",
        "system_fingerprint": "fp_fake",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
        "usage": None,
    }


def _chunks() -> list[dict[str, Any]]:
    words = [_chunk({"content": f"tok{number} "}) for number in range(_WORDS)]
    return [_chunk({"role": "assistant", "content": ""}), *words, _chunk({}, "stop")]


def _completion() -> dict[str, Any]:
    text = "".join(f"tok{number} " for number in range(_WORDS))
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    return {
        "model": "fake",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": _USAGE,
        "service_tier": "default",
        "system_fingerprint": "fp_fake",
    }


def _bytes(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _job() -> Any:
    return SimpleNamespace(id=_JOB, created=_CREATED, background=False)


@_part("parse a request, chat")
def _parse_chat() -> Operation:
    from api.jobs.asked import Asked

    body = _bytes(_CHAT)
    return lambda: Asked.parse(body)


@_part("parse a request, responses")
def _parse_responses() -> Operation:
    from api.jobs.asked import Asked
    from headrace.formats.json_document import parse_json
    from headrace.formats.responses.request import check_response_request

    body = _bytes(_RESPONSE)

    def run() -> object:
        document = parse_json(body)
        return Asked.of_response(body, document, check_response_request(document))

    return run


@_part("read an SSE event")
def _read_sse() -> Operation:
    from headrace.providers.sse import EventReader

    event = b"data: " + _bytes(_chunk({"content": "tok1 "})) + b"\n\n"
    feed = EventReader().feed
    return lambda: feed(event)


@_part("parse a chunk")
def _parse_chunk() -> Operation:
    from headrace.formats.chat.normaliser import Normaliser
    from headrace.formats.chat.upstream import parse_stream

    parse, exact = parse_stream().parse, Normaliser().chunk
    exact(_chunk({"role": "assistant", "content": ""}))
    data = _bytes(_chunk({"content": "tok1 "}))
    return lambda: [exact(chunk) for chunk in parse(data)]


@_part("fold a stream of 100 chunks")
def _fold() -> Operation:
    from headrace.formats.chat.fold import Fold

    chunks = _chunks()

    def run() -> object:
        fold = Fold()
        for chunk in chunks:
            fold.add(chunk)
        return fold.completion(id="chatcmpl-fake", created=_CREATED, model="fake")

    return run


def _render_stream(format_name: str, document: dict[str, Any]) -> Operation:
    from importlib import import_module

    client = import_module(f"headrace.formats.{format_name}.client")
    job, chunks, completion = _job(), _chunks(), _completion()

    def run() -> object:
        renderer = client.renderer(job, document)
        for chunk in chunks:
            renderer.render([chunk])
        return renderer.end(completion)

    return run


@_part("render a stream of 100 chunks, chat")
def _render_chat_stream() -> Operation:
    return _render_stream("chat", _CHAT)


@_part("render a stream of 100 chunks, responses")
def _render_responses_stream() -> Operation:
    return _render_stream("responses", _RESPONSE)


def _render_whole(format_name: str, document: dict[str, Any]) -> Operation:
    from importlib import import_module

    import orjson

    client = import_module(f"headrace.formats.{format_name}.client")
    job, completion = _job(), _completion()
    return lambda: orjson.dumps(client.renderer(job, document).whole(completion))


@_part("render a whole answer, chat")
def _render_chat_whole() -> Operation:
    return _render_whole("chat", _CHAT)


@_part("render a whole answer, responses")
def _render_responses_whole() -> Operation:
    return _render_whole("responses", _RESPONSE)


def _pass_on(format_name: str, document: dict[str, Any]) -> Operation:
    from headrace.formats.registry import CLIENT_FORMATS
    from worker.exchange import Exchange

    pieces = [b"data: " + _bytes(chunk) + b"\n\n" for chunk in _chunks()] + [b"data: [DONE]\n\n"]
    provider = SimpleNamespace(secret=lambda: None, base_url="http://127.0.0.1", limit_parameter=None)
    route: Any = SimpleNamespace(provider=provider, format="chat", model="fake", output_limit=None)
    job: Any = SimpleNamespace(**vars(_job()), size=1000, trace_context=None, batch_id=None, streamed=True)

    async def pass_on(take: Callable[[bytes], object]) -> None:
        for piece in pieces:
            if take(piece):
                return

    async def arrive() -> AsyncGenerator[bytes, None]:  # as earlier commits read
        for piece in pieces:
            yield piece

    async def is_stream() -> bool:
        return True

    answer = SimpleNamespace(pass_on=pass_on, pieces=arrive, is_stream=is_stream)
    client: Any = SimpleNamespace(call=lambda *_, **__: nullcontext(answer))

    def run() -> object:
        lines: list[bytes] = []
        renderer = CLIENT_FORMATS[format_name].renderer(job, document)  # type: ignore[index]
        exchange = Exchange(client, job, route, _CHAT, renderer=renderer, pass_on=lines.extend)
        with suppress(StopIteration):  # nothing in it waits
            exchange.complete().send(None)
        assert len(lines) >= _WORDS
        return lines

    return run


@_part("pass on a stream of 100 events, chat")
def _pass_on_chat() -> Operation:
    return _pass_on("chat", _CHAT)


@_part("pass on a stream of 100 events, responses")
def _pass_on_responses() -> Operation:
    return _pass_on("responses", _RESPONSE)


@_part("frame an event, and read the frame")
def _frame() -> Operation:
    from headrace.events.wire import Frame, unpack

    line = _bytes(_chunk({"content": "tok1 "}))
    return lambda: list(unpack(Frame(_JOB, 1, 7, "delta", (line,)).pack()))


@_part("write a chunk's event, chat")
def _write_chat() -> Operation:
    from api.jobs.chunks import Chunks
    from headrace.events.job_events import Cursor, Deltas

    render = Chunks(_JOB, _CREATED, include_usage=False).render
    event = Deltas(Cursor(1, 7), (_bytes(_chunk({"content": "tok1 "})),))
    return lambda: render(event)


@_part("write a chunk's event, responses")
def _write_responses() -> Operation:
    from headrace.formats.responses.client import renderer
    from headrace.formats.responses.events import render_line

    chunks = _chunks()
    line = renderer(_job(), _RESPONSE).render(chunks[:2])[-1]
    return lambda: render_line(line, 7)


def _prepared() -> dict[str, Operation]:
    """Return the operations that this commit has, each run as often as Python takes to specialise its code."""
    found = {}
    for name, prepare in PARTS.items():
        try:
            run = prepare()
            _repeat(run, _WARM)
        except (ImportError, AttributeError, TypeError) as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        else:
            found[name] = run
    return found


def _repeat(run: Operation, times: int) -> None:
    for _ in range(times):
        run()


def main() -> None:
    """Read what to run, and run it."""
    runs = _prepared()
    # When the collector runs depends on all that happened before, which would show as a spread.
    gc.disable()
    gc.freeze()
    for line in sys.stdin:
        name, times = line.rstrip("\n").rsplit("\t", 1)
        if name not in runs:
            print(0, flush=True)
            continue
        child = os.fork()
        if child == 0:
            _repeat(runs[name], int(times))
            os._exit(0)
        os.waitpid(child, 0)
        print(child, flush=True)


if __name__ == "__main__":
    main()
