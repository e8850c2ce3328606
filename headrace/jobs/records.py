"""What the statements on jobs take and return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from headrace.conversations.appending import Item
from headrace.formats.chat.support import Format
from headrace.jobs.state import State
from headrace.usage.spent import Charge, SpentUsage


@dataclass(slots=True)
class NewJob:
    """A client's job before it has a row.

    Each request makes one. Python makes it in 0.8 µs, and a frozen one in 1.9 µs.
    """

    id: str
    account_id: str
    key_id: str
    model: str
    request: str
    metadata: str | None
    tier: str
    background: bool
    streamed: bool
    origin: str | None
    timeout_seconds: float
    agent_id: str | None = None
    agent_version: int | None = None
    reserved_cost: Decimal | None = None
    delay_seconds: float = 0
    webhook: str | None = None
    stored: bool = True
    format: Format = "chat"
    conversation_id: str | None = None
    trace_context: str | None = None

    @property
    def size(self) -> int:
        """Characters of its request."""
        return len(self.request)

    @property
    def silent_until_end(self) -> bool:
        """Whether its client learns nothing of the job before its end, and gives up if its API process ends."""
        return self.origin is not None and not self.streamed


@dataclass(frozen=True, slots=True)
class NewLine:
    """A line of a batch's input before it becomes a job."""

    id: str
    line: int
    custom_id: str
    model: str
    request: str
    metadata: str | None
    timeout_seconds: float | None
    agent_id: str | None
    agent_version: int | None
    format: Format = "chat"


@dataclass(slots=True)
class ClaimedJob:
    """A job under this worker's lease, with what the worker needs to run it. Nothing but `take_request` changes it."""

    id: str
    attempt: int
    account_id: str
    key_id: str
    model: str
    request: str
    background: bool
    streamed: bool
    origin: str | None
    tier: str
    route: int
    retries: int
    created: int
    seconds_left: float
    batch_id: str | None = None
    format: Format = "chat"
    conversation_id: str | None = None
    seconds_waited: float = 0.0
    """How long ago the job was due when it was claimed."""
    trace_context: str | None = None
    has_webhook: bool = True
    """Whether a webhook tells of its end."""
    size: int = 0
    """Bytes of the request."""

    def take_request(self) -> str:
        """Return the request, and forget it: its document serves the attempt, which may take long."""
        request, self.request = self.request, ""
        return request


@dataclass(frozen=True, slots=True)
class Segment:
    """Deltas `first_seq` to `last_seq` of an attempt, one a line."""

    job_id: str
    attempt: int
    first_seq: int
    last_seq: int
    chunks: str


@dataclass(slots=True)
class FinishedJob:
    """The end of an attempt, as the worker that holds it saw it. Nothing changes it."""

    id: str
    attempt: int
    state: State
    provider: str | None
    response: str | None
    error: str | None
    delta_count: int
    seconds_since_first_token: float | None
    segment: Segment | None
    spent: SpentUsage | None
    record: str
    """JSON of the attempt for the job's `attempts`, without `ended_at`, which the statement adds."""
    turn: Sequence[Item] = ()
    """What a completed job adds to its conversation: its own input and its output. Empty without a conversation."""
    followed: bool = True
    """Whether a batch counts its end, or a webhook tells of it."""

    @property
    def size(self) -> int:
        """Characters of its answer, of its last deltas and of its turn."""
        answer = 0 if self.response is None else len(self.response)
        deltas = 0 if self.segment is None else len(self.segment.chunks)
        return answer + deltas + sum(len(item.document) for item in self.turn)


@dataclass(frozen=True, slots=True)
class MovedJob:
    """A job moved by the scheduler, a client or an operator. It needs a wake-up, or readers need its end."""

    id: str
    tier: str
    state: State
    attempt: int
    origin: str | None
    moved: bool = True
    """False if it had ended before, and so was left as it is."""

    @property
    def never_ran(self) -> bool:
        """Whether no worker ever had it, and none will."""
        return self.state is State.CANCELLED and not self.attempt


@dataclass(frozen=True, slots=True)
class Backlog:
    """The head of a tier's queue: the jobs of its wake-ups in `job_ids`, those of the last few also in `last_ids`."""

    job_ids: Sequence[str]
    last_ids: Sequence[str]
    whole: bool
    """Whether these are all wake-ups of the queue."""


@dataclass(frozen=True, slots=True)
class HeldLine:
    """A job in a parcel."""

    id: str
    line: int
    attempt: int
    created: int
    request: str
    format: Format

    @property
    def background(self) -> bool:
        """True: no client waits for a line of a batch."""
        return True


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A due job that no worker has claimed."""

    id: str
    tier: str
    account_id: str
    background: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job stands, for a reader that follows its events."""

    state: State
    attempt: int
    in_attempt: bool
    """Whether a worker holds or ended it. If not, it waits, or the scheduler or a cancellation ended it."""
    delta_count: int
    created: int
    response: str | None
    error: str | None
    charge: Charge
    format: Format = "chat"

    @property
    def lacks_answer(self) -> bool:
        """Whether the answer was too large to be read with the rest."""
        return self.state is State.COMPLETED and self.response is None


@dataclass(frozen=True, slots=True)
class StoredJob:
    """What a job has stored of its request and answer. Times are in Unix seconds."""

    id: str
    state: State
    format: Format
    model: str
    background: bool
    created: int
    finished: int | None
    request: str
    response: str | None
    error: str | None
    stored: bool
    """Whether its client wants it kept after its end."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Conditions of a list of jobs. None is no condition; times are of creation."""

    state: State | None = None
    model: str | None = None
    agent_id: str | None = None
    batch_id: str | None = None
    format: Format | None = None
    metadata: Mapping[str, str] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
