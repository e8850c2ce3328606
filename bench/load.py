"""A load generator that is cheap enough to share two cores with the system that it measures.

It runs in a process of its own, so that its CPU time counts for no system. `python -m bench.load` reads a `Plan` as one
line of JSON, warms up, prints `ready`, waits for a line, does the work and prints `done`. After the measurement it
checks every answer, streams word by word, and prints an `Outcome` as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import cast

import uvloop

from bench.upstream import Script

GRACE = 60
"""Seconds that requests in flight have to end after the last one has begun."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_FIRST_WORD = Script(1, 0).words()[0].strip().encode()


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests to send: their server, model, number and pace."""

    port: int
    path: str
    key: str
    client: str
    """The wire format that the clients speak: `chat` or `responses`; `jobs` submits chat requests as jobs."""
    model: str
    stream: bool
    concurrency: int
    total: int
    """The number of requests, without those of the warm-up."""
    seconds: float
    """Seconds after which no request begins."""
    warmup: int
    warmup_model: str
    headers: dict[str, str] = field(default_factory=dict)
    """Headers beside the usual ones."""
    spread: float = 0.0
    """Seconds over which the first requests begin, so that paced streams do not send all at the same moment."""


@dataclass(slots=True)
class Outcome:
    """The measured figures. Times are in milliseconds unless the name says seconds."""

    asked: int
    correct: int
    """Answers with status 200 and every word in its place; a stream also has its documented end."""
    seconds: float
    latency_p50: float
    latency_p95: float
    latency_p99: float
    first_p50: float
    """From the request to the first word of a stream."""
    first_p99: float
    chunks: int
    """Words that arrived; an event may have several."""
    events: int
    """Events with content that arrived: fewer than `chunks` if the system joins words."""
    errors: list[str] = field(default_factory=list)
    """The first few failures."""


@dataclass(slots=True)
class Answer:
    """One answer as it arrived, not yet checked."""

    status: int
    body: list[bytes]
    latency: float
    first: float


class Client(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    def __init__(self) -> None:
        self.open = False
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._begin()

    def _begin(self) -> None:
        self._buffer = b""
        self._status = 0
        self._left = 0
        """Bytes of the body or of the chunk that are still to come; -1 while the size of a chunk is unknown."""
        self._chunked = False
        self._body: list[bytes] = []
        self._started = self._first = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport. The class of uvloop's transports does not derive from asyncio's, but has its methods."""
        self._transport = cast("asyncio.Transport", transport)
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request in flight, if there is one."""
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed in the middle of an answer"))

    async def ask(self, request: bytes) -> Answer:
        """Send one request and return its whole answer; raise OSError if the connection breaks."""
        assert self._transport is not None
        self._begin()
        self._answer = asyncio.get_running_loop().create_future()
        self._started = time.perf_counter()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Take bytes of the answer, and end it when it is complete."""
        if not self._first and _FIRST_WORD in data:
            self._first = time.perf_counter()
        self._buffer = self._buffer + data if self._buffer else data
        if not self._status and not self._read_head():
            return
        if self._chunked:
            self._read_chunks()
        else:
            self._body.append(self._buffer)
            self._left -= len(self._buffer)
            self._buffer = b""
            if self._left <= 0:
                self._end()

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        self._status = int(self._buffer[9:12])
        self._chunked = _CHUNKED.search(self._buffer, 0, end + 2) is not None
        length = _LENGTH.search(self._buffer, 0, end + 2)
        self._left = -1 if self._chunked else int(length[1]) if length else 0
        self._buffer = self._buffer[end + 4 :]
        return True

    def _read_chunks(self) -> None:
        buffer, position = self._buffer, 0
        while True:
            line = buffer.find(b"\r\n", position)
            if line < 0:
                break
            size = int(buffer[position:line], 16)
            end = line + 2 + size
            if len(buffer) < end + 2:
                break
            if size == 0:
                self._buffer = b""
                self._end()
                return
            self._body.append(buffer[line + 2 : end])
            position = end + 2
        self._buffer = buffer[position:]

    def _end(self) -> None:
        now = time.perf_counter()
        if self._answer is not None and not self._answer.done():
            first = (self._first or now) - self._started
            self._answer.set_result(Answer(self._status, self._body, now - self._started, first))


