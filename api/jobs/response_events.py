"""The numbered events of a streamed response, made from a job's events."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson

from api.http.sse import PING_AFTER_ID, render_event
from headrace.errors import AnswerInterruptedError, HeadraceError
from headrace.events.job_events import Deltas, Ended, Event, Retrying, Silence, Started
from headrace.formats.responses import events
from headrace.formats.responses.response import render_stored
from headrace.jobs.state import State


class ResponseEvents:
    """Renders the events of a job as those of one stream; see `headrace.formats.responses.events` for their numbers.

    `over` is set by the last event, and `broken` if the stream ends before its job.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        job_id: str,
        created: int,
        *,
        background: bool,
        after: int = -1,
        model: str | None = None,
    ) -> None:
        """Render the events of the stored request `document` past number `after`; `created` is in Unix seconds."""
        self._stored = partial(
            render_stored, document, job_id=job_id, created=created, background=background, model=model
        )
        self._background = background
        self._opening = events.opening(document, job_id=job_id, created=created, background=background)
        self._base = len(self._opening)
        self._last = after
        self._started = self._begun = False
        self.over = False
        self.broken = False

    def begin(self) -> list[bytes]:
        """Return the events that are there before a worker starts the job, if they have not been rendered yet."""
        return self._open(self._base - 1)

    def render(self, event: Event) -> list[bytes]:
        """Return the events that a client gets for an event of the job."""
        if isinstance(event, Deltas):
            self._begun = True
            rendered = self._start()
            first = self._base - 1 + event.first.seq
            late = max(0, self._last + 1 - first)  # the reader has these
            self._last = max(self._last, first + len(event.chunks) - 1)
            rendered.append(events.render_lines(event.chunks[late:], first + late))
            return rendered
        if isinstance(event, Silence):
            return [*self.begin(), PING_AFTER_ID]
        if isinstance(event, Started):
            return self._start()
        if isinstance(event, Ended):
            return self._end(event)
        assert isinstance(event, Retrying)
        if self._begun and not self._background and not event.kept:
            # The client may have read lines that are lost, so the next attempt cannot go on from them.
            self.over = self.broken = True
            error = AnswerInterruptedError()
            return [self._terminal(State.FAILED, None, orjson.dumps(error.document()), self._last + 1)]
        return []

    def refuse(self, error: HeadraceError) -> bytes:
        """Return the event of an error that ends the stream, but not the job.

        It is not part of the log: it has no id, and the number of the last event, after which its reader resumes.
        """
        body = error.body()
        line = {"sequence_number": self._last, "type": "error"}
        line |= {name: body[name] for name in ("code", "message", "param")}
        return render_event(orjson.dumps(line), name="error")

    def _open(self, end: int) -> list[bytes]:
        """Return the opening events before number `end` that the client does not have."""
        first = self._last + 1
        self._last = max(self._last, end - 1)
        return [events.render_lines(self._opening[first:end], first)] if first < end else []

    def _start(self) -> list[bytes]:
        self._started = True
        return self._open(self._base)

    def _end(self, event: Ended) -> list[bytes]:
        self.over = True
        if not self._started and event.cursor.seq > 1:  # a whole log came before it
            self._started = True
        rendered = self._open(self._base if self._started else self._base - 1)
        number = self._base - 1 + event.cursor.seq - (0 if self._started else 1)
        if number > self._last:
            rendered.append(self._terminal(event.state, event.response, event.error, number))
        return rendered

    def _terminal(self, state: State, response: bytes | None, error: bytes | None, number: int) -> bytes:
        stored = self._stored(state=state.value, response=response, error=error)
        return events.render_line(events.terminal(stored), number)
