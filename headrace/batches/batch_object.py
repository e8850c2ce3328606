"""The batch object and its progress, as every path and event shows them: `Batch` in OpenAI's description, and more."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from headrace.batches.queries import TIMES, get_batch
from headrace.batches.state import BatchState
from headrace.errors import NotFoundError, shorten
from headrace.ids import is_id
from headrace.stores.connections import Row
from headrace.stores.database import Database
from headrace.usage.queries import render_cost


class BatchError(BaseModel):
    """What is wrong with the input, in one place."""

    code: str
    message: str
    param: str | None
    line: int | None = Field(description="Of the input, from 1; null for what concerns all of it")


class BatchErrors(BaseModel):
    """Everything that is wrong with the input, up to a limit."""

    object: Literal["list"]
    data: list[BatchError]


class RequestCounts(BaseModel):
    """Counts of a batch's lines: all, answered, and failed.

    Lines that a cancelled batch did not run count only in `total`.
    """

    total: int
    completed: int
    failed: int


class CachedDetails(BaseModel):
    """Details of the input tokens."""

    cached_tokens: int


class ReasoningDetails(BaseModel):
    """Details of the output tokens."""

    reasoning_tokens: int


class BatchUsage(BaseModel):
    """Tokens of every line that has ended."""

    input_tokens: int
    input_tokens_details: CachedDetails
    output_tokens: int
    output_tokens_details: ReasoningDetails
    total_tokens: int


class Batch(BaseModel):
    """A batch. Times are in Unix seconds."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "batch_019aaf5ee3a04b3fb0a1c65d8c2a9be1",
                "object": "batch",
                "endpoint": "/v1/chat/completions",
                "model": "demo",
                "errors": None,
                "input_file_id": "file-019aaf5ee3a04b3fb0a1c65d8c2a9be2",
                "completion_window": "24h",
                "status": "in_progress",
                "output_file_id": None,
                "error_file_id": None,
                "created_at": 1763856000,
                "in_progress_at": 1763856001,
                "expires_at": 1763942400,
                "finalizing_at": None,
                "completed_at": None,
                "failed_at": None,
                "expired_at": None,
                "cancelling_at": None,
                "cancelled_at": None,
                "request_counts": {"total": 20000, "completed": 1200, "failed": 3},
                "usage": {
                    "input_tokens": 12000,
                    "input_tokens_details": {"cached_tokens": 0},
                    "output_tokens": 24000,
                    "output_tokens_details": {"reasoning_tokens": 0},
                    "total_tokens": 36000,
                },
                "cost": "0.0162",
                "metadata": {"customer": "42"},
                "webhook": None,
            }
        }
    )

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None = Field(description="The one that every line asks for; null where they differ")
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchState
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    cost: str | None = Field(description="USD, exact, of every line that has ended; null where nothing has a price")
    metadata: dict[str, str] | None
    webhook: str | None


class BatchProgress(BaseModel):
    """Where a batch stands, as its events say."""

    object: Literal["batch.progress"]
    batch_id: str
    status: BatchState
    request_counts: RequestCounts
    usage: BatchUsage
    cost: str | None
    requests_per_second: float = Field(description="Lines that ended in the last half minute, or since it began")
    tokens_per_second: float
    seconds_left: float | None = Field(description="At that pace; null while it is unknown")


def render_batch(row: Row) -> dict[str, Any]:
    """Return the batch object of a row with its counts."""
    return {
        "id": row.id,
        "object": "batch",
        "endpoint": row.endpoint,
        "model": row.model,
        "errors": None if row.errors is None else {"object": "list", "data": list(map(_error, row.errors))},
        "input_file_id": row.input_file_id,
        "completion_window": row.completion_window,
        "status": row.state,
        "output_file_id": row.output_file_id,
        "error_file_id": row.error_file_id,
        **{name: getattr(row, name) for name in TIMES},
        **_amounts(row),
        "metadata": row.metadata,
        "webhook": row.webhook,
    }


def _error(problem: dict[str, Any]) -> dict[str, Any]:
    return {name: problem[name] for name in BatchError.model_fields}  # Postgres keeps keys in an order of its own


def render_progress(row: Row) -> dict[str, Any]:
    """Return where a batch stands, and how fast it goes."""
    seconds = min(row.recent_seconds, row.seconds_running or 0)
    pace = row.recent_lines / seconds if seconds > 0 else 0.0
    left = row.total - row.completed - row.failed
    return {
        "object": "batch.progress",
        "batch_id": row.id,
        "status": row.state,
        **_amounts(row),
        "requests_per_second": round(pace, 2),
        "tokens_per_second": round(row.recent_tokens / seconds, 1) if seconds > 0 else 0.0,
        "seconds_left": round(left / pace, 1) if pace and row.state == BatchState.IN_PROGRESS else None,
    }


def _amounts(row: Row) -> dict[str, Any]:
    return {
        "request_counts": {"total": row.total, "completed": row.completed, "failed": row.failed},
        "usage": {
            "input_tokens": row.prompt_tokens,
            "input_tokens_details": {"cached_tokens": row.cached_tokens},
            "output_tokens": row.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": row.reasoning_tokens},
            "total_tokens": row.prompt_tokens + row.completion_tokens,
        },
        "cost": None if row.cost is None else render_cost(row.cost),
    }


async def find_batch(database: Database, batch_id: str, account_id: str) -> Row:
    """Return an account's batch.

    Raises:
        NotFoundError: The account has no such batch. The error is the same where another account has it.
    """
    row = await get_batch(database, batch_id, account_id) if is_id(batch_id, "batch") else None
    if row is None:
        raise NotFoundError(f"No batch found with id '{shorten(batch_id)}'.", param="batch_id")
    return row
