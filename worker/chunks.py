"""Reads a provider's stream as exact chunks. If only the text of an event differs, only the text is parsed.

Nearly every event of a stream is the one before it with another text. So the bytes of an event with a text become a
pattern: what comes before the text, and what comes after it. An event with the same bytes there and one JSON string in
between is the same document but for that string, and only the string is parsed, together with those of the next events.
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
# Events whose texts are parsed together. Where one of them does not fit, the others are parsed once more.
_MOST_TOGETHER = 128
_PROBE = "another text"


@dataclass(frozen=True, slots=True)
class _Pattern:
    """The event of a chunk with a text: its name, and its data before and after the text as a JSON string."""

    chunk: Chunk
    name: bytes
    before: bytes
    after: bytes

    def texts_of(self, events: Sequence[Event]) -> list[str]:
        """Return the texts of the events up to the first one that does not fit, or has no text."""
        name, before, after = self.name, self.before, self.after
        begin, end = len(before), -len(after)
        written: list[bytes] = []
        for named, data in events:
            if named != name or not data.startswith(before) or not data.endswith(after):
                break
            written.append(data[begin:end])
        if len(written) > 1 and (together := _all_texts(written)):
            return together
        texts: list[str] = []
        for string in written:
            if not (text := _text(string)):
                break
            texts.append(text)
        return texts


def _all_texts(written: Sequence[bytes]) -> list[str] | None:
    """Return the texts of JSON strings, parsed as one document; None if one of them is empty or not a string."""
    try:
        # JSON's strings hold no bare line end, so each comma before one stands between two values.
        texts = orjson.loads(b"[" + b",\n".join(written) + b"]")
    except orjson.JSONDecodeError:
        return None
    return texts if len(texts) == len(written) and set(map(type, texts)) == {str} and "" not in texts else None


def _text(written: bytes) -> str | None:
    """Return the text of a JSON string; None if the bytes are not one."""
    if not written.startswith(b'"'):
        return None
    try:
        text: str = orjson.loads(written)
    except orjson.JSONDecodeError:
        return None
    return text


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
        at = 0
        while at < len(events):
            pattern = self._pattern
            if pattern is not None and (texts := pattern.texts_of(events[at : at + _MOST_TOGETHER])):
                self._unfit = 0
                read.append(Texts(pattern.chunk, texts))
                at += len(texts)
                continue
            name, data = events[at]
            chunks = self._parse(name, data)
            read += chunks
            if self._parser.done:
                break
            self._pattern = self._pattern_of(name, data, chunks)
            at += 1
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
        return _Pattern(chunks[0], name, before, after) if probed == chunks else None


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
