"""The ledger by month with all that is known of a job, what it adds up to, and limits of keys and accounts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision: str | None = "0005"
branch_labels = None
depends_on = None

_LIMITS_COMMENT = "As `headrace.quotas.rules` has them"
_OLD = (
    "job_id, attempt, account_id, key_id, model, agent_id, batch_id, provider, prompt_tokens, completion_tokens, "
    "cached_tokens, cache_write_tokens, reasoning_tokens, estimated, cost, created_at"
)


def _create_usage() -> None:
    op.create_table(
        "usage",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=False, comment="The model that the client asked for"),
        sa.Column("answered_model", sa.Text(), nullable=True, comment="The model that answered, as its provider said"),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=True),
        sa.Column("batch_id", sa.Text(), nullable=True),
        sa.Column("end_user", sa.Text(), nullable=True, comment="The request's `user` or `safety_identifier`"),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("tier", sa.Text(), server_default="default", nullable=False),
        sa.Column("streamed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False, comment="Part of prompt_tokens"),
        sa.Column(
            "cache_write_tokens", sa.BigInteger(), server_default="0", nullable=False, comment="Part of prompt_tokens"
        ),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=False, comment="Part of completion_tokens"),
        sa.Column(
            "prompt_audio_tokens", sa.BigInteger(), server_default="0", nullable=False, comment="Part of prompt_tokens"
        ),
        sa.Column(
            "completion_audio_tokens",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="Part of completion_tokens",
        ),
        sa.Column(
            "estimated", sa.Boolean(), nullable=False, comment="The provider reported none: counted by us, roughly"
        ),
        sa.Column("cost", sa.Numeric(), nullable=True, comment="USD; null when the model has no price"),
        sa.Column(
            "price",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=True,
            comment="USD for a million tokens of each sort at that moment, and where that is from",
        ),
        sa.Column("queue_ms", sa.Integer(), nullable=True, comment="From the job's creation to its first claim"),
        sa.Column("first_token_ms", sa.Integer(), nullable=True, comment="From the job's creation to its first delta"),
        sa.Column("duration_ms", sa.Integer(), nullable=True, comment="From the job's creation to its end"),
        sa.Column("note", sa.Text(), nullable=True, comment="Why it was corrected"),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "transaction",
            sa.BigInteger(),
            server_default=sa.text("(pg_current_xact_id()::text)::bigint"),
            nullable=False,
        ),
        sa.CheckConstraint("kind IN ('counted', 'discarded', 'correction')", name=op.f("ck_usage_kind_known")),
        sa.CheckConstraint(
            "kind = 'correction' OR prompt_tokens >= 0 AND completion_tokens >= 0"
            " AND reasoning_tokens BETWEEN 0 AND completion_tokens"
            " AND completion_audio_tokens BETWEEN 0 AND completion_tokens"
            " AND prompt_audio_tokens BETWEEN 0 AND prompt_tokens"
            " AND cached_tokens >= 0 AND cache_write_tokens >= 0"
            " AND cached_tokens + cache_write_tokens <= prompt_tokens",
            name=op.f("ck_usage_tokens_add_up"),
        ),
        sa.CheckConstraint("kind = 'correction' OR cost >= 0", name=op.f("ck_usage_cost_not_negative")),
        sa.CheckConstraint("(kind = 'correction') = (note IS NOT NULL)", name=op.f("ck_usage_note_of_correction")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_usage_account_id")),
        sa.PrimaryKeyConstraint("job_id", "attempt", "created_at", "kind", name=op.f("pk_usage")),
        postgresql_partition_by="RANGE (created_at)",
    )
    op.create_index("ix_usage_account_id_created_at", "usage", ["account_id", "created_at"])
    op.create_index("ix_usage_transaction", "usage", ["transaction"])
    # What no month's partition takes; the scheduler makes those ahead of time.
    op.execute("CREATE TABLE usage_other PARTITION OF usage DEFAULT")


_DIMENSIONS = (
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
_AMOUNTS = (
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


def _cell() -> list[sa.Column[object]]:
    return [
        sa.Column("view", sa.Text(), nullable=False, comment="Which dimensions it tells apart"),
        sa.Column("grain", sa.Text(), nullable=False, comment="How long it lasts: hour, day or month, in UTC"),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("start", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("digest", sa.Uuid(), nullable=False, comment="Of the dimensions"),
    ]


def _dimensions() -> list[sa.Column[object]]:
    return [sa.Column(name, sa.Text(), nullable=True) for name in _DIMENSIONS]


def _create_rollups() -> None:
    op.create_table(
        "usage_rollups",
        *_cell(),
        *_dimensions(),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _AMOUNTS),
        *(sa.Column(name, sa.Numeric(), nullable=False) for name in ("cost", "discarded_cost")),
        sa.CheckConstraint("grain IN ('hour', 'day', 'month')", name=op.f("ck_usage_rollups_grain_known")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_usage_rollups_account_id")),
        sa.PrimaryKeyConstraint("view", "grain", "account_id", "start", "digest", name=op.f("pk_usage_rollups")),
    )
    op.create_table(
        "usage_latencies",
        *_cell(),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("step", sa.SmallInteger(), nullable=False, comment="As `headrace.usage.latency` counts them"),
        *_dimensions(),
        sa.Column("requests", sa.BigInteger(), nullable=False, comment="How many took about so long"),
        sa.CheckConstraint("grain IN ('hour', 'day', 'month')", name=op.f("ck_usage_latencies_grain_known")),
        sa.CheckConstraint("metric IN ('first_token', 'duration')", name=op.f("ck_usage_latencies_metric_known")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_usage_latencies_account_id")),
        sa.PrimaryKeyConstraint(
            "view", "grain", "account_id", "start", "digest", "metric", "step", name=op.f("pk_usage_latencies")
        ),
    )
    op.create_table(
        "usage_mark",
        sa.Column("single", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("transaction", sa.BigInteger(), nullable=False, comment="Roll-ups have what was written before it"),
        sa.Column(
            "metadata_keys",
            postgresql.ARRAY(sa.Text()),
            nullable=False,
            comment="Those that roll-ups tell apart",
        ),
        sa.CheckConstraint("single", name=op.f("ck_usage_mark_single_row")),
        sa.PrimaryKeyConstraint("single", name=op.f("pk_usage_mark")),
    )


def _set_aside() -> None:
    # Not renamed: what belongs to a table would keep its names.
    op.execute("CREATE TEMPORARY TABLE usage_before ON COMMIT DROP AS SELECT * FROM usage")
    op.drop_table("usage")


def upgrade() -> None:
    _set_aside()
    _create_usage()
    op.execute(
        f"INSERT INTO usage (kind, {_OLD}) "  # noqa: S608  (of constants)
        f"SELECT CASE WHEN discarded THEN 'discarded' ELSE 'counted' END, {_OLD} FROM usage_before"
    )
    _create_rollups()

    limits = postgresql.JSONB(astext_type=sa.Text())
    op.add_column("accounts", sa.Column("limits", limits, server_default="{}", nullable=False, comment=_LIMITS_COMMENT))
    op.add_column("api_keys", sa.Column("limits", limits, server_default="{}", nullable=False, comment=_LIMITS_COMMENT))
    op.add_column(
        "api_keys",
        sa.Column("previous_hash", sa.LargeBinary(), nullable=True, comment="Of the key before its rotation"),
    )
    op.add_column("api_keys", sa.Column("previous_expires_at", sa.TIMESTAMP(timezone=True), nullable=True))
    op.add_column("api_keys", sa.Column("last_used_at", sa.TIMESTAMP(timezone=True), nullable=True))
    op.create_unique_constraint(op.f("uq_api_keys_previous_hash"), "api_keys", ["previous_hash"])
    op.create_check_constraint(
        op.f("ck_api_keys_previous_hash_is_sha256"), "api_keys", "octet_length(previous_hash) = 32"
    )
    op.create_check_constraint(
        op.f("ck_api_keys_previous_hash_ends"), "api_keys", "(previous_hash IS NULL) = (previous_expires_at IS NULL)"
    )
    op.add_column(
        "jobs",
        sa.Column(
            "reserved_cost",
            sa.Numeric(20, 10),
            nullable=True,
            comment="USD that its limits hold back until it has ended",
        ),
    )


def downgrade() -> None:
    op.drop_column("jobs", "reserved_cost")
    op.drop_constraint(op.f("ck_api_keys_previous_hash_ends"), "api_keys")
    op.drop_constraint(op.f("ck_api_keys_previous_hash_is_sha256"), "api_keys")
    op.drop_constraint(op.f("uq_api_keys_previous_hash"), "api_keys")
    for column in ("last_used_at", "previous_expires_at", "previous_hash", "limits"):
        op.drop_column("api_keys", column)
    op.drop_column("accounts", "limits")
    op.drop_table("usage_mark")
    op.drop_table("usage_latencies")
    op.drop_table("usage_rollups")

    _set_aside()
    op.create_table(
        "usage",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column(
            "discarded", sa.Boolean(), nullable=False, comment="Spent by an attempt whose answer was thrown away"
        ),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=False, comment="The model that the client asked for"),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False, comment="Part of prompt_tokens"),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=False, comment="Part of completion_tokens"),
        sa.Column(
            "estimated", sa.Boolean(), nullable=False, comment="The provider reported none: counted by us, roughly"
        ),
        sa.Column("cost", sa.Numeric(20, 10), nullable=True, comment="USD; null when the model has no price"),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=True),
        sa.Column(
            "cache_write_tokens", sa.BigInteger(), server_default="0", nullable=False, comment="Part of prompt_tokens"
        ),
        sa.Column("batch_id", sa.Text(), nullable=True),
        sa.CheckConstraint("cost >= 0", name=op.f("ck_usage_cost_not_negative")),
        sa.CheckConstraint(
            "prompt_tokens >= 0 AND completion_tokens >= 0 AND reasoning_tokens BETWEEN 0 AND completion_tokens"
            " AND cached_tokens >= 0 AND cache_write_tokens >= 0"
            " AND cached_tokens + cache_write_tokens <= prompt_tokens",
            name=op.f("ck_usage_tokens_add_up"),
        ),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_usage_account_id")),
        sa.PrimaryKeyConstraint("job_id", "attempt", name=op.f("pk_usage")),
    )
    op.create_index("ix_usage_account_id_created_at", "usage", ["account_id", "created_at"])
    op.create_index(
        "uq_usage_job_id_counted", "usage", ["job_id"], unique=True, postgresql_where=sa.text("NOT discarded")
    )
    # Corrections have no place in the ledger of before.
    op.execute(
        f"INSERT INTO usage (discarded, {_OLD}) "  # noqa: S608  (of constants)
        f"SELECT kind = 'discarded', {_OLD} FROM usage_before WHERE kind <> 'correction'"
    )
