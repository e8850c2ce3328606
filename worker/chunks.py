"""A provider's stream as exact chunks. Events that differ in their text alone are not parsed again and again.

Nearly every event of a stream is the one before it with another text. So the bytes of an event with a text become a
pattern: what comes before the text, and what comes after it. An event with the same bytes there and one JSON string in
between is the same document but for that string, and only the string is parsed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from headrace.errors import UpstreamError, UpstreamTooLargeError
from headrace.formats.chat.normaliser import Normaliser
from headrace.formats.chat.texts import Texts
from headrace.formats.json_document import is_too_deep
from headrace.formats.registry import StreamParser
from headrace.providers.sse import Event

Chunk = dict[str, Any]

# Patterns in a row that fit no event before the reader looks for no more: each takes as long as two more events.
_MOST_UNFIT = 3
_PROBE = "another text"


@dataclass(frozen=True, slots=True)
class _Pattern:
    """The event of a chunk with a text: its name, and its data before and after the text as a JSON string."""

    chunk: Chunk
    index: int
    name: bytes
    before: bytes
    after: bytes

    def text_of(self, name: bytes, data: bytes) -> str | None:
        """Return the text of an event that fits; None for any other event, and for one without text."""
        before, after = self.before, self.after
        if name != self.name or not data.startswith(before) or not data.endswith(after):
            return None
        middle = data[len(before) : len(data) - len(after)]
        if not middle.startswith(b'"'):
            return None
        try:
            return orjson.loads(middle) or None
        except orjson.JSONDecodeError:
            return None


class ChunkReader:
    """Reads the events of one stream."""

    def __init__(self, parser: StreamParser, normaliser: Normaliser) -> None:
        self._parser = parser
        self._normaliser = normaliser
        self._pattern: _Pattern | None = None
        self._unfit = 0 if parser.texts_are_alike else _MOST_UNFIT

    @property
    def done(self) -> bool:
        """Whether the provider has marked the stream's end."""
        return self._parser.done

    def read(self, events: Sequence[Event]) -> list[Chunk | Texts]:
        """Return what the next events hold, up to the stream's end.

        Raises:
            UpstreamError: An event is not of the format, or reports an error.
        """
        read: list[Chunk | Texts] = []
        texts: list[str] | None = None
        for name, data in events:
            text = None if self._pattern is None else self._pattern.text_of(name, data)
            if text is None:
                chunks = self._parse(name, data)
                read += chunks
                texts = None
                if self._parser.done:
                    break
                self._pattern = self._pattern_of(name, data, chunks)
            elif texts is None:
                pattern = self._pattern
                assert pattern is not None
                self._unfit = 0
                read.append(Texts(pattern.chunk, pattern.index, texts := [text]))
            else:
                texts.append(text)
        return read

    def _parse(self, name: bytes, data: bytes) -> list[Chunk]:
        exact = self._normaliser.chunk
        return [chunk for said in self._parser.parse(shallow(data), name) if (chunk := exact(said)) is not None]

    def _pattern_of(self, name: bytes, data: bytes, chunks: Sequence[Chunk]) -> _Pattern | None:
        """Return the pattern of an event, if it has a text and with another text makes the same chunk."""
        text = _text_alone(chunks)
        if text is None or self._unfit == _MOST_UNFIT:
            return None
        for written in dict.fromkeys((orjson.dumps(text), json.dumps(text).encode())):
            before, found, after = data.partition(written)
            if found and written not in after:
                break
        else:
            return None
        self._unfit += 1
        try:
            probed = self._parse(name, before + orjson.dumps(_PROBE) + after)
        except UpstreamError:
            return None
        if _text_alone(probed) != _PROBE:
            return None
        probed[0]["choices"][0]["delta"]["content"] = text
        index = chunks[0]["choices"][0]["index"]
        return _Pattern(chunks[0], index, name, before, after) if probed == chunks else None


def _text_alone(chunks: Sequence[Chunk]) -> str | None:
    """Return the text of an event's chunks if they are one that only adds it to a choice; None for all others."""
    if len(chunks) != 1 or chunks[0].get("usage") is not None or len(chunks[0]["choices"]) != 1:
        return None
    [choice] = chunks[0]["choices"]
    if choice["finish_reason"] is not None or choice.get("logprobs") is not None or len(choice["delta"]) != 1:
        return None
    if any(isinstance(value, list | dict) for name, value in choice.items() if name != "delta"):
        return None  # a list grows with each chunk
    return choice["delta"].get("content") or None


def shallow(data: bytes) -> bytes:
    """Return a provider's document, which is shallow enough to be walked level by level.

    Raises:
        UpstreamTooLargeError: It is nested too deeply.
    """
    if is_too_deep(data):
        raise UpstreamTooLargeError("The model's provider sent an answer that is nested too deeply.")
    return data
