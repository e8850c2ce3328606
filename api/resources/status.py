"""The state of the whole deployment in one answer: queues, rates, workers, providers, batches and the slowest jobs."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from api.http.authentication import MetricsReader
from api.http.errors import render_json
from api.http.request import ApiRequest
from headrace.batches.batch_object import RequestCounts
from headrace.batches.state import BatchState
from headrace.formats.chat.support import Format
from headrace.jobs.job_object import JobFormat

router = APIRouter(tags=["Health"])

StoreState = Literal["ok", "unavailable"]
CircuitState = Literal["closed", "open", "probing"]


class StatusStores(BaseModel):
    """Whether the stores answered the API process."""

    postgres: StoreState
    redis: StoreState


class QueueStatus(BaseModel):
    """The queue of one tier."""

    tier: str
    queued: int = Field(description="Jobs that wait, those included that are not due yet")
    exact: bool = Field(
        description="Whether `queued` is the count of this moment. A long queue is counted less often: it has its last "
        "count, or 10,000 before the first"
    )
    running: int = Field(description="Among the 10,000 running jobs that were accepted first")
    oldest_seconds: float = Field(description="How long ago the oldest job was due; 0 if none is due")


class RateSlot(BaseModel):
    """What ten seconds saw."""

    at: int = Field(description="When they began, in Unix seconds")
    submitted: int
    completed: int
    failed: int
    expired: int
    cancelled: int
    input_tokens: int
    output_tokens: int
    cost: float


class Rates(BaseModel):
    """Counts of the last minutes, over all accounts. They are for watching: the usage ledger is exact."""

    seconds: float = Field(description="Seconds that the counts cover: up to 300")
    submitted: int = Field(description="Jobs that were accepted, and lines of batches that became jobs")
    completed: int
    failed: int
    expired: int
    cancelled: int
    input_tokens: int
    output_tokens: int
    cost: float = Field(description="USD, of answers whose model has a price")
    slots: list[RateSlot] = Field(description="The same in slots of ten seconds, oldest first; the last one goes on")


class WorkerStatus(BaseModel):
    """A worker that has written its record in the last 5 seconds. Times are in Unix seconds."""

    name: str = Field(description="As `worker` of running jobs")
    host: str
    pid: int
    tiers: list[str]
    slots: int | None = Field(description="Jobs that it runs at once; null for a worker of an earlier release")
    running: int | None
    draining: bool
    started_at: float | None
    seen_at: float
    version: str | None


class SchedulerStatus(BaseModel):
    """The schedulers, of which one leads."""

    leader: str | None = Field(description="`host:pid` of the scheduler that leads; null if none has written lately")
    since: float | None = Field(description="When it began to lead, in Unix seconds")


class ProviderLimits(BaseModel):
    """The limits that the configuration sets, over all workers; null is no limit."""

    max_concurrency: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None


class PausedRoute(BaseModel):
    """A route that its provider asked to leave alone for a while."""

    route: str = Field(description="`provider/model`")
    seconds: float


class AdaptiveLimit(BaseModel):
    """How many calls a route takes at once, as the workers have found."""

    route: str = Field(description="`provider/model`")
    calls: int = Field(description="Calls at once, over all workers")


class ProviderStatus(BaseModel):
    """A provider of the configuration, as the workers see it. What they tell is null while Redis is unavailable."""

    name: str
    format: Format = Field(description="The format that it is asked in, unless a route says otherwise")
    circuit: CircuitState | None = Field(
        description="`open` if some worker makes no calls, `probing` if each such worker tries the next call"
    )
    open_on: int | None = Field(description="Workers whose circuit is open")
    failing_on: int | None = Field(description="Workers whose last calls failed; those with an open circuit too")
    open_accounts: int | None = Field(description="Accounts with an open circuit of their own")
    paused_for: float | None = Field(description="Seconds for which a route of it is still paused, the longest")
    paused_routes: list[PausedRoute] | None
    running: int | None = Field(description="Calls under way")
    adaptive_limits: list[AdaptiveLimit] | None = Field(
        description="Of routes with calls under way, where the configuration sets no limit"
    )
    limits: ProviderLimits
    calls: int | None = Field(description="Calls since the workers started")
    errors: int | None = Field(description="Those that the provider failed; requests that it refused as wrong are not")


class BatchStatus(BaseModel):
    """A batch that has not ended. Times are in Unix seconds."""

    id: str
    account_id: str
    model: str | None
    endpoint: str
    status: BatchState
    request_counts: RequestCounts
    created_at: int
    expires_at: int
    cost: str | None
    requests_per_second: float
    tokens_per_second: float
    seconds_left: float | None


class RunningJob(BaseModel):
    """A job that runs. Times are in Unix seconds."""

    id: str
    account_id: str
    model: str
    format: JobFormat
    tier: str
    status: Literal["running"]
    attempts: int
    worker: str
    created_at: float
    started_at: float


class Status(BaseModel):
    """The state of the deployment. What the store that is unavailable holds is null."""

    object: Literal["status"]
    at: float = Field(description="Unix seconds; an answer may be a second old")
    version: str = Field(description="Of the API process that answers")
    stores: StatusStores
    queues: list[QueueStatus] | None
    rates: Rates | None
    workers: list[WorkerStatus] | None
    scheduler: SchedulerStatus | None
    providers: list[ProviderStatus]
    batches: list[BatchStatus] | None = Field(description="The ten last created of those that have not ended")
    slowest_jobs: list[RunningJob] | None = Field(description="The ten running jobs that began first")


@router.get("/status", summary="The state of the deployment", responses={200: {"model": Status}})
async def status(request: ApiRequest, _: MetricsReader) -> Response:
    """Return queues, rates, workers, providers, batches and the slowest jobs, of all accounts together.

    An answer may be a second old. It names accounts and models, and has no content of requests or answers.
    """
    return render_json(await request.state["overview"].read())
