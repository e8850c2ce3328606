"""How Alembic reaches the database: one connection, one transaction, one migration at a time."""

from __future__ import annotations

import os

import sqlalchemy as sa
from alembic import context

import headrace.agents.tables
import headrace.batches.tables
import headrace.files.tables
import headrace.idempotency.tables
import headrace.jobs.tables
import headrace.keys.tables
import headrace.usage.tables
import headrace.webhooks.tables  # noqa: F401  (each import puts its tables into the metadata)
from headrace.database import engine_url
from headrace.tables import metadata
from headrace.usage.partitions import is_partition

# Any constant will do, as long as nothing else in the database takes the same advisory lock.
_LOCK = 0x68656164


def run_migrations() -> None:
    """Migrate under an advisory lock, so that several containers may start at once."""
    url = context.config.attributes.get("url") or engine_url(os.environ["DATABASE_URL"])
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=metadata,
            compare_server_default=True,
            include_name=lambda name, kind, _parents: kind != "table" or not is_partition(str(name)),
        )
        with context.begin_transaction():
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            context.run_migrations()
    engine.dispose()


run_migrations()
