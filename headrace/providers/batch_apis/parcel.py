"""Parcels of lines for a provider's batch API, and their status and results, whichever provider it is.

A parcel is rendered into a temporary file before it is sent, so that its length is known and no cursor of Postgres
waits for a slow upload. Results are read line by line.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any, Literal, NamedTuple, Self

from headrace.catalogue.models import Route
from headrace.errors import InvalidRequestError, UpstreamError, UpstreamRefusedError
from headrace.formats.registry import FORMATS

Lines = AsyncIterable[tuple[str, Mapping[str, Any]]]
"""Ids of jobs and their requests, as clients sent them."""

# Bytes that are written or read at a time, which is also how much is rendered before the event loop runs again.
_PIECE_BYTES = 256 * 1024

# Service tiers whose lines can wait. A client pays for the speed of the others, or has chosen another discount.
_PATIENT_TIERS = frozenset({None, "auto", "default"})


class Submitted(NamedTuple):
    """A parcel that the provider has taken."""

    remote_id: str
    """The provider's id of its batch."""
    left_behind: list[str]
    """Ids of the jobs that the API cannot carry, or that had no room. Workers run them."""


@dataclass(frozen=True, slots=True)
class Status:
    """A parcel's status at its provider. Counts are of lines, and may lag behind until the state is `ended`."""

    remote_id: str
    state: Literal["running", "ended", "failed"]
    """`ended` means that there are results to read, also after expiry or cancellation; `failed` means that no line was
    run, and `error` has the reason."""
    total: int = 0
    completed: int = 0
    failed: int = 0
    results: tuple[str, ...] = ()
    """URLs of the results, all on the provider's own host."""
    error: UpstreamError | None = None

    def ended_with(self, *results: str) -> Status:
        """Return the same, ended, with results at these URLs."""
        return replace(self, state="ended", results=results)

    def failed_with(self, error: UpstreamError) -> Status:
        """Return the same, failed."""
        return replace(self, state="failed", error=error)


@dataclass(frozen=True, slots=True)
class NativeResult:
    """The result of one line: a `chat.completion` without the fields that the job gives, or an error."""

    job_id: str
    completion: dict[str, Any] | None = None
    error: UpstreamError | None = None
    """An error of the class that a call would raise."""
    size: int = 0
    """Bytes of the line that it came in."""

    @property
    def retryable(self) -> bool:
        """Whether a worker may succeed with the line. A refused line is refused everywhere."""
        return self.error is not None and not isinstance(self.error, UpstreamRefusedError)


class Parcel:
    """Rendered lines in a temporary file, which has no name and is deleted when it is closed."""

    def __init__(self, *, head: bytes = b"", between: bytes = b"", tail: bytes = b"") -> None:
        """Start with `head`, put `between` between any two lines, and end with `tail`."""
        self.lines = 0
        self._size = len(head) + len(tail)
        self._between = between
        self._tail = tail
        self._held = bytearray(head)
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed by __exit__)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def size(self) -> int:
        """Bytes of all that is sent."""
        return self._size

    def fits(self, line: bytes, most_bytes: int) -> bool:
        """Return whether there is room for a line."""
        return self._size + len(self._between) + len(line) <= most_bytes

    async def add(self, line: bytes) -> None:
        """Put a line in."""
        if self.lines:
            line = self._between + line
        self.lines += 1
        self._size += len(line)
        self._held += line
        if len(self._held) >= _PIECE_BYTES:
            await self._write()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield all of it, once it is full."""
        self._held += self._tail
        await self._write()
        self._file.seek(0)
        while piece := await asyncio.to_thread(self._file.read, _PIECE_BYTES):
            yield piece

    async def _write(self) -> None:
        held, self._held = self._held, bytearray()
        await asyncio.to_thread(self._file.write, held)


async def fill(
    parcel: Parcel,
    route: Route,
    lines: Lines,
    render: Callable[[str, bytes], bytes],
    *,
    most_lines: int,
    most_bytes: int,
) -> list[str]:
    """Render lines into a parcel as a call would, and return the ids of the jobs that are left behind.

    `render` puts a job's id around the body of a call.
    """
    form = FORMATS[route.format]
    left_behind = []
    async for job_id, request in lines:
        rendered = None
        if _can_wait(request) and (form.MANY_CHOICES or (request.get("n") or 1) == 1):
            try:
                body = form.render_request(
                    request,
                    model=route.model,
                    stream=False,
                    output_limit=route.output_limit,
                    limit_parameter=route.provider.limit_parameter,
                )
                rendered = render(job_id, body)
            except InvalidRequestError:
                rendered = None  # a worker finds the same error, and the client gets it
        if rendered is not None and parcel.lines < most_lines and parcel.fits(rendered, most_bytes):
            await parcel.add(rendered)
        else:
            left_behind.append(job_id)
    return left_behind


def _can_wait(request: Mapping[str, Any]) -> bool:
    return request.get("service_tier") in _PATIENT_TIERS
