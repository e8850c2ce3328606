from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

import headrace.agents.tables
import headrace.batches.tables
import headrace.conversations.tables
import headrace.files.tables
import headrace.idempotency.tables
import headrace.jobs.tables
import headrace.keys.tables
import headrace.stores.deployment
import headrace.usage.tables
import headrace.webhooks.tables  # noqa: F401  (each import puts its tables into the metadata)
from headrace.stores.database import Database
from headrace.stores.migrate import create_sync_engine, migrate
from headrace.stores.schema import current_revision, head_revision
from headrace.stores.tables import metadata
from headrace.usage.partitions import is_partition
from tests.integration.databases import create_database, fetch
from tests.service import ROOT, Stores
from tests.waiting import until

# What Postgres itself says of a schema. Constraints and indexes are compared by the SQL that would make them again.
DEFINITIONS = {
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version' ORDER BY 1, 2
    """,
    "indexes": """
        SELECT tablename, indexname, indexdef FROM pg_indexes
        WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1, 2
    """,
    "functions": """
        SELECT proname, pg_get_functiondef(oid) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND prokind = 'f' ORDER BY 1
    """,
    "triggers": """
        SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1
    """,
    "columns": """
        SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull,
               pg_get_expr(adbin, adrelid), col_description(attrelid, attnum)
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND attnum > 0
              AND relname <> 'alembic_version' ORDER BY 1, 2
    """,
}


@pytest.fixture(scope="module")
def models_url(stores: Stores) -> str:
    """A database that the models made, without a migration."""
    url = create_database(stores.database_url)
    engine = create_sync_engine(url)
    metadata.create_all(engine)
    engine.dispose()
    return url


@pytest.fixture
def empty_url(stores: Stores) -> str:
    return create_database(stores.database_url)


def revision_of(url: str) -> str | None:
    [(exists,)] = fetch(url, "SELECT to_regclass('alembic_version') IS NOT NULL")
    rows = fetch(url, "SELECT version_num FROM alembic_version") if exists else []
    return rows[0][0] if rows else None


@pytest.mark.parametrize("query", DEFINITIONS.values(), ids=DEFINITIONS.keys())
def test_migrations_make_what_the_models_say(database_url: str, models_url: str, query: str) -> None:
    migrated = fetch(database_url, query)
    assert migrated
    assert migrated == fetch(models_url, query)


def test_alembic_finds_nothing_left_to_migrate(database_url: str) -> None:
    engine = create_sync_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_name": lambda name, kind, _parents: kind != "table" or not is_partition(name),
            },
        )
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_tables_that_change_all_the_time_are_vacuumed_before_a_fifth_is_dead(database_url: str) -> None:
    query = """
        SELECT relname, option_value::float FROM pg_class, pg_options_to_table(reloptions)
        WHERE relnamespace = 'public'::regnamespace AND option_name = 'autovacuum_vacuum_scale_factor'
    """
    factors = dict(fetch(database_url, query))
    assert {"jobs", "job_deltas", "batch_tallies", "idempotency_keys", "webhook_deliveries"} <= factors.keys()
    assert max(factors.values()) < 0.1


def test_a_job_whose_lease_is_extended_stays_in_its_page(database_url: str) -> None:
    query = """
        SELECT option_value FROM pg_class, pg_options_to_table(reloptions)
        WHERE relname = 'jobs' AND option_name = 'fillfactor'
    """
    assert fetch(database_url, query) == [("80",)]
    indexed = "SELECT indexdef FROM pg_indexes WHERE tablename = 'jobs'"
    assert not any("lease_until" in definition for (definition,) in fetch(database_url, indexed))


def test_down_to_nothing_and_up_again_gives_the_same_schema(empty_url: str) -> None:
    migrate(empty_url)
    before = [fetch(empty_url, query) for query in DEFINITIONS.values()]
    migrate(empty_url, "base")
    assert [row for query in DEFINITIONS.values() for row in fetch(empty_url, query)] == []
    assert revision_of(empty_url) is None
    migrate(empty_url)
    assert [fetch(empty_url, query) for query in DEFINITIONS.values()] == before


def test_migrating_twice_changes_nothing(empty_url: str) -> None:
    for _ in range(2):
        migrate(empty_url)
        assert revision_of(empty_url) == head_revision()


def test_migrators_that_start_together_do_no_harm(empty_url: str, models_url: str) -> None:
    migrators = [
        subprocess.Popen(
            [sys.executable, "-m", "headrace", "migrate"],
            env={**os.environ, "DATABASE_URL": empty_url, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    printed = [migrator.communicate(timeout=60)[0] for migrator in migrators]
    assert [migrator.returncode for migrator in migrators] == [0, 0], printed
    assert revision_of(empty_url) == head_revision()
    for query in DEFINITIONS.values():
        assert fetch(empty_url, query) == fetch(models_url, query)


@pytest.mark.parametrize(("before", "table"), [("+20", "jobs"), ("+21", "native_parcels")])
def test_statements_go_on_while_a_migration_waits_for_their_table(empty_url: str, before: str, table: str) -> None:
    migrate(empty_url, before)
    engine = create_sync_engine(empty_url)
    waits = sa.text(f"SELECT count(*) FROM pg_locks WHERE relation = '{table}'::regclass AND NOT granted")
    with ThreadPoolExecutor() as threads, engine.connect() as reader, engine.connect() as other:
        reader.execute(sa.text(f"SELECT FROM {table}"))  # in a transaction, which stays open
        migration = threads.submit(migrate, empty_url)
        until(lambda: other.scalar(waits), "the migration to wait for its lock")
        other.execute(sa.text("SET statement_timeout = '10s'"))
        try:
            assert other.scalar(sa.text(f"SELECT count(*) FROM {table}")) == 0
            assert not migration.done()
        finally:
            other.rollback()
            reader.rollback()
        migration.result()
    engine.dispose()
    assert revision_of(empty_url) == head_revision()


def migrate_and_back(url: str) -> None:
    migrate(url)
    migrate(url, "base")


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        pytest.param(lambda url: None, None, id="never migrated"),
        pytest.param(migrate_and_back, None, id="migrated back"),
        pytest.param(migrate, head_revision(), id="migrated"),
    ],
)
async def test_the_current_revision_is_known_whatever_was_done(
    empty_url: str, prepare: Callable[[str], object], expected: str | None
) -> None:
    prepare(empty_url)
    database = Database.connect(empty_url, connections=1)
    assert await current_revision(database) == expected
    await database.close()
