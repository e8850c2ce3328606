"""The chunks of an answer while it arrives: each says of an item what no chunk before has said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from headrace.formats.chat.tool_calls import render_arguments
from headrace.formats.responses.upstream.items import CALLS, Item, Json, Text
from headrace.formats.skipped import skip

# The field of the message that a text goes to, if it has another name.
_FIELDS = {"summary": "reasoning_content", "text": "reasoning_content"}
# What stands between two messages of an answer, and between two thoughts.
_BREAK = "\n\n"


class Chunks:
    """Makes the chat chunks of one answer, whose parts are one text for each field of the message."""

    def __init__(self) -> None:
        self.about: Json = {}
        """What every chunk has beside its choices."""
        self.calls = 0
        """How many calls have begun."""
        self._told_role = False
        self._lengths = dict.fromkeys(("content", "refusal", "reasoning_content"), 0)

    def name_model(self, response: Json) -> None:
        """Take the model's name from a response, for the next chunks."""
        if isinstance(response.get("model"), str) and response["model"]:
            self.about = {"model": response["model"]}

    def chunk(self, delta: Json, **fields: Any) -> Json:
        """Return the chunk of a delta; the first one has the role. `fields` are other fields of its choice."""
        if not self._told_role:
            self._told_role = True
            delta = {"role": "assistant", "content": None, **delta}
        return {**self.about, "choices": [{"index": 0, "delta": delta, "finish_reason": None, **fields}]}

    def piece(self, item: Item, told: str, place: int, piece: str, logprobs: Any = None) -> Iterator[Json]:
        """Yield the chunk of the next piece of a text."""
        if not piece:
            return
        if item.kind == "reasoning":
            item.thought = item.thought or told
            if item.thought != told:
                return
        text = item.texts.get((told, place))
        if item.kind in CALLS:
            if text is None:
                text = item.texts[told, place] = Text(0)
            text.add(piece)
            if item.call is not None:
                called = {CALLS[item.kind][0]: {told: piece}}
                yield self.chunk({"tool_calls": [{"index": item.call, **called}]})
            return
        field = _FIELDS.get(told, told)
        start = self._lengths[field]
        if text is None:
            # The parts of a message are one text.
            first = item.kind == "reasoning" or all(other != told for other, _ in item.texts)
            between = _BREAK if first and start else ""
            text = item.texts[told, place] = Text(start + len(between))
            text.add(piece)
            piece = between + piece
        else:
            text.add(piece)
        self._lengths[field] += len(piece)
        yield self.chunk({field: piece}, **({"logprobs": {"content": logprobs, "refusal": None}} if logprobs else {}))

    def whole(self, item: Item, told: str, place: int, whole: str, logprobs: Any = None) -> Iterator[Json]:
        """Yield the chunk of what a whole text has beyond its pieces."""
        text = item.texts.get((told, place))
        if text is None:
            return self.piece(item, told, place, whole, logprobs)
        return self.piece(item, told, place, text.rest_of(whole))

    def begin_call(self, item: Item, said: Json) -> Iterator[Json]:
        """Yield the chunk that begins a call. What it is called with, and the rest of other items, comes later."""
        if item.kind not in CALLS or item.call is not None or not said.get("name"):
            return
        item.call, self.calls = self.calls, self.calls + 1
        kind, key = CALLS[item.kind]
        text = item.texts.get((key, 0))
        call: Json = {"index": item.call, "type": kind}
        if given := said.get("call_id") or said.get("id"):
            call["id"] = given
        call[kind] = {"name": said["name"], key: "" if text is None else text.so_far}
        yield self.chunk({"tool_calls": [call]})

    def rest(self, item: Item, said: Json) -> Iterator[Json]:
        """Yield the chunks of what a whole item has beyond what the stream said of it."""
        match item.kind:
            case "message":
                parts = said.get("content") or ()
                for place, part in enumerate([{"text": parts}] if isinstance(parts, str) else parts):
                    yield from self.part(item, place, part)
            case "reasoning":
                for told, parts in (("summary", said.get("summary")), ("text", said.get("content"))):
                    for place, part in enumerate(parts or ()):
                        yield from self.whole(item, told, place, part["text"])
                yield from self._seal(item, said)
            case "function_call" | "custom_tool_call":
                yield from self.begin_call(item, said)
                key = CALLS[item.kind][1]
                given = said.get(key) or ""
                yield from self.whole(item, key, 0, given if isinstance(given, str) else render_arguments(given))
            case kind if kind != "web_search_call":
                skip("responses", f"item {kind}")

    def part(self, item: Item, place: int, part: Json) -> Iterator[Json]:
        """Yield the chunks of what a whole part has beyond what the stream said of it."""
        match part.get("type") or "output_text":
            case "output_text" | "text":
                yield from self.whole(item, "content", place, part["text"], part.get("logprobs"))
                text, annotations = item.texts.get(("content", place)), part.get("annotations") or ()
                yield from self.annotate(item, place, annotations[0 if text is None else text.annotations :])
            case "refusal":
                yield from self.whole(item, "refusal", place, part["refusal"])
            case "reasoning_text" | "summary_text":
                pass  # of a reasoning item, which ends with all of them
            case kind:
                skip("responses", f"content part {kind}")

    def annotate(self, item: Item, place: int, annotations: Sequence[Json]) -> Iterator[Json]:
        """Yield the chunk of a part's next annotations."""
        text = item.texts.get(("content", place))
        start = self._lengths["content"] if text is None else text.start
        cited = []
        for annotation in annotations:
            if text is not None:
                text.annotations += 1
            if annotation.get("type") != "url_citation":
                skip("responses", f"annotation {annotation.get('type')}")
                continue
            about = {name: value for name, value in annotation.items() if name != "type"}
            about |= {name: start + int(about.get(name) or 0) for name in ("start_index", "end_index")}
            cited.append({"type": "url_citation", "url_citation": {"title": "", **about}})
        if cited:
            yield self.chunk({"annotations": cited})

    def _seal(self, item: Item, said: Json) -> Iterator[Json]:
        """Yield the chunk with an item whose thoughts its provider has encrypted."""
        if item.sealed or not said.get("encrypted_content"):
            return
        item.sealed = True
        kept = {name: value for name, value in said.items() if name != "status"}
        yield self.chunk({"reasoning_items": [kept | ({"calls_before": self.calls} if self.calls else {})]})
