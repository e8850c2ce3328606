"""Rows of the ledger, and what they add up to by hour, day and month.

The ledger is only ever added to. A row is of one of three kinds: `counted`, the one of a job's end; `discarded`, of an
attempt that was thrown away; and `correction`, which adds to what was counted, or with negative amounts takes from it.

Each row has the transaction that wrote it. Roll-ups have what all transactions before a mark wrote, so that the two
together are the whole at any moment, however late a transaction commits.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from headrace.stores.tables import instant, metadata

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("account_id", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text),
    sa.Column("model", sa.Text, nullable=False, comment="The model that the client asked for"),
    sa.Column("answered_model", sa.Text, comment="The model that answered, as its provider said"),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("agent_id", sa.Text),
    sa.Column("batch_id", sa.Text),
    sa.Column("end_user", sa.Text, comment="The request's `user` or `safety_identifier`"),
    sa.Column("metadata", JSONB),
    sa.Column("tier", sa.Text, nullable=False, server_default="default"),
    sa.Column("streamed", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False, comment="Part of prompt_tokens"),
    sa.Column("cache_write_tokens", sa.BigInteger, nullable=False, server_default="0", comment="Part of prompt_tokens"),
    sa.Column("reasoning_tokens", sa.BigInteger, nullable=False, comment="Part of completion_tokens"),
    sa.Column(
        "prompt_audio_tokens", sa.BigInteger, nullable=False, server_default="0", comment="Part of prompt_tokens"
    ),
    sa.Column(
        "completion_audio_tokens",
        sa.BigInteger,
        nullable=False,
        server_default="0",
        comment="Part of completion_tokens",
    ),
    sa.Column("estimated", sa.Boolean, nullable=False, comment="The provider reported none: counted by us, roughly"),
    sa.Column("cost", sa.Numeric, comment="USD; null when the model has no price"),
    sa.Column("price", JSONB, comment="USD for a million tokens of each sort at that moment, and where that is from"),
    sa.Column("queue_ms", sa.Integer, comment="From the job's creation to its first claim"),
    sa.Column("first_token_ms", sa.Integer, comment="From the job's creation to its first delta"),
    sa.Column("duration_ms", sa.Integer, comment="From the job's creation to its end"),
    sa.Column("note", sa.Text, comment="Why it was corrected"),
    instant("created_at", default=True),
    sa.Column(
        "transaction", sa.BigInteger, nullable=False, server_default=sa.text("(pg_current_xact_id()::text)::bigint")
    ),
    sa.PrimaryKeyConstraint("job_id", "attempt", "created_at", "kind"),
    sa.CheckConstraint("kind IN ('counted', 'discarded', 'correction')", name="kind_known"),
    sa.CheckConstraint(
        "kind = 'correction' OR prompt_tokens >= 0 AND completion_tokens >= 0"
        " AND reasoning_tokens BETWEEN 0 AND completion_tokens"
        " AND completion_audio_tokens BETWEEN 0 AND completion_tokens"
        " AND prompt_audio_tokens BETWEEN 0 AND prompt_tokens"
        " AND cached_tokens >= 0 AND cache_write_tokens >= 0 AND cached_tokens + cache_write_tokens <= prompt_tokens",
        name="tokens_add_up",
    ),
    sa.CheckConstraint("kind = 'correction' OR cost >= 0", name="cost_not_negative"),
    sa.CheckConstraint("(kind = 'correction') = (note IS NOT NULL)", name="note_of_correction"),
    sa.Index("ix_usage_account_id_created_at", "account_id", "created_at"),
    sa.Index("ix_usage_transaction", "transaction"),
    postgresql_partition_by="RANGE (created_at)",
)
# What no month's partition takes; `headrace.usage.partitions` makes those ahead of time.
_OTHER = sa.DDL("CREATE TABLE usage_other PARTITION OF usage DEFAULT")
sa.event.listen(usage, "after_create", _OTHER)

# Postgres's own sum of bigints is a numeric, and takes several times as long. This one raises an error past a bigint.
_BIGINT_SUM = sa.DDL(
    "CREATE AGGREGATE bigint_sum(bigint) "
    "(SFUNC = int8pl, STYPE = bigint, INITCOND = '0', COMBINEFUNC = int8pl, PARALLEL = SAFE)"
)
sa.event.listen(usage, "after_create", _BIGINT_SUM)

DIMENSIONS = (
    "model",
    "answered_model",
    "provider",
    "key_id",
    "agent_id",
    "batch_id",
    "tier",
    "end_user",
    "metadata_key",
    "metadata_value",
)
"""The dimensions of roll-ups. Each view has some of them."""

AMOUNTS = (
    "requests",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "prompt_audio_tokens",
    "completion_audio_tokens",
    "estimated_requests",
    "unpriced_requests",
    "streamed_requests",
    "discarded_attempts",
    "discarded_tokens",
    "queue_ms",
)
"""Counts that are added up."""

COSTS = ("cost", "discarded_cost")
"""USD that are added up."""


def _cell(*columns: sa.Column[Any]) -> list[sa.Column[Any]]:
    """Return the columns that all tables of roll-ups have, and `columns`, which complete the key."""
    return [
        sa.Column("view", sa.Text, primary_key=True, comment="Which dimensions it tells apart"),
        sa.Column("grain", sa.Text, primary_key=True, comment="How long it lasts: hour, day or month, in UTC"),
        sa.Column("account_id", sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("start", sa.TIMESTAMP(timezone=True), primary_key=True),
        sa.Column("digest", sa.Uuid, primary_key=True, comment="Of the dimensions"),
        *columns,
        *(sa.Column(name, sa.Text) for name in DIMENSIONS),
    ]


usage_rollups = sa.Table(
    "usage_rollups",
    metadata,
    *_cell(),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in AMOUNTS),
    *(sa.Column(name, sa.Numeric, nullable=False) for name in COSTS),
    sa.CheckConstraint("grain IN ('hour', 'day', 'month')", name="grain_known"),
)

usage_latencies = sa.Table(
    "usage_latencies",
    metadata,
    *_cell(
        sa.Column("metric", sa.Text, primary_key=True),
        sa.Column("step", sa.SmallInteger, primary_key=True, comment="As `headrace.usage.latency` counts them"),
    ),
    sa.Column("requests", sa.BigInteger, nullable=False, comment="How many took about so long"),
    sa.CheckConstraint("grain IN ('hour', 'day', 'month')", name="grain_known"),
    sa.CheckConstraint("metric IN ('first_token', 'duration')", name="metric_known"),
)

usage_mark = sa.Table(
    "usage_mark",
    metadata,
    sa.Column("single", sa.Boolean, primary_key=True, server_default=sa.true()),
    sa.Column("transaction", sa.BigInteger, nullable=False, comment="Roll-ups have what was written before it"),
    sa.Column("metadata_keys", ARRAY(sa.Text), nullable=False, comment="Those that roll-ups tell apart"),
    sa.CheckConstraint("single", name="single_row"),
)
