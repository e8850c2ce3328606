"""Chat answers for the tests of responses: chunks, the completion that they fold to, and the response of both."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from headrace.formats.chat.fold import Fold
from headrace.formats.responses import client, events

REQUEST: dict[str, Any] = {"model": "m", "input": "Hi"}
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


@dataclass(frozen=True)
class Job:
    id: str = "job_" + "5" * 32
    created: int = 1_700_000_000
    background: bool = False


@dataclass(frozen=True)
class Answer:
    """What a client has of an answer: the lines of the log, and the whole response."""

    lines: list[bytes]
    response: dict[str, Any]
    document: dict[str, Any] = field(default_factory=lambda: REQUEST)
    job: Job = Job()

    @property
    def log(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.lines]

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every event that a client gets, by its number."""
        facts: dict[str, Any] = {"job_id": self.job.id, "created": self.job.created, "background": self.job.background}
        lines = [*events.opening(self.document, **facts), *self.lines, events.terminal(self.response)]
        return [data_of(events.render_line(line, number)) for number, line in enumerate(lines)]


def data_of(event: bytes) -> dict[str, Any]:
    """Return the data of a server-sent event, which has a name, an id and one line of data."""
    name, number, data = event.removesuffix(b"\n\n").split(b"\n")
    document: dict[str, Any] = orjson.loads(data.removeprefix(b"data: "))
    assert name == b"event: " + document["type"].encode()
    assert number == b"id: %d" % document["sequence_number"]
    return document


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta or {}, "logprobs": logprobs, "finish_reason": finish}
    return {"model": "m", "choices": [choice]}


def call(index: int, arguments: str, *, name: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a delta with a piece of a call; the first one has the name."""
    head = {} if name is None else {"id": f"call_{index}", "type": "function"}
    said = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    return {"tool_calls": [{"index": index, **head, "function": said, **more}]}


def folded(chunks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    fold = Fold()
    for one in copy.deepcopy(list(chunks)):
        fold.add(one)
    return {"usage": USAGE, **fold.completion(id="chatcmpl-1", created=1, model=chunks[0].get("model", "m"))}


def streamed(
    *chunks: dict[str, Any],
    document: Mapping[str, Any] = REQUEST,
    log: Sequence[bytes] = (),
    job: Job = Job(),
    from_chat: bool = False,
) -> Answer:
    """Return the response of an answer whose chunks come one by one."""
    renderer = client.renderer(job, document, log=log, from_chat=from_chat)
    lines = list(log)
    for one in copy.deepcopy(chunks):
        lines += renderer.render([one])
    last, response = renderer.end(folded(chunks))
    return Answer([*lines, *last], response, dict(document), job)


def without_time(response: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in response.items() if name != "completed_at"}


def whole(
    completion: dict[str, Any],
    document: Mapping[str, Any] = REQUEST,
    *,
    log: Sequence[bytes] = (),
    from_chat: bool = False,
) -> Answer:
    """Return the response of an answer that is not streamed."""
    lines, response = client.renderer(Job(), document, log=log, from_chat=from_chat).end(completion)
    unread = client.renderer(Job(), document, log=log, from_chat=from_chat).whole(completion)
    assert without_time(unread) == without_time(response)
    assert list(unread["output"][0]) == list(response["output"][0])
    return Answer([*log, *lines], response, dict(document))
