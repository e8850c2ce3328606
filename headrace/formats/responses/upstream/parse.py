"""Answers and streams of the Responses API as chat completions: https://platform.openai.com/docs/api-reference/responses.

Written from OpenAI's OpenAPI document 2.3.0 and that of Open Responses of 2026-04-24, read 2026-11. Reasoning becomes
`reasoning_content`, and where it is encrypted `reasoning_items`, which the next request sends back unchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from headrace.errors import UpstreamError, shorten
from headrace.formats.chat.finish_reasons import exact_reason
from headrace.formats.chat.fold import Fold
from headrace.formats.chat.usage import parse_usage, render_usage
from headrace.formats.error_objects import error_of, reported_error
from headrace.formats.lenient import parse_object
from headrace.formats.responses.moderation import moderation_of_chat
from headrace.formats.responses.upstream.chunks import Chunks
from headrace.formats.responses.upstream.items import Item, Items, Json, kind_of
from headrace.formats.skipped import skip

_NONSENSE = "The model's provider answered with something that is not of the Responses API."

# Events with a piece of a text: the kind of its item, and the text's name there.
_PIECES: Mapping[str, tuple[str, str]] = {
    "response.output_text.delta": ("message", "content"),
    "response.refusal.delta": ("message", "refusal"),
    "response.function_call_arguments.delta": ("function_call", "arguments"),
    "response.custom_tool_call_input.delta": ("custom_tool_call", "input"),
    "response.reasoning_summary_text.delta": ("reasoning", "summary"),
    "response.reasoning_summary.delta": ("reasoning", "summary"),
    "response.reasoning_text.delta": ("reasoning", "text"),
    "response.reasoning.delta": ("reasoning", "text"),
}
# Events with a whole text, which has one of these names there.
_WHOLES = {name.replace(".delta", ".done"): told for name, told in _PIECES.items()}
_WHOLE_NAMES = {"content": "text", "summary": "text"}

OPENINGS = frozenset({"response.created", "response.queued", "response.in_progress"})
"""The events that open a stream."""
ENDS = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
"""The events that end a stream, one of them each."""

# Events with nothing that the others do not say, those that keep a connection alive, and what a search is doing, which
# the provider does itself.
_SILENT = ("content_part.added", "summary_part", "keepalive", "ping", "web_search_call")
# Other formats end with this. Here the stream has ended before, or is broken off.
_DONE = frozenset({b"[DONE]", b"[done]", b'"[DONE]"', b""})


def parse_completion(body: bytes) -> dict[str, Any]:
    """Return the `chat.completion` of a whole answer, but for what the job gives it.

    Raises:
        UpstreamError: The body is not a response, or reports an error.
    """
    return completion_of(parse_response(body))


def parse_response(body: bytes) -> Json:
    """Return the object of a body, or of an event. Raises UpstreamError where it is not one."""
    return parse_object(body, _NONSENSE)


def completion_of(response: Json) -> dict[str, Any]:
    """Return the `chat.completion` of a response, but for what the job gives it.

    Raises:
        UpstreamError: It is not a response, has failed or has not ended.
    """
    fold = Fold()
    for chunk in StreamParser().read_whole(response):
        fold.add(chunk)
    completion = fold.completion(id="", created=0, model=response.get("model") or "")
    given = {"id", "object", "created"} if completion["model"] else {"id", "object", "created", "model"}
    return {name: value for name, value in completion.items() if name not in given}


def parse_stream() -> StreamParser:
    """Return the parser of a new stream."""
    return StreamParser()


class StreamParser:
    """Reads a stream of items. A whole answer is read as the end of a stream that said nothing before."""

    texts_are_alike = False  # it keeps what each item has said

    def __init__(self) -> None:
        self.done = False
        self._items = Items()
        self._chunks = Chunks()

    def parse(self, data: bytes, name: bytes = b"") -> Sequence[dict[str, Any]]:
        """Return the chunks of an event.

        Raises:
            UpstreamError: The event is not of the Responses API, or reports an error.
        """
        if not data.startswith(b"{") and data.strip() in _DONE:
            return ()
        event = parse_response(data)
        try:
            return self.read(event, event.get("type") or name.decode("utf-8", "replace"))
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            raise UpstreamError(_NONSENSE) from None

    def read(self, event: Json, kind: str) -> Sequence[dict[str, Any]]:
        """Return the chunks of an event of a kind. Any of Python's errors means that it is not of the format."""
        return list(self._parse(event, kind))

    def read_whole(self, response: Json) -> Sequence[dict[str, Any]]:
        """Return the chunks of what a whole response has beyond the stream.

        Raises:
            UpstreamError: It is not a response, has failed or has not ended.
        """
        try:
            return list(self._ended(response, response.get("status") or "completed"))
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            raise UpstreamError(_NONSENSE) from None

    def _parse(self, event: Json, kind: str) -> Iterable[Json]:
        if kind in _PIECES:
            form, told = _PIECES[kind]
            return self._chunks.piece(
                self._item(event, form), told, _place(event), event["delta"], event.get("logprobs")
            )
        if kind in _WHOLES:
            form, told = _WHOLES[kind]
            whole = event[_WHOLE_NAMES.get(told, told)]
            return self._chunks.whole(self._item(event, form), told, _place(event), whole, event.get("logprobs"))
        if kind in OPENINGS:
            self._chunks.name_model(event.get("response") or {})
            return ()
        if kind in ENDS:
            response = event["response"]
            return self._ended(response, response.get("status") or kind.removeprefix("response."))
        match kind:
            case "response.output_item.added":
                said = event["item"]
                return self._chunks.begin_call(
                    self._items.begin(event.get("output_index"), kind_of(said), said.get("id")), said
                )
            case "response.output_item.done":
                said = event["item"]
                item = self._items.find(event.get("output_index"), kind_of(said), said.get("id"))
                item.over = True
                return self._chunks.rest(item, said)
            case "response.content_part.done":
                return self._chunks.part(self._item(event, "message"), _place(event), event["part"])
            case "response.output_text.annotation.added":
                return self._chunks.annotate(self._item(event, "message"), _place(event), [event["annotation"]])
        if kind == "error" or event.get("error"):
            raise error_of(event)
        if not kind:
            raise UpstreamError(_NONSENSE)
        if not any(word in kind for word in _SILENT):
            skip("responses", f"event {kind}")
        return ()

    def _item(self, event: Json, kind: str) -> Item:
        return self._items.find(event.get("output_index"), kind, event.get("item_id"))

    def _ended(self, response: Json, status: str) -> Iterator[Json]:
        """Yield the chunks that end an answer, and first what was not streamed of it."""
        if response.get("error") or status in ("failed", "cancelled"):
            raise error_of(response.get("error") or {"message": f"its response is {status}"})
        if not isinstance(output := response.get("output"), list):
            raise reported_error(response) or UpstreamError(_NONSENSE)
        if status not in ("completed", "incomplete"):
            raise UpstreamError(f"The model's provider answered with a response that is {shorten(status)}.")
        self._chunks.name_model(response)
        for item, said in self._items.match(output):
            yield from self._chunks.rest(item, said)
        if response.get("service_tier"):
            self._chunks.about = {**self._chunks.about, "service_tier": response["service_tier"]}
        yield self._chunks.chunk({}, **self._finish(response, status))
        if (found := response.get("moderation")) is not None:
            yield {**self._chunks.about, "choices": [], "moderation": moderation_of_chat(found)}
        if (usage := _usage(response.get("usage"))) is not None:
            yield {**self._chunks.about, "choices": [], "usage": usage}
        self.done = True

    def _finish(self, response: Json, status: str) -> Json:
        """Return the finish reason, and the provider's own word for it if it has another."""
        if status == "completed":
            return {"finish_reason": "tool_calls" if self._chunks.calls else "stop"}
        said = (response.get("incomplete_details") or {}).get("reason") or status
        ours = None
        with contextlib.suppress(UpstreamError):  # the status says that the answer is cut off, for a new reason too
            ours = exact_reason(said)
        ours = ours or "length"
        native = {"native_finish_reason": said} if isinstance(said, str) and said != ours else {}
        return {"finish_reason": ours, **native}


def _place(event: Json) -> int:
    """Return the place of a text in its item."""
    return event.get("content_index") or event.get("summary_index") or 0


def _usage(usage: Any) -> Json | None:
    """Return the usage as chat completions have it, or None where it gives no counts that can be believed."""
    counts = parse_usage(usage)
    return None if counts is None else render_usage(counts)
