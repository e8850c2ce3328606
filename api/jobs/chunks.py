"""The chunks of a streamed chat completion, made from a job's events."""

from __future__ import annotations

import orjson

from api.http.sse import PING, render_error_event
from headrace.errors import AnswerInterruptedError, HeadraceError, restore_error
from headrace.events.job_events import Deltas, Ended, Event, Retrying, Silence
from headrace.ids import completion_id

_NO_USAGE = b'"usage":null,'
_DONE = b"data: [DONE]\n\n"


class Chunks:
    """Renders the events of a job as the chunks of one stream, with one id and one creation time.

    `over` is set by the last event, and `broken` if the stream ends before its job.
    """

    __slots__ = ("_begun", "_head", "_include_usage", "broken", "over")

    def __init__(self, job_id: str, created: int, *, include_usage: bool) -> None:
        about = f'data: {{"id":"{completion_id(job_id)}","object":"chat.completion.chunk","created":{created},'
        self._include_usage = include_usage
        self._head = about.encode() + (_NO_USAGE if include_usage else b"")
        self._begun = False
        self.over = False
        self.broken = False

    def begin(self) -> list[bytes]:
        """Return nothing: a stream of chunks begins with the first one of the answer."""
        return []

    def render(self, event: Event) -> list[bytes]:
        """Return the lines that a client gets for an event."""
        if isinstance(event, Deltas):
            self._begun = True
            between = b"\n\n" + self._head
            return [self._head + between.join([chunk[1:] for chunk in event.chunks]) + b"\n\n"]
        if isinstance(event, Silence):
            return [PING]
        if isinstance(event, Ended):
            self.over = True
            if event.response is None:
                return [self.refuse(restore_error(event.error))]
            return [*self._usage(event.response), _DONE]
        if isinstance(event, Retrying) and self._begun:
            # The next attempt would repeat what the client has read.
            self.over = self.broken = True
            return [self.refuse(AnswerInterruptedError())]
        return []

    def refuse(self, error: HeadraceError) -> bytes:
        """Return an error as an event of the stream, in OpenAI's shape."""
        return render_error_event(error)

    def _usage(self, response: bytes) -> list[bytes]:
        if not self._include_usage:
            return []
        completion = orjson.loads(response)
        chunk = {"choices": [], "usage": completion.get("usage"), "model": completion.get("model")}
        return [self._head.removesuffix(_NO_USAGE) + orjson.dumps(chunk)[1:] + b"\n\n"]
