"""The clients' requests and answers. Each request has its own mark, which its answer repeats."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.errors import AnswerInterruptedError
from tests.e2e.jobs import FINAL
from tests.faults.chaos.turns import Piece
from tests.faults.chaos.upstreams import MODELS, Model

Json = dict[str, Any]

ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
"""The types of a response's last event."""

_MARK = re.compile(r"<[a-z]+-[0-9]{6}(?:\.[0-9]+)?>")
_CALL = re.compile(r"#([0-9]+)(?= |$)")


def marks_in(text: str) -> set[str]:
    """Return the marks of all requests that a text has anything of."""
    return set(_MARK.findall(text))


def own_mark(text: str) -> str:
    """Return the mark of the request that a text is of, "" for none: what it repeats of earlier ones comes first."""
    marks = _MARK.findall(text)
    return marks[-1] if marks else ""


def calls_in(text: str) -> set[str]:
    """Return the numbers of all calls to providers whose words a text has: each word tells its own."""
    return set(_CALL.findall(text))


@dataclass(slots=True)
class Ask:
    """A request for a completion, or a line of a batch."""

    mark: str
    account: str
    body: Json
    keyed: bool = False
    """Sent with an Idempotency-Key, the mark."""
    line: bool = False
    kept: bool = False
    """Not to be sent with `store: false`: something later refers to its answer."""
    answers: list[str] = field(default_factory=list)
    """Whole texts that came for it."""
    own: Sequence[Piece] = ()
    """Of a response: what its provider is told beside the context."""
    context: Sequence[Piece] = ()
    """Of a response in a chain: all that was said before, which comes first."""
    conversation: str | None = None
    """Of a response in a conversation, whose items come first."""
    heard: frozenset[str] = frozenset()
    """Marks of all turns of the conversation that were over when this one was sent."""
    sent: int = 0
    """How often it was sent."""
    refused: int = 0
    """How often its answer was 503, which says that nothing was accepted."""

    @property
    def model(self) -> Model:
        """The model that was asked for."""
        return MODELS[self.body["model"]]

    @property
    def format(self) -> str:
        """The format that the client speaks."""
        return "chat" if "messages" in self.body else "responses"

    @property
    def path(self) -> str:
        """Where it is sent."""
        return "/chat/completions" if self.format == "chat" else "/responses"

    @property
    def background(self) -> bool:
        """Whether no client waits for the answer."""
        return self.line or self.body.get("background") is True

    @property
    def webhook(self) -> str | None:
        """The URL that is notified of the end, if any."""
        found: str | None = self.body.get("webhook")
        return found


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that came instead of an answer, or within a stream."""

    mark: str
    status: int
    code: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Cut:
    """A request whose connection broke. Times are by the clock."""

    mark: str
    began: float
    ended: float
    answering: bool
    """Its answer had begun."""


@dataclass(slots=True)
class Stream:
    """The events of a streamed completion that came over one connection."""

    mark: str
    text: str = ""
    finishes: int = 0
    """Chunks with a finish reason."""
    done: bool = False
    error: Json | None = None
    late: int = 0
    """Events after its end."""

    def take(self, data: str) -> None:
        """Note an event's data."""
        self.late += self.done or self.error is not None
        if data == "[DONE]":
            self.done = True
            return
        event = json.loads(data)
        if "error" in event:
            self.error = event["error"]
            return
        for choice in event["choices"]:
            self.text += choice["delta"].get("content") or ""
            self.finishes += choice["finish_reason"] is not None


@dataclass(slots=True)
class Reading:
    """The events of a job that one subscriber got: `(event id, name, data)` in order, over all its connections."""

    job_id: str
    mark: str
    events: list[tuple[str | None, str, Json]] = field(default_factory=list)
    connections: int = 0


@dataclass(slots=True)
class ResponseReading:
    """The events of a response that one reader got, over all its connections."""

    mark: str
    response_id: str
    foreground: bool = False
    after: int = -1
    """The number of the event after which the reader begins."""
    events: list[tuple[int, str]] = field(default_factory=list)
    """Numbers, and events as they came."""
    connections: int = 0
    final: Json | None = None
    """The response that the last event has."""
    error: Json | None = None
    """What the stream said that ended before the response."""
    late: int = 0
    """Events after its end."""

    @property
    def last(self) -> int:
        """The number of the last event that it has."""
        return self.events[-1][0] if self.events else self.after

    def take(self, event: str) -> None:
        """Note an event."""
        self.late += self.final is not None or self.error is not None
        data = json.loads(event[event.index("data: ") + 6 :])
        error = data if data["type"] == "error" else (data.get("response") or {}).get("error")
        if data["type"] == "error" or (
            self.foreground and error is not None and error["message"] == AnswerInterruptedError.default
        ):
            self.error = error
            return
        self.events.append((data["sequence_number"], event))
        if data["type"] in ENDS:
            self.final = data["response"]


@dataclass(slots=True)
class Talk:
    """A conversation."""

    account: str
    added: list[str] = field(default_factory=list)
    """Marks of items that a client added beside the turns."""


@dataclass(slots=True)
class Notes:
    """What all clients saw."""

    secrets: frozenset[str]
    """Secrets that no answer may contain."""
    asks: dict[str, Ask] = field(default_factory=dict)
    accepted: dict[str, str] = field(default_factory=dict)
    """The mark of each job whose id a client got."""
    keyed: dict[str, set[str]] = field(default_factory=dict)
    """The jobs or batches that each Idempotency-Key stood for."""
    ends: list[tuple[str, str, str]] = field(default_factory=list)
    """Ends as clients saw them: job id, state, and the kind of client."""
    refusals: list[Refusal] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    response_readings: list[ResponseReading] = field(default_factory=list)
    response_ends: list[tuple[str, str, str]] = field(default_factory=list)
    """Ends of responses as clients saw them: id, status, and the kind of client."""
    finals: dict[str, Json] = field(default_factory=dict)
    """Each final response as the first client got it; what a later one got otherwise is wrong."""
    talks: dict[str, Talk] = field(default_factory=dict)
    """Conversations by id."""
    cancelled: set[str] = field(default_factory=set)
    """Jobs for which a client sent a cancellation, answered or not."""
    deleted: set[str] = field(default_factory=set)
    """Jobs whose erasure the API confirmed."""
    batches: dict[str, tuple[str, int, str | None]] = field(default_factory=dict)
    """The account, the number of lines and the webhook of each batch."""
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Answers that no client should ever get."""

    def read(self, text: str, what: str) -> None:
        """Look for secrets in a text that a client got."""
        if any(secret in text for secret in self.secrets):
            self.wrong.append(f"{what}: it was told a secret")

    def end(self, job: Json, who: str) -> None:
        """Note a job that a client got, if it has ended."""
        if job.get("status") in FINAL:
            self.ends.append((job["id"], job["status"], who))

    def response(self, response: Json, who: str) -> None:
        """Note a response that a client got, if it is final."""
        if response["status"] not in {"queued", "in_progress"}:
            self.response_ends.append((response["id"], response["status"], who))
            first = self.finals.setdefault(response["id"], response)
            if first != response:
                self.wrong.append(f"{response['id']}: {who} was told {response}, and another client {first}")
