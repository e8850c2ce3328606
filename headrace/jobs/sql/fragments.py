"""Parts that several statements on jobs share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from headrace.jobs.records import MovedJob
from headrace.jobs.state import State
from headrace.stores.connections import Row
from headrace.usage.spent import SpentUsage
from headrace.webhooks.queries import told_of_jobs

TRANSACTION = "pg_current_xact_id()::text::bigint"

SPENT = """INSERT INTO usage (
        kind, job_id, attempt, account_id, key_id, model, agent_id, batch_id, metadata, tier, streamed, queue_ms,
        first_token_ms, duration_ms, provider, answered_model, end_user, prompt_tokens, completion_tokens,
        cached_tokens, reasoning_tokens, cache_write_tokens, prompt_audio_tokens, completion_audio_tokens, estimated,
        cost, price)"""
SPENDER = (
    "jobs.id, jobs.account_id, jobs.key_id, jobs.model, jobs.agent_id, jobs.batch_id, jobs.metadata, "
    "jobs.tier, jobs.streamed, (extract(epoch FROM jobs.started_at - jobs.created_at) * 1000)::int AS queue_ms, "
    "(extract(epoch FROM jobs.first_token_at - jobs.created_at) * 1000)::int AS first_token_ms, "
    "(extract(epoch FROM now() - jobs.created_at) * 1000)::int AS duration_ms"
)
OF_SPENDER = (
    "id, attempt, account_id, key_id, model, agent_id, batch_id, metadata, tier, streamed, queue_ms, "
    "first_token_ms, duration_ms"
)


def tally(moved: str) -> str:
    """Return the part of a statement that tallies the jobs of batches that it ends without an answer.

    `moved` is its part with the `batch_id` and the new `state` of each job.
    """
    return f"""
), tallied AS (
    INSERT INTO batch_tallies (batch_id, failed, cancelled)
    SELECT batch_id, count(*) FILTER (WHERE state <> 'cancelled'), count(*) FILTER (WHERE state = 'cancelled')
    FROM {moved} WHERE batch_id IS NOT NULL AND state NOT IN ('queued', 'running') GROUP BY batch_id
)"""


def tally_and_announce(moved: str) -> str:
    """Return what `tally` does, and what tells of those that somebody is to be told of besides.

    `moved` has the `id`, `account_id` and `webhook` of each job too.
    """
    return f"{tally(moved).removesuffix(')')}{told_of_jobs(moved)})"


def append_record(status: str) -> str:
    """Return what notes of an attempt that its worker did not end how it went; nothing of an erased job."""
    return f"""tried = CASE WHEN deleted_at IS NULL THEN tried || jsonb_build_object(
                        'attempt', attempt, 'status', '{status}', 'ended_at', extract(epoch FROM now()))
                                 ELSE '[]' END"""


_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def storable(document: str) -> str:
    """Return a JSON text with another character for U+0000, which Postgres's `jsonb` has no place for."""
    return _NUL.sub(r"\1\\ufffd", document) if "\\u0000" in document else document


def spent_columns(spent: Sequence[SpentUsage | None]) -> dict[str, list[Any]]:
    """Return the parameters of a statement that writes what attempts spent, one item an attempt."""
    return {
        "prompt": [row and row.tokens.prompt_tokens for row in spent],
        "completion": [row and row.tokens.completion_tokens for row in spent],
        "cached": [row and row.tokens.cached_tokens for row in spent],
        "reasoning": [row and row.tokens.reasoning_tokens for row in spent],
        "written": [row and row.tokens.cache_write_tokens for row in spent],
        "prompt_audio": [row and row.tokens.prompt_audio_tokens for row in spent],
        "completion_audio": [row and row.tokens.completion_audio_tokens for row in spent],
        "estimated": [row and row.tokens.estimated for row in spent],
        "cost": [row and row.cost for row in spent],
        "price": [row and row.price for row in spent],
        "answered_model": [row and row.model for row in spent],
        "end_user": [row and row.end_user for row in spent],
    }


def moved_jobs(rows: Sequence[Row]) -> list[MovedJob]:
    """Return the jobs that a statement moved; its rows have these columns."""
    return [MovedJob(row.id, row.tier, State(row.state), row.attempt, row.origin) for row in rows]