def request_body(client: str, model: str, *, stream: bool) -> bytes:
    """Return the body of a request in the wire format of a client."""
    if client == "jobs":
        return b'{"request": %b}' % request_body("chat", model, stream=False)
    message = {"role": "user", "content": "Why does water that runs downhill turn a wheel? Answer in one sentence."}
    asked = "messages" if client == "chat" else "input"
    return json.dumps({"model": model, asked: [message], "temperature": 0.2, "stream": stream}).encode()


class Load:
    """One run of a plan."""

    def __init__(self, plan: Plan) -> None:
        """Take the plan; connections are opened later."""
        self._plan = plan
        self._clients: list[Client] = []
        self._begun = 0

    def _request(self, model: str) -> bytes:
        plan = self._plan
        body = request_body(plan.client, model, stream=plan.stream)
        head = (
            f"POST {plan.path} HTTP/1.1\r\nhost: 127.0.0.1:{plan.port}\r\nauthorization: Bearer {plan.key}\r\n"
            f"content-type: application/json\r\naccept: */*\r\ncontent-length: {len(body)}\r\n"
        )
        more = "".join(f"{name}: {value}\r\n" for name, value in plan.headers.items())
        return f"{head}{more}\r\n".encode() + body

    async def run(self, model: str, total: int, seconds: float, spread: float) -> tuple[list[Answer], list[str], float]:
        """Send `total` requests to `model`; return the answers, the failures, and the seconds that they took."""
        loop = asyncio.get_running_loop()
        request, answers, errors = self._request(model), list[Answer](), list[str]()
        # The server may close the idle connections of the warm-up at this moment, which would fail their first request.
        for client in self._clients:
            client.close()
        self._clients = [await self._connect() for _ in range(self._plan.concurrency)]
        self._begun = 0
        start = time.perf_counter()
        delays = random.Random(1)

        async def lane(index: int) -> None:
            await asyncio.sleep(delays.random() * spread)
            while self._begun < total and time.perf_counter() - start < seconds:
                self._begun += 1
                if not self._clients[index].open:
                    self._clients[index] = await self._connect()
                try:
                    answers.append(await self._clients[index].ask(request))
                except (OSError, ValueError) as error:
                    errors.append(f"{type(error).__name__}: {error}")
                    self._clients[index].close()

        lanes = [loop.create_task(lane(index)) for index in range(self._plan.concurrency)]
        ended, late = await asyncio.wait(lanes, timeout=seconds + GRACE, return_when=asyncio.FIRST_EXCEPTION)
        elapsed = time.perf_counter() - start
        for task in ended:
            task.result()
        for task in late:
            task.cancel()
            errors.append(f"no end of the answer {GRACE} s after the last request")
        return answers, errors, elapsed

    async def _connect(self) -> Client:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(Client, "127.0.0.1", self._plan.port)
        return client

    @property
    def asked(self) -> int:
        """Requests that began in the last run."""
        return self._begun


@dataclass(slots=True)
class Text:
    """The content of an answer."""

    text: str = ""
    events: int = 0
    ended: bool = False


def read_stream(body: bytes) -> Text:
    """Read a stream of `chat.completion.chunk` events as OpenAI documents them; raise ValueError on anything else."""
    said, finish, done = Text(), False, False
    for event in body.replace(b"\r\n", b"\n").split(b"\n\n"):
        if not event.startswith(b"data: "):
            continue
        if event == b"data: [DONE]":
            done = True
            continue
        for choice in json.loads(event[6:])["choices"]:
            finish = finish or choice.get("finish_reason") is not None
            if content := choice["delta"].get("content"):
                said.text += content
                said.events += 1
    said.ended = finish and done
    return said


