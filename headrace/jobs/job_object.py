"""The job object, as every endpoint, event and command shows it."""

from __future__ import annotations

from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from headrace.errors import NotFoundError, shorten
from headrace.formats.chat.completion import ChatCompletion, CompletionUsage
from headrace.formats.chat.usage import TokenUsage, render_usage
from headrace.formats.responses.response_object import ResponseObject
from headrace.ids import is_id
from headrace.jobs.sql.read import get_job
from headrace.jobs.state import State
from headrace.stores.connections import Row
from headrace.stores.database import Database
from headrace.usage.queries import render_cost

JobFormat = Literal["chat", "responses"]
"""The format of a job's request and result: that of the client that sent it."""


class JobError(BaseModel):
    """Why a job has no result."""

    message: str
    type: str
    param: str | None
    code: str | None


class JobAttempt(BaseModel):
    """One attempt at a job that has ended. Times are in Unix seconds."""

    attempt: int
    status: Literal["completed", "failed", "cancelled", "expired", "returned", "lost"] = Field(
        description="`returned` by a worker that was shut down, `lost` with one that died"
    )
    provider: str | None
    model: str | None = Field(description="The provider's name for it")
    started_at: float | None
    ended_at: float
    error: JobError | None
    dropped_params: list[str] = Field(description="What the provider's format left out of the request")


class Job(BaseModel):
    """A completion job. Times are in Unix seconds."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "job_019aaf5ee3a04b3fb0a1c65d8c2a9be1",
                "object": "job",
                "status": "running",
                "model": "demo",
                "format": "chat",
                "provider": None,
                "attempt": 1,
                "attempts": [],
                "created_at": 1763856000,
                "started_at": 1763856000,
                "first_token_at": None,
                "finished_at": None,
                "expires_at": 1763942400,
                "queue_position": None,
                "service_tier": "default",
                "background": True,
                "result": None,
                "error": None,
                "usage": None,
                "cost": None,
                "metadata": {"customer": "42"},
                "batch_id": None,
                "custom_id": None,
                "agent_id": None,
                "agent_version": None,
            }
        }
    )

    id: str
    object: Literal["job"]
    status: State
    model: str
    format: JobFormat = Field(description="Of its request, its events' deltas and its result")
    provider: str | None = Field(description="Who answered")
    attempt: int = Field(description="How often a worker has started it")
    attempts: list[JobAttempt] = Field(description="Those that have ended: where, when, and why each failed")
    created_at: int
    started_at: int | None
    first_token_at: int | None
    finished_at: int | None
    expires_at: int = Field(description="The deadline, which a `timeout` sets")
    queue_position: int | None = Field(description="Jobs before it in its tier, while it is queued; 1,000 at most")
    service_tier: Literal["priority", "default", "flex", "batch"]
    background: bool
    result: ChatCompletion | ResponseObject | None = Field(
        description="Of a completed job: a chat completion, or a response, as `format` says"
    )
    error: JobError | None
    usage: CompletionUsage | None
    cost: str | None = Field(description="USD, exact; null while unknown or for a model without a price")
    metadata: dict[str, str] | None
    batch_id: str | None
    custom_id: str | None = Field(description="What its batch's input calls it")
    agent_id: str | None
    agent_version: int | None = Field(description="What the agent was when the job was accepted")


def render_job(row: Row) -> dict[str, Any]:
    """Return the job object of a row of the queries that get and list jobs, as orjson renders it."""
    return {
        "id": row.id,
        "object": "job",
        "status": row.state,
        "model": row.model,
        "format": row.format,
        "provider": row.provider,
        "attempt": row.attempt,
        "attempts": [_attempt(record) for record in row.tried],
        "created_at": row.created_at,
        "started_at": row.started_at,
        "first_token_at": row.first_token_at,
        "finished_at": row.finished_at,
        "expires_at": row.deadline_at,
        "queue_position": row.queue_position,
        "service_tier": row.tier,
        "background": row.background,
        "result": None if row.response is None else orjson.Fragment(row.response),
        "error": None if row.error is None else _error(row.error),
        "usage": _usage(row),
        "cost": None if row.cost is None else render_cost(row.cost),
        "metadata": row.metadata,
        "batch_id": row.batch_id,
        "custom_id": row.custom_id,
        "agent_id": row.agent_id,
        "agent_version": row.agent_version,
    }


def _attempt(record: dict[str, Any]) -> dict[str, Any]:
    ended_at, seconds = record["ended_at"], record.get("seconds")
    return {
        "attempt": record["attempt"],
        "status": record["status"],
        "provider": record.get("provider"),
        "model": record.get("model"),
        "started_at": None if seconds is None else round(ended_at - seconds, 3),
        "ended_at": round(ended_at, 3),
        "error": record.get("error"),
        "dropped_params": record.get("dropped_params", []),
    }


def _error(document: str) -> dict[str, Any]:
    error = orjson.loads(document)
    return {name: error[name] for name in JobError.model_fields}


def _usage(row: Row) -> dict[str, Any] | None:
    if row.prompt_tokens is None:
        return None
    tokens = TokenUsage(
        row.prompt_tokens,
        row.completion_tokens,
        row.cached_tokens,
        row.reasoning_tokens,
        row.estimated,
        row.cache_write_tokens,
    )
    return {**render_usage(tokens), "estimated": tokens.estimated}


async def find_job(database: Database, job_id: str, account_id: str) -> dict[str, Any]:
    """Return the job object of an account's job.

    Raises:
        NotFoundError: The account has no such job. The error is the same where another account has it.
    """
    row = await get_job(database, job_id, account_id) if is_id(job_id, "job") else None
    if row is None:
        raise no_such_job(job_id)
    return render_job(row)


def no_such_job(job_id: str) -> NotFoundError:
    """Return the error for an id by which the account has no job."""
    return NotFoundError(f"No job found with id '{shorten(job_id)}'.", param="job_id")
