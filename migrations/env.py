"""How Alembic reaches the database: one process at a time, one transaction for each migration.

An index on a table that may be large is built concurrently, in an `autocommit_block`, between transactions. It waits
for every transaction that has begun before, so a process that waits for its turn must not be in one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import sqlalchemy as sa
from alembic import context

import headrace.agents.tables
import headrace.batches.tables
import headrace.conversations.tables
import headrace.files.tables
import headrace.idempotency.tables
import headrace.jobs.tables
import headrace.keys.tables
import headrace.runtime.fingerprints
import headrace.stores.deployment
import headrace.usage.tables
import headrace.webhooks.tables  # noqa: F401  (each import puts its tables into the metadata)
from headrace.settings import SettingError
from headrace.stores.migrate import create_sync_engine
from headrace.stores.tables import metadata
from headrace.usage.partitions import is_partition
from headrace.usage.rebuild import is_new_rollup

# Any constant will do, as long as nothing else in the database takes the same advisory lock.
_LOCK = 0x68656164
# Seconds between two tries to get it.
_AGAIN_SECONDS = 0.5


@contextlib.contextmanager
def _turn(engine: sa.Engine) -> Iterator[None]:
    """Wait until no other process migrates, and keep them waiting meanwhile, on a connection without a transaction."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        encoding = connection.scalar(sa.text("SHOW server_encoding"))
        if encoding != "UTF8":
            raise SettingError(f"DATABASE_URL: the database's encoding is {encoding}, and is to be UTF8.")
        while not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(_LOCK))):
            time.sleep(_AGAIN_SECONDS)
        yield


def _has_no_model(table: str) -> bool:
    return is_partition(table) or is_new_rollup(table)


def run_migrations() -> None:
    """Migrate when it is this process's turn, so that several containers may start at once."""
    engine = create_sync_engine(context.config.attributes.get("url") or os.environ["DATABASE_URL"])
    with _turn(engine), engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=metadata,
            compare_server_default=True,
            transaction_per_migration=True,
            include_name=lambda name, kind, _parents: kind != "table" or not _has_no_model(str(name)),
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run_migrations()