def read_whole(body: bytes) -> Text:
    """Read a `chat.completion`; raise ValueError or KeyError on anything else."""
    return Text(json.loads(body)["choices"][0]["message"]["content"], 0, True)


def read_response_stream(body: bytes) -> Text:
    """Read the numbered events of a response as OpenAI documents them; raise ValueError on anything else."""
    said, number = Text(), 0
    for event in body.split(b"\n\n"):
        data = event.partition(b"data: ")[2]
        if not data:
            continue
        document = json.loads(data)
        if document["sequence_number"] != number or said.ended:
            raise ValueError(f"event {number} has the number {document['sequence_number']}")
        number += 1
        if document["type"] == "response.output_text.delta":
            said.text += document["delta"]
            said.events += 1
        said.ended = document["type"] == "response.completed"
    return said


def read_response(body: bytes) -> Text:
    """Read a `response`; raise ValueError or KeyError on anything else."""
    response = json.loads(body)
    text = "".join(part["text"] for item in response["output"] for part in item["content"])
    return Text(text, 0, response["status"] == "completed")


def read_job(body: bytes) -> Text:
    """Read the chat completion of an ended job; raise KeyError or TypeError if it has none."""
    job = json.loads(body)
    return Text(job["result"]["choices"][0]["message"]["content"], 0, job["status"] == "completed")


_READERS = {
    ("chat", True): read_stream,
    ("chat", False): read_whole,
    ("responses", True): read_response_stream,
    ("responses", False): read_response,
    ("jobs", False): read_job,
}


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value below which `share` of `values` lie (nearest rank), or 0.0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def judge(plan: Plan, asked: int, answers: list[Answer], errors: list[str], seconds: float) -> Outcome:
    """Check every answer against the model's script, and sum up."""
    script = Script.of(plan.model)
    assert script is not None
    words = script.words()
    expected, correct, chunks, events = "".join(words), list[Answer](), 0, 0
    for answer in answers:
        body = b"".join(answer.body)
        try:
            said = _READERS[plan.client, plan.stream](body)
        except (ValueError, KeyError, TypeError) as error:
            errors.append(f"status {answer.status}, {type(error).__name__}: {body[:200]!r}")
            continue
        events += said.events
        chunks += len(said.text.split())
        if answer.status == 200 and said.text == expected and said.ended:
            correct.append(answer)
        else:
            errors.append(f"status {answer.status}, {said.events} events, ended: {said.ended}: {body[-200:]!r}")
    return Outcome(
        asked=asked,
        correct=len(correct),
        seconds=seconds,
        latency_p50=1000 * percentile((answer.latency for answer in correct), 0.50),
        latency_p95=1000 * percentile((answer.latency for answer in correct), 0.95),
        latency_p99=1000 * percentile((answer.latency for answer in correct), 0.99),
        first_p50=1000 * percentile((answer.first for answer in correct), 0.50),
        first_p99=1000 * percentile((answer.first for answer in correct), 0.99),
        chunks=chunks,
        events=events,
        errors=errors[:5],
    )


async def main() -> None:
    """Run the plan on standard input, as the module's docstring describes."""
    plan = Plan(**json.loads(await asyncio.to_thread(sys.stdin.readline)))
    load = Load(plan)
    _, errors, _ = await load.run(plan.warmup_model, plan.warmup, plan.seconds, 0.0)
    print("ready", flush=True)
    if not await asyncio.to_thread(sys.stdin.readline):
        return
    answers, errors, seconds = await load.run(plan.model, plan.total, plan.seconds, plan.spread)
    print("done", flush=True)
    print(json.dumps(asdict(judge(plan, load.asked, answers, errors, seconds))), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
