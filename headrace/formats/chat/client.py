"""Chat completions toward clients. Chat is the hub of all formats, so hardly anything is translated."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from headrace.formats.chat.fold import chunks_of
from headrace.formats.chat.texts import Texts
from headrace.formats.job_facts import JobFacts
from headrace.formats.translation import Translation
from headrace.ids import completion_id

KEEPS_LOG = False

# Stands for the text in a line: no provider can know it.
_MARK = secrets.token_hex(16)
# The API adds these to each chunk that it sends.
_FROM_JOB = frozenset({"id", "object", "created"})


def translate(document: dict[str, Any]) -> Translation:
    """Return a chat request as it is."""
    return Translation(document)


def renderer(
    job: JobFacts,
    document: Mapping[str, Any],  # noqa: ARG001  (a chat job's answer repeats nothing of its request)
    *,
    log: Sequence[bytes] = (),  # noqa: ARG001  (nor anything of earlier attempts)
    from_chat: bool = False,  # noqa: ARG001  (every provider's chunks are rendered alike)
) -> Renderer:
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
        # The chunk that the last texts were like, and its line before and after the text.
        self._alike: Mapping[str, Any] | None = None
        self._before = self._after = b""

    def render(self, chunks: Sequence[Mapping[str, Any] | Texts]) -> list[bytes]:
        """Return the lines of exact chunks, without the fields that come from the job."""
        lines: list[bytes] = []
        for chunk in chunks:
            if isinstance(chunk, Texts):
                lines += self._render_texts(chunk)
            else:
                lines.append(_render_chunk(chunk))
        return lines

    def _render_texts(self, more: Texts) -> list[bytes]:
        if more.chunk is not self._alike:
            self._alike = more.chunk
            self._before, self._after = _around_text(more.chunk)
        before, after = self._before, self._after
        if len(more.texts) == 1:
            return [before + orjson.dumps(more.texts[0]) + after]
        return [before + orjson.dumps(text) + after for text in more.texts]

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


def _around_text(chunk: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Return the line of a chunk with a text alone, before and after the text."""
    [choice] = chunk["choices"]
    marked = {**chunk, "choices": [{**choice, "delta": {"content": _MARK}}]}
    before, _, after = _render_chunk(marked).partition(orjson.dumps(_MARK))
    return before, after


def _render_chunk(chunk: Mapping[str, object]) -> bytes:
    line = orjson.dumps({key: value for key, value in chunk.items() if key not in _FROM_JOB})
    return bytes(memoryview(line))  # a copy: orjson's result keeps the kilobytes that it was written into
