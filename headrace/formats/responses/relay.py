"""A provider's own events and response, passed on to a client that speaks the same format.

Ids, times and numbers become the job's; all else stays as it came, and so do fields, items and events that Headrace
does not know.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from headrace.errors import UpstreamError, UpstreamTooLargeError
from headrace.formats.chat.texts import Texts
from headrace.formats.chat.usage import exact_usage
from headrace.formats.job_facts import JobFacts
from headrace.formats.responses.response import response_usage, skeleton
from headrace.formats.responses.resume import resume
from headrace.formats.responses.sent_events import SentEvents
from headrace.formats.responses.upstream import ENDS, OPENINGS, StreamParser, completion_of, parse_response
from headrace.formats.responses.upstream.own_request import render_own_request
from headrace.ids import FIRST_INPUT_ITEM, item_id, response_id

Json = dict[str, Any]

_NONSENSE = "The model's provider answered with something that is not of the Responses API."
# Events that only keep a connection alive, and the error, which ends the attempt.
_NOT_TOLD = OPENINGS | {"error", "keepalive", "ping", "response.ping"}
# What a response says of its request, where the request that the provider got was another.
_OURS = ("id", "created_at", "background", "previous_response_id", "conversation", "metadata", "store")
_PREFIX = re.compile(r"([a-z]{1,8})_")
# The beginnings of the ids of items by type. Any other item keeps that of its provider's id.
_PREFIXES = {"message": "msg", "function_call": "fc", "custom_tool_call": "ctc", "reasoning": "rs"}
_CALLS = frozenset({"function_call", "custom_tool_call"})


class Relay:
    """Passes one attempt's answer on. It is the renderer of an answer that need not be rendered."""

    action = ""
    """What the URL of the request has behind that of a response."""

    def __init__(self, job: JobFacts, document: Mapping[str, Any], *, log: Sequence[bytes] = ()) -> None:
        """Take the client's request, and the lines that readers have of the job's earlier attempts."""
        self._job = job
        self._document = document
        resumed = resume(log)
        self._lines = resumed.lines
        self._first = resumed.following
        # The job's ids of items, by the provider's and by their places; and the provider's by their places.
        self._ids: dict[str, str] = {}
        self._placed: dict[int, str] = {}
        self._given: dict[int, Any] = {}
        self._items: dict[int, Json] = {}
        self._response: Json | None = None
        self._sent = SentEvents()
        self.begun = False
        """Whether the provider has begun to use a tool of its own, which readers shall see before the model speaks."""

    def render_request(self, *, model: str, stream: bool) -> bytes:
        """Return the body of the request: the client's own."""
        return render_own_request(self._document, model=model, stream=stream)

    def parse_stream(self) -> StreamParser:
        """Return the parser of a new stream, whose events are passed on as they are read."""
        return _Reader(self._take)

    def parse_completion(self, body: bytes) -> dict[str, Any]:
        """Return the `chat.completion` of a whole answer, which is passed on at the end.

        Raises:
            UpstreamError: The body is not a response, or reports an error.
        """
        self._response = parse_response(body)
        return completion_of(self._response)

    def _take(self, event: Json, kind: str) -> None:
        """Take an event that has been read without an error."""
        if kind in ENDS:
            self._response = event["response"]
        elif kind not in _NOT_TOLD:
            event = {"type": kind, **event} | {"type": kind}
            event.pop("sequence_number", None)
            self._map(event)
            missing = self._sent.add(kind, event)
            if missing is not None:
                line = orjson.dumps(event)
                # A copy without the room that orjson wrote it into.
                self._lines += [*missing, bytes(memoryview(line))]

    def render(self, chunks: Sequence[Mapping[str, Any] | Texts]) -> list[bytes]:  # noqa: ARG002  (events have them all)
        """Return the lines of the events that have been taken."""
        lines, self._lines = self._lines, []
        return lines

    def end(self, completion: dict[str, Any]) -> tuple[list[bytes], dict[str, Any]]:
        """Return the rest of the lines, and the response that the provider ended with.

        Raises:
            UpstreamError: The provider sent no response, or one that is not of the format.
        """
        said = self._response
        if said is None:
            raise UpstreamError(_NONSENSE)
        try:
            # Some servers leave the output of a streamed response empty at its end.
            output = self._output(said) or [self._items[index] for index in sorted(self._items)]
            response = self._whole(said, completion, output)
            lines = self.render(())
            if self._sent.items < len(output):
                for place, item in enumerate(output):
                    lines += self._sent.rest(item, self._first + place)
        except (LookupError, TypeError, ValueError, AttributeError):
            raise UpstreamError(_NONSENSE) from None
        return lines, response

    def whole(self, completion: dict[str, Any]) -> dict[str, Any]:
        """Return the response that the provider ended with.

        Raises:
            UpstreamError: The provider sent no response, or one that is not of the format.
        """
        return self.end(completion)[1]

    def _output(self, said: Json) -> list[Json]:
        """Return the output of a whole response under the ids that the stream had.

        Some servers give items other ids at the end, others leave some items out there.
        """
        items = [item for item in said.get("output") or () if isinstance(item, dict)]
        named = []
        for index, item in enumerate(items, self._first):
            given = item.get("id")
            name = None if self._given.get(index) == given else self._ids.get(str(given))
            named.append(self._named(index, item) if name is None else _with_id(item, name))
        return named

    def _whole(self, said: Json, completion: Mapping[str, Any], output: list[Json]) -> Json:
        """Return the response with all fields that the API promises."""
        job = self._job
        own = skeleton(
            self._document,
            job_id=job.id,
            created=job.created,
            background=job.background,
            status="completed",
            model=completion.get("model"),
        )
        response = {**own, **said, "output": output, **{name: own[name] for name in _OURS}}
        response["usage"] = _whole_usage(said.get("usage"))
        response["status"] = said.get("status") or own["status"]
        if response["status"] == "completed" and response["completed_at"] is None:
            response["completed_at"] = int(time.time())
        return response

    def _map(self, event: Json) -> None:
        """Give an event the job's ids and places."""
        index = event.get("output_index")
        if type(index) is int:
            index = event["output_index"] = index + self._first
        if isinstance(event.get("item"), dict):
            event["item"] = item = self._named(index, event["item"])
            if type(index) is int:
                self._items[index] = item
            self.begun = self.begun or item.get("type", "message") not in _PREFIXES
        elif "item_id" in event:
            event["item_id"] = self._id(index, event["item_id"], "item")
        if isinstance(event.get("response"), dict):
            event["response"] = {**event["response"], "id": response_id(self._job.id), "created_at": self._job.created}

    def _named(self, index: Any, item: Json) -> Json:
        """Return an item of the output under the job's id."""
        return _with_id(item, self._id(index, item.get("id"), _PREFIXES.get(item.get("type") or "message", "item")))

    def _id(self, index: Any, given: Any, prefix: str) -> str:
        """Return the job's id of the item at a place, or without one of the item that the provider names so."""
        known = self._placed.get(index) if type(index) is int else self._ids.get(str(given))
        if known is None:
            number = index if type(index) is int else self._first + len(self._ids)
            if not 0 <= number < FIRST_INPUT_ITEM:
                raise UpstreamTooLargeError("The model's provider answered with too many items.")
            match = _PREFIX.match(given) if isinstance(given, str) and prefix == "item" else None
            known = item_id(prefix if match is None else match[1], self._job.id, number)
        if isinstance(given, str):
            self._ids[given] = known
        if type(index) is int:
            self._placed[index] = known
            self._given[index] = given
        return known


def _with_id(item: Json, name: str) -> Json:
    """Return an item under an id of the job's. A call has an id for its answer too, if the provider gave none."""
    named = {**item, "id": name} if "id" in item else {"id": name, **item}
    if item.get("type") in _CALLS and not item.get("call_id"):
        named["call_id"] = "call" + name[name.index("_") :]
    return named


class _Reader(StreamParser):
    """Reads a stream as the format does, and hands each event on."""

    def __init__(self, take: Callable[[Json, str], None]) -> None:
        super().__init__()
        self._take = take

    def read(self, event: Json, kind: str) -> Sequence[dict[str, Any]]:
        chunks = super().read(event, kind)
        self._take(event, kind)
        return chunks


def _whole_usage(said: Any) -> Json | None:
    """Return a provider's usage with the counts that it leaves out; None where it has none that can be believed."""
    whole = response_usage(exact_usage(said))
    if whole is None:
        return None
    details = {
        name: {**whole[name], **(said.get(name) or {})} for name in ("input_tokens_details", "output_tokens_details")
    }
    return {**whole, **said, **details}
