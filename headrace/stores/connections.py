"""Autocommitting connections to Postgres, and how long each statement may take."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import psycopg
import sqlalchemy as sa
from psycopg.rows import namedtuple_row
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from headrace.stores.failures import STALE, no_answer

Row = sa.Row[*tuple[Any, ...]]
Isolation = Literal["READ COMMITTED", "REPEATABLE READ"]

PATIENCE_SECONDS = 10.0
"""Seconds to wait for a job's statement, which normally takes milliseconds."""
LONG_PATIENCE_SECONDS = 40.0
"""Seconds to wait for a statement that reads many rows."""
ENDLESS_PATIENCE_SECONDS = 86_400.0
"""Seconds to wait for what goes through a whole ledger: a day."""

# The part of the patience after which Postgres gives up itself. It has to be the first: a statement that is given up by
# its client alone may be done later.
SERVER_SHARE = 0.8

# For a connection to come free: while Postgres is away nobody stands in line for long.
ROOM_SECONDS = 5.0


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

        Raises:
            sqlalchemy.exc.DBAPIError: Postgres refused it or is away.
            sqlalchemy.exc.TimeoutError: It did not answer for `patience_seconds`, or no connection came free.
        """
        if not isinstance(statement, str):
            async with self.engine.connect() as connection, _longer(connection, patience_seconds):
                return await _execute(connection, statement, parameters, patience_seconds=patience_seconds)
        async with self._turn():
            plain = self._idle.pop() if self._idle else await self._open()
            patience = Patience(plain.connection, patience_seconds)
            timeout = max(patience_seconds, PATIENCE_SECONDS)
            try:
                with patience:
                    if plain.timeout != timeout:
                        await plain.cursor.execute(_give_up_after(timeout))
                        plain.timeout = timeout
                    await plain.cursor.execute(statement, parameters)
                    rows: list[Any] = await plain.cursor.fetchall() if plain.cursor.description else []
            except psycopg.Error as error:
                dead = plain.connection.closed or error.sqlstate in STALE
                if dead:
                    await plain.connection.close()
                    await self._close_idle()  # after a restart of Postgres, or a failover, they are all dead
                else:
                    self._idle.append(plain)
                if patience.over:
                    raise no_answer(patience_seconds) from error
                raise self._translated(error, dead=dead) from error
            except BaseException:  # cancelled half-way: what comes next on that wire is anybody's guess
                await plain.connection.close()
                raise
            self._idle.append(plain)
            return rows

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Connections]:
        """Give one connection, which ends with this: for what a session keeps."""
        async with self.engine.connect() as connection:
            try:
                yield _One(self.engine, connection)
            finally:
                await connection.invalidate()

    @contextlib.asynccontextmanager
    async def transaction(self, isolation_level: Isolation) -> AsyncIterator[Connections]:
        """Give one connection in a transaction, which is committed at the end, or rolled back by an error."""
        async with self.engine.connect() as connection:
            await connection.execution_options(isolation_level=isolation_level)
            async with connection.begin():
                yield _One(self.engine, connection)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if not self._room.locked():
            await self._room.acquire()
        else:
            try:
                async with asyncio.timeout(ROOM_SECONDS):
                    await self._room.acquire()
            except TimeoutError:
                raise sa.exc.TimeoutError(f"No connection to Postgres came free within {ROOM_SECONDS:g} s.") from None
        try:
            yield
        finally:
            self._room.release()

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


class _One(Connections):
    """One connection, for several statements that belong together."""

    def __init__(self, engine: AsyncEngine, connection: AsyncConnection) -> None:
        super().__init__(engine, limit=1)
        self._connection = connection

    async def execute(
        self, statement: str | sa.Executable, parameters: Mapping[str, Any] | None, *, patience_seconds: float
    ) -> Sequence[Row]:
        """Run one statement on it. Raises what any other connection does.

        In a transaction, a longer patience holds for the rest of it.
        """
        if patience_seconds > PATIENCE_SECONDS:
            await _execute(
                self._connection, _give_up_after(patience_seconds, local=True), None, patience_seconds=PATIENCE_SECONDS
            )
        return await _execute(self._connection, statement, parameters, patience_seconds=patience_seconds)


class Patience:
    """Hangs up on a connection from which no answer comes for too long: behind a dead router the kernel never would."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], seconds: float) -> None:
        self.over = False
        self._connection = connection
        self._timer = asyncio.get_running_loop().call_later(seconds, self._hang_up)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _hang_up(self) -> None:
        self.over = True
        with (
            contextlib.suppress(OSError, psycopg.Error),
            socket.socket(fileno=os.dup(self._connection.fileno())) as wire,
        ):
            wire.shutdown(socket.SHUT_RDWR)


def _give_up_after(patience_seconds: float, *, local: bool = False) -> str:
    """Return what has Postgres give up before a client of such patience does; `local` to a transaction or not."""
    milliseconds = round(patience_seconds * SERVER_SHARE * 1000)
    return f"SET {'LOCAL ' if local else ''}statement_timeout = {milliseconds}"


@contextlib.asynccontextmanager
async def _longer(connection: AsyncConnection, patience_seconds: float) -> AsyncIterator[None]:
    """Let Postgres take longer over a connection's statements meanwhile, if the patience is longer than usual."""
    if patience_seconds <= PATIENCE_SECONDS:
        yield
        return
    await connection.exec_driver_sql(_give_up_after(patience_seconds))
    try:
        yield
    finally:
        with contextlib.suppress(SQLAlchemyError):
            await connection.exec_driver_sql(_give_up_after(PATIENCE_SECONDS))


async def _execute(
    connection: AsyncConnection,
    statement: str | sa.Executable,
    parameters: Mapping[str, Any] | None,
    *,
    patience_seconds: float,
) -> Sequence[Row]:
    raw = await connection.get_raw_connection()
    with Patience(cast("psycopg.AsyncConnection[Any]", raw.driver_connection), patience_seconds) as patience:
        try:
            if isinstance(statement, str):
                result = await connection.exec_driver_sql(statement, parameters)
            else:
                result = await connection.execute(statement, parameters)
            return result.all() if result.returns_rows else []
        except DBAPIError as error:
            if patience.over:
                raise no_answer(patience_seconds) from error
            raise


@dataclass(slots=True)
class _Plain:
    connection: psycopg.AsyncConnection[Any]
    cursor: psycopg.AsyncCursor[Any]
    timeout: float = PATIENCE_SECONDS
    """The patience in seconds that its `statement_timeout` is for."""
