"""Connections to Postgres, of autocommitted statements, and the schema's migrations.

Every write of Headrace is one statement, so a transaction is one round trip and there is no session to keep. What must
not be lost goes through `durable`; what only repeats work when it is lost (claims, heartbeats, delta segments) goes
through `relaxed`, whose commits do not wait for the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.rows import namedtuple_row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

Row = sa.Row[*tuple[Any, ...]]

PATIENCE_SECONDS = 15.0
"""None of the statements of a job takes as long, by far."""
LONG_PATIENCE_SECONDS = 40.0
"""Of questions that Postgres may think about until its `statement_timeout`."""

# Half-open connections are noticed in about ten seconds rather than in the kernel's two hours.
_CONNECT_ARGS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

_MIGRATIONS = Path(__file__).parent.parent / "migrations"


def engine_url(database_url: str) -> sa.URL:
    """Return the URL with psycopg as its driver; `postgresql://…` and `postgres://…` are both understood."""
    url = sa.make_url(database_url.replace("postgres://", "postgresql://", 1))
    return url.set(drivername="postgresql+psycopg")


class Connections:
    """Autocommitting connections to Postgres: SQLAlchemy's engine, and beside it some for the hot path's plain SQL.

    SQLAlchemy costs a statement three times what psycopg alone does. So a statement that is a text in psycopg's own
    parameter style goes straight to psycopg, over connections that the engine opened and let go of.
    """

    def __init__(self, engine: AsyncEngine, *, limit: int) -> None:
        """Keep up to `limit` connections for plain SQL."""
        self.engine = engine
        self._idle: list[_Plain] = []
        self._room = asyncio.Semaphore(limit)

    async def execute(
        self, statement: str | sa.Executable, parameters: Mapping[str, Any] | None, *, patience_seconds: float
    ) -> Sequence[Row]:
        """Run one statement, once, and return its rows if it has any.

        A connection over which nothing comes for `patience_seconds` is taken for dead.

        Raises:
            sqlalchemy.exc.DBAPIError: Postgres refused it or is away.
        """
        if not isinstance(statement, str):
            async with self.engine.connect() as connection:
                driver = cast("psycopg.AsyncConnection[Any]", (await connection.get_raw_connection()).driver_connection)
                timer = asyncio.get_running_loop().call_later(patience_seconds, _hang_up, driver)
                try:
                    result = await connection.execute(statement, parameters)
                    return result.all() if result.returns_rows else []
                finally:
                    timer.cancel()
        async with self._room:
            plain = self._idle.pop() if self._idle else await self._open()
            timer = asyncio.get_running_loop().call_later(patience_seconds, _hang_up, plain.connection)
            try:
                await plain.cursor.execute(statement, parameters)
                rows: list[Any] = await plain.cursor.fetchall() if plain.cursor.description else []
            except psycopg.Error as error:
                dead = plain.connection.closed
                if dead:
                    await self._close_idle()  # after a restart of Postgres they are all dead
                else:
                    self._idle.append(plain)
                raise self._translated(error, dead=dead) from error
            except BaseException:  # cancelled half-way: what comes next on that wire is anybody's guess
                await plain.connection.close()
                raise
            finally:
                timer.cancel()
            self._idle.append(plain)
            return rows

    async def close(self) -> None:
        """Close every connection."""
        await self._close_idle()
        await self.engine.dispose()

    async def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for plain in idle:
            await plain.connection.close()

    async def _open(self) -> _Plain:
        try:
            pooled = await self.engine.raw_connection()
        except psycopg.Error as error:
            raise self._translated(error, dead=False) from error
        connection = cast("psycopg.AsyncConnection[Any]", pooled.driver_connection)
        pooled.detach()
        return _Plain(connection, connection.cursor(row_factory=namedtuple_row))

    def _translated(self, error: psycopg.Error, *, dead: bool) -> DBAPIError:
        """Return an error as SQLAlchemy has it, without parameters."""
        translated = DBAPIError.instance(
            None,
            None,
            error,
            psycopg.Error,
            hide_parameters=True,
            connection_invalidated=dead,
            dialect=self.engine.dialect,
        )
        return cast("DBAPIError", translated)


def _hang_up(connection: psycopg.AsyncConnection[Any]) -> None:
    """Let whoever waits for an answer know that none comes: behind a dead router the kernel never would."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class _Plain:
    connection: psycopg.AsyncConnection[Any]
    cursor: psycopg.AsyncCursor[Any]


@dataclass(frozen=True, slots=True)
class Database:
    """The two kinds of connections of a process."""

    durable: Connections
    relaxed: Connections

    @classmethod
    def connect(cls, database_url: str, *, connections: int = 8) -> Database:
        """Return connections that are opened when first needed, at most `connections` of each kind and use."""

        def kind(**options: str) -> Connections:
            settings = " ".join(f"-c {name}={value}" for name, value in options.items())
            engine = create_async_engine(
                engine_url(database_url),
                isolation_level="AUTOCOMMIT",
                hide_parameters=True,  # a prompt has no place in a log
                pool_size=connections,
                max_overflow=0,
                pool_timeout=10,
                pool_use_lifo=True,
                connect_args={**_CONNECT_ARGS, "options": settings},
            )
            return Connections(engine, limit=connections)

        return cls(
            durable=kind(statement_timeout="30s"), relaxed=kind(statement_timeout="30s", synchronous_commit="off")
        )

    async def close(self) -> None:
        """Close every connection."""
        await self.durable.close()
        await self.relaxed.close()


async def execute(
    connections: Connections,
    statement: str | sa.Executable,
    parameters: Mapping[str, Any] | None = None,
    *,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Sequence[Row]:
    """Run one statement, SQLAlchemy's or a text in psycopg's parameter style, and return its rows if it has any.

    It is run again, once, when its connection turns out to be dead: after a restart of Postgres every one is. So a
    statement may have been done before, and each of ours does no harm the second time. A connection is dead that does
    not answer for `patience_seconds` too.

    Raises:
        sqlalchemy.exc.DBAPIError: Postgres refused it or is away.
        sqlalchemy.exc.TimeoutError: Every connection is taken.
    """
    try:
        return await connections.execute(statement, parameters, patience_seconds=patience_seconds)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
    return await connections.execute(statement, parameters, patience_seconds=patience_seconds)


def _alembic(database_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["url"] = engine_url(database_url)
    return config


def migrate(database_url: str, revision: str = "head") -> None:
    """Bring the schema to `revision`, up or down. Several may run at once: one migrates, the others wait for it."""
    config = _alembic(database_url)
    if revision == "head" or revision.startswith("+"):
        command.upgrade(config, revision)
    else:
        command.downgrade(config, revision)


def head_revision() -> str:
    """Return the revision that this code expects the schema to have."""
    head = ScriptDirectory(str(_MIGRATIONS)).get_current_head()
    assert head is not None
    return head


async def current_revision(database: Database) -> str | None:
    """Return the revision that the schema has, or None if it was never migrated."""
    found = await execute(database.relaxed, "SELECT to_regclass('alembic_version') IS NOT NULL")
    if not found[0][0]:
        return None
    rows = await execute(database.relaxed, "SELECT version_num FROM alembic_version")
    return rows[0][0] if rows else None
