"""Separate databases for tests, on the run's one Postgres."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from headrace.stores.database import Database, execute
from tests.waiting import eventually

Session = psycopg.AsyncConnection[tuple[Any, ...]]


def create_database(server_url: str, *, template: str | None = None) -> str:
    """Return the URL of a new database, empty or a copy of the one at `template`, which must have no connections."""
    name = f"test_{secrets.token_hex(6)}"
    source = "template1" if template is None else urlsplit(template).path.lstrip("/")
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(source))
        )
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))


def fetch(url: str, query: str) -> Sequence[tuple[Any, ...]]:
    """Return the rows of one query."""
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


async def seen_by_all(database: Database) -> None:
    """Return once no transaction is older than what has been written.

    Some rows are read only then, and transactions of other databases on the server are among those that count.
    """
    [(last,)] = await execute(database.relaxed, "SELECT pg_current_xact_id()::text::bigint")
    query = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint > %(last)s"

    async def is_past() -> bool:
        [(past,)] = await execute(database.relaxed, query, {"last": last})
        return bool(past)

    await eventually(is_past, "older transactions to end")


async def waiting(session: Session) -> None:
    """Return once a statement of another connection waits for a lock that this session holds."""

    async def blocks() -> bool:
        await session.execute("SELECT pg_stat_clear_snapshot()")  # else a transaction sees no later connections
        cursor = await session.execute(
            "SELECT FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
        )
        return await cursor.fetchone() is not None

    await eventually(blocks, "a statement that waits for this session")
