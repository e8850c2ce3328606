"""Chat completions toward clients. Chat is the hub of all formats, so hardly anything is translated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from headrace.formats.chat.fold import chunks_of
from headrace.formats.job import JobFacts
from headrace.formats.translation import Translation
from headrace.ids import completion_id

KEEPS_LOG = False

# The API adds these to each chunk that it sends.
_FROM_JOB = frozenset({"id", "object", "created"})


def translate(document: dict[str, Any]) -> Translation:
    """Return a chat request as it is."""
    return Translation(document)


def renderer(job: JobFacts, document: Mapping[str, Any], *, log: Sequence[bytes] = ()) -> Renderer:  # noqa: ARG001
    """Return the renderer of an attempt's answer."""
    return Renderer(job)


def relay(job: JobFacts, document: Mapping[str, Any], *, log: Sequence[bytes] = ()) -> None:
    """Return None: what a chat provider says is rendered for a chat client as it is."""


def lines_of(response: dict[str, Any]) -> list[bytes]:
    """Return the chunks of a whole completion, as a stream would have had them: the same ones at each call."""
    return [_render_chunk(chunk) for chunk in chunks_of(response)]


class Renderer:
    """Renders the chunks of one attempt. A reader of a chat job gets each as it is."""

    def __init__(self, job: JobFacts) -> None:
        self._job = job

    def render(self, chunks: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """Return the lines of exact chunks, without the fields that come from the job."""
        return [_render_chunk(chunk) for chunk in chunks]

    def end(self, completion: dict[str, Any]) -> tuple[list[bytes], dict[str, Any]]:
        """Return the `chat.completion` of the job. No line is left."""
        return [], self.whole(completion)

    def whole(self, completion: dict[str, Any]) -> dict[str, Any]:
        """Return the `chat.completion` of the job."""
        return completion | {
            "id": completion_id(self._job.id),
            "object": "chat.completion",
            "created": self._job.created,
        }


def _render_chunk(chunk: Mapping[str, object]) -> bytes:
    line = orjson.dumps({key: value for key, value in chunk.items() if key not in _FROM_JOB})
    return bytes(memoryview(line))  # a copy: orjson's result keeps the kilobytes that it was written into
