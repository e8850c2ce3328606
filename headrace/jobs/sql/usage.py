"""Parts of the statements that write a row of `usage` for an attempt as they end it."""

from __future__ import annotations

from operator import attrgetter

from headrace.jobs.sql.columns import Column, Columns
from headrace.usage.spent import SpentUsage

SPENT = Columns[SpentUsage](
    Column("answered_model", "text", attrgetter("model")),
    Column("end_user", "text"),
    Column("prompt_tokens", "bigint", attrgetter("tokens.prompt_tokens")),
    Column("completion_tokens", "bigint", attrgetter("tokens.completion_tokens")),
    Column("cached_tokens", "bigint", attrgetter("tokens.cached_tokens")),
    Column("reasoning_tokens", "bigint", attrgetter("tokens.reasoning_tokens")),
    Column("cache_write_tokens", "bigint", attrgetter("tokens.cache_write_tokens")),
    Column("prompt_audio_tokens", "bigint", attrgetter("tokens.prompt_audio_tokens")),
    Column("completion_audio_tokens", "bigint", attrgetter("tokens.completion_audio_tokens")),
    Column("estimated", "bool", attrgetter("tokens.estimated")),
    Column("cost", "numeric"),
    Column("price", "text", value="{}::jsonb"),
)
"""What an attempt spent, for its row of `usage`."""

JOB_FOR_USAGE = """jobs.id, jobs.account_id, jobs.key_id, jobs.model, jobs.agent_id, jobs.batch_id, jobs.metadata,
              jobs.tier, jobs.streamed,
              (extract(epoch FROM jobs.started_at - jobs.created_at) * 1000)::int AS queue_ms,
              (extract(epoch FROM jobs.first_token_at - jobs.created_at) * 1000)::int AS first_token_ms,
              (extract(epoch FROM now() - jobs.created_at) * 1000)::int AS duration_ms"""
"""Columns that a statement on `jobs` returns, of which the job's row of `usage` is made."""

_COPIED = (
    "account_id, key_id, model, agent_id, batch_id, metadata, tier, streamed, queue_ms, first_token_ms, duration_ms"
)

INSERT_USAGE = f"INSERT INTO usage (kind, job_id, attempt, {_COPIED}, provider, {SPENT.names})"
"""The head of a statement that writes rows of `usage`: `SELECT kind, {FROM_JOB}, provider, {the values of SPENT}`."""

FROM_JOB = f"id, attempt, {_COPIED}"
"""The job's part of a row of `usage`, selected from rows with an `attempt` and the columns of `JOB_FOR_USAGE`."""
