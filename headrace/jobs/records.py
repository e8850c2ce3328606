"""What the statements on jobs take and return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from headrace.jobs.state import State
from headrace.usage.spent import Charge, SpentUsage


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a client asks for, before there is a row."""

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


@dataclass(frozen=True, slots=True)
class NewLine:
    """A line of a batch's input that is to become a job."""

    id: str
    line: int
    custom_id: str
    model: str
    request: str
    metadata: str | None
    timeout_seconds: float | None
    agent_id: str | None
    agent_version: int | None


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job under this worker's lease, and what it takes to run it."""

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


@dataclass(frozen=True, slots=True)
class Segment:
    """Deltas `first_seq` to `last_seq` of an attempt, one a line."""

    job_id: str
    attempt: int
    first_seq: int
    last_seq: int
    chunks: str


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """The end of an attempt, as the worker that holds it saw it."""

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
    """What the job's attempts say of this one, as JSON, but for when it ended."""


@dataclass(frozen=True, slots=True)
class MovedJob:
    """A job that was moved by another than its worker: to wake a worker for, or to tell its readers of its end."""

    id: str
    tier: str
    state: State
    attempt: int
    origin: str | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """The messages that workers take next from a tier's queue: `job_ids` of all of them, `last_ids` of the last few."""

    job_ids: Sequence[str]
    last_ids: Sequence[str]
    whole: bool
    """Whether there are no others."""


@dataclass(frozen=True, slots=True)
class HeldLine:
    """A job in a parcel."""

    id: str
    line: int
    attempt: int
    created: int
    request: str


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A due job that no worker has claimed."""

    id: str
    tier: str
    account_id: str
    background: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job stands, for one who follows its events."""

    state: State
    attempt: int
    in_attempt: bool
    """Whether a worker holds it, or ended it: else it waits, or was ended from outside."""
    delta_count: int
    created: int
    response: str | None
    error: str | None
    charge: Charge


@dataclass(frozen=True, slots=True)
class JobFilter:
    """What a list of jobs is narrowed to; None is no condition. Times are of creation."""

    state: State | None = None
    model: str | None = None
    agent_id: str | None = None
    batch_id: str | None = None
    metadata: Mapping[str, str] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
