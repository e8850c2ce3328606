"""Rows of jobs and of their streamed deltas. A trigger keeps a job's row from contradicting itself: see `rules.py`.

Postgres checks each foreign key of each new row by a query, so a job has few. Its key is one of its account. A line is
made from its batch's row, and a batch with lines is not deleted, so that needs no key.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from headrace.jobs.rules import CHECK_EACH_JOB, CHECK_JOB
from headrace.stores.tables import instant, metadata

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("account_id", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default="queued"),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column(
        "format",
        sa.Text,
        nullable=False,
        server_default="chat",
        comment="Of its request, its deltas and its response",
    ),
    sa.Column("agent_id", sa.Text),
    sa.Column("agent_version", sa.Integer),
    sa.Column("batch_id", sa.Text),
    sa.Column("line", sa.Integer, comment="Of the batch's input, from 1"),
    sa.Column("custom_id", sa.Text, comment="The name that the batch's client gave it"),
    sa.Column("conversation_id", sa.Text, comment="That it adds its items to if it is answered"),
    sa.Column("request", sa.Text, comment="The client's JSON as it came; null once erased"),
    sa.Column("metadata", JSONB),
    sa.Column("reserved_cost", sa.Numeric(20, 10), comment="USD that its limits hold back until it has ended"),
    sa.Column("tier", sa.Text, nullable=False, comment="Which queue wakes a worker for it"),
    sa.Column("background", sa.Boolean, nullable=False, comment="It runs on when the client that sent it is gone"),
    sa.Column("streamed", sa.Boolean, nullable=False, comment="The client that sent it reads deltas"),
    sa.Column("origin", sa.Text, comment="The API process whose client waits for it"),
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0", comment="The fence: raised by each claim"),
    sa.Column("route", sa.Integer, nullable=False, server_default="0", comment="Which of the model's routes is tried"),
    sa.Column("retries", sa.Integer, nullable=False, server_default="0", comment="Failed attempts on that route"),
    sa.Column("lost", sa.Integer, nullable=False, server_default="0", comment="Attempts whose worker went away"),
    sa.Column(
        "tried",
        JSONB,
        nullable=False,
        server_default="[]",
        comment="An object for each attempt that has ended: when, where and how",
    ),
    sa.Column("worker", sa.Text),
    sa.Column("provider", sa.Text),
    sa.Column("delta_count", sa.Integer, nullable=False, server_default="0", comment="Of the last attempt, at its end"),
    sa.Column("response", sa.Text, comment="The answer in the job's format, as JSON"),
    sa.Column("error", sa.Text, comment="OpenAI's error object and its HTTP `status`, as JSON"),
    sa.Column("webhook", sa.Text, comment="The URL that gets the event of its end"),
    sa.Column("trace_context", sa.Text, comment="Its traceparent, and its tracestate on a second line"),
    sa.Column(
        "stored",
        sa.Boolean,
        nullable=False,
        server_default=sa.true(),
        comment="Its content is kept after its end",
    ),
    instant("created_at", default=True),
    instant("scheduled_at", default=True),
    instant("sent_at", default=True),
    instant("deadline_at", nullable=False),
    instant("lease_until"),
    instant("cancel_requested_at"),
    instant("started_at"),
    instant("first_token_at"),
    instant("finished_at"),
    sa.Column("finished_in", sa.BigInteger, comment="The transaction: no snapshot sees a later one but not this"),
    instant("deleted_at"),
    sa.ForeignKeyConstraint(["key_id", "account_id"], ["api_keys.id", "api_keys.account_id"]),
    sa.ForeignKeyConstraint(["agent_id", "agent_version"], ["agent_versions.agent_id", "agent_versions.version"]),
    # The index has the columns that lists filter by, so that a list without a match reads no row.
    sa.Index(
        "ix_jobs_listed",
        "account_id",
        "id",
        postgresql_include=["state", "model", "format", "agent_id", "batch_id", "created_at"],
        postgresql_where=sa.text("deleted_at IS NULL"),
    ),
    sa.Index(
        "ix_jobs_metadata",
        "metadata",
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
        postgresql_where=sa.text("metadata IS NOT NULL AND deleted_at IS NULL"),
    ),
    # Small sets that are scanned all the time: queued jobs in order, queued jobs by account, running jobs. Ended jobs
    # are in none of these indexes.
    sa.Index("ix_jobs_queued", "tier", "id", postgresql_where=sa.text("state = 'queued'")),
    sa.Index(
        "ix_jobs_waiting",
        "tier",
        "background",
        "account_id",
        "scheduled_at",
        postgresql_where=sa.text("state = 'queued'"),
    ),
    sa.Index("ix_jobs_running", "id", postgresql_where=sa.text("state = 'running'")),
    sa.Index(
        "ix_jobs_unstored",
        "finished_at",
        postgresql_where=sa.text("NOT stored AND finished_at IS NOT NULL AND deleted_at IS NULL"),
    ),
    # A batch's lines: in order of the input, and of their ends.
    sa.Index(
        "uq_jobs_batch_id_line", "batch_id", "line", unique=True, postgresql_where=sa.text("batch_id IS NOT NULL")
    ),
    sa.Index(
        "ix_jobs_batch_id_finished_in_line",
        "batch_id",
        "finished_in",
        "line",
        postgresql_where=sa.text("batch_id IS NOT NULL AND finished_in IS NOT NULL"),
    ),
)

for _statement in (CHECK_JOB, CHECK_EACH_JOB):
    sa.event.listen(jobs, "after_create", sa.DDL(_statement))

job_deltas = sa.Table(
    "job_deltas",
    metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("first_seq", sa.Integer, nullable=False),
    sa.Column("last_seq", sa.Integer, nullable=False),
    sa.Column(
        "chunks", sa.Text, nullable=False, comment="One line for each event, without the fields that the API adds"
    ),
    sa.PrimaryKeyConstraint("job_id", "attempt", "first_seq"),
    sa.CheckConstraint("1 <= first_seq AND first_seq <= last_seq", name="seq_in_order"),
)
