"""What a client reads of its job while the job runs: one interface, and an implementation for each format."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from api.jobs.asked import Asked
from api.jobs.chunks import Chunks
from api.jobs.response_events import ResponseEvents
from headrace.errors import HeadraceError
from headrace.events.job_events import Event
from headrace.formats.responses.request import ResponseRequest


class ClientEvents(Protocol):
    """Renders the events of a job as the one stream that a client reads, in the client's format."""

    over: bool
    """Whether the last rendered event ends the stream."""
    broken: bool
    """Whether the stream ends before its job."""

    def begin(self) -> list[bytes]:
        """Return the events that open the stream, if they have not been rendered yet."""

    def render(self, event: Event) -> list[bytes]:
        """Return the events that the client gets for an event of the job. Events in a row may be joined."""

    def refuse(self, error: HeadraceError) -> bytes:
        """Return the event of an error that ends the stream, but not the job."""


Begin = Callable[[int], ClientEvents]
"""Returns the events of a new stream of a job that was created at a time, in Unix seconds."""


def events_for(asked: Asked, job_id: str) -> Begin:
    """Return what makes the stream that a request's client reads."""
    if isinstance(asked.terms, ResponseRequest):
        assert asked.expanded is not None
        about = {name: value for name, value in asked.expanded.items() if name != "input"}
        return partial(ResponseEvents, about, job_id, background=bool(asked.terms.background))
    options = asked.terms.stream_options
    return partial(Chunks, job_id, include_usage=options is not None and bool(options.include_usage))
