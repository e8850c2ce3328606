"""Autocommitting connections to Postgres, and the time limit of each statement."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Literal, Self, cast

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from headrace.stores.failures import STALE, no_answer
from headrace.stores.plain import PlainConnection

Row = sa.Row[*tuple[Any, ...]]
Isolation = Literal["READ COMMITTED", "REPEATABLE READ"]

PATIENCE_SECONDS = 10.0
"""Seconds to wait for a job's statement, which normally takes milliseconds."""
LONG_PATIENCE_SECONDS = 40.0
"""Seconds to wait for a statement that reads many rows."""
ENDLESS_PATIENCE_SECONDS = 86_400.0
"""Seconds to wait for a statement that reads the whole ledger: a day."""

# Share of the patience after which Postgres itself cancels a statement. Postgres has to be first: a statement that only
# its client has given up may still take effect.
SERVER_SHARE = 0.8

# Seconds to wait for a free connection. While Postgres is unavailable, callers fail after that time.
FREE_CONNECTION_SECONDS = 5.0


class Connections:
    """Autocommitting connections to Postgres: SQLAlchemy's engine, and a pool for the hot path's plain SQL.

    A statement costs three times as much CPU through SQLAlchemy as through psycopg alone. So a statement that is a text
    in psycopg's own parameter style goes straight to psycopg, over connections that the engine opened and detached.
    """

    reconnects = True
    """Whether a statement on a connection that turns out to be dead may run again, on another one."""

    def __init__(self, engine: AsyncEngine, *, limit: int) -> None:
        """Keep up to `limit` connections for plain SQL."""
        self.engine = engine
        self._idle: list[PlainConnection] = []
        self._room = asyncio.Semaphore(limit)

    async def execute(
        self, statement: str | sa.Executable, parameters: Mapping[str, Any] | None, *, patience_seconds: float
    ) -> Sequence[Row]:
        """Run one statement, once, and return its rows if it has any.

        Raises:
            sqlalchemy.exc.DBAPIError: Postgres refused the statement or is unavailable.
            sqlalchemy.exc.TimeoutError: Postgres did not answer for `patience_seconds`, or no connection became free.
        """
        if not isinstance(statement, str):
            async with self.engine.connect() as connection, _longer(connection, patience_seconds):
                return await _execute(connection, statement, parameters, patience_seconds=patience_seconds)
        await self._wait_for_turn()
        try:
            return await self._run(statement, parameters, patience_seconds)
        finally:
            self._room.release()

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Connections]:
        """Give one connection for what a session keeps, such as an advisory lock. It is closed at the end."""
        session = _Session(self.engine, await self._open())
        try:
            yield session
        finally:
            await session.close()

    @contextlib.asynccontextmanager
    async def transaction(self, isolation_level: Isolation) -> AsyncIterator[Connections]:
        """Give one connection in a transaction. The end commits it; an error rolls it back.

        Raises:
            sqlalchemy.exc.DBAPIError: Postgres is unavailable.
            sqlalchemy.exc.TimeoutError: Postgres did not answer the commit in time, which may take effect, or no
                connection became free.
        """
        async with self.engine.connect() as connection:
            await _revive(connection)
            driver = await _driver_connection(connection)
            await connection.execution_options(isolation_level=isolation_level)
            begun = await connection.begin()
            try:
                yield _One(self.engine, connection)
            except BaseException:
                with Patience(driver, PATIENCE_SECONDS):
                    await begun.rollback()
                raise
            # Postgres has no time limit for a commit.
            with _answer_within(driver, LONG_PATIENCE_SECONDS):
                await begun.commit()

    async def _run(self, statement: str, parameters: Mapping[str, Any] | None, patience_seconds: float) -> list[Any]:
        """Run a text on one of the connections for plain SQL. Raises as `execute` does."""
        while (plain := self._take(statement)) is not None and plain.has_ended:
            await plain.close()
        plain = plain or await self._open()
        patience = Patience(plain.connection, patience_seconds)
        timeout = max(patience_seconds, PATIENCE_SECONDS)
        try:
            with patience:
                if plain.timeout != timeout:
                    await plain.run(_give_up_after(timeout), None)
                    plain.timeout = timeout
                rows = await plain.run(statement, parameters)
        except psycopg.Error as error:
            dead = plain.closed or error.sqlstate in STALE
            if dead:
                await plain.close()
                await self._close_idle()  # after a restart or failover of Postgres all are dead
            else:
                self._idle.append(plain)
            if patience.over:
                raise no_answer(patience_seconds) from error
            raise self._translated(error, dead=dead) from error
        except BaseException:  # cancelled half-way: the answer is still to come on this connection
            await plain.close()
            raise
        self._idle.append(plain)
        return rows

    async def _wait_for_turn(self) -> None:
        """Wait until fewer than the most statements run; the caller releases its turn."""
        if not self._room.locked():
            await self._room.acquire()
            return
        try:
            async with asyncio.timeout(FREE_CONNECTION_SECONDS):
                await self._room.acquire()
        except TimeoutError:
            raise sa.exc.TimeoutError(
                f"No connection to Postgres became free within {FREE_CONNECTION_SECONDS:g} s."
            ) from None

    async def close(self) -> None:
        """Close every connection."""
        await self._close_idle()
        await self.engine.dispose()

    def _take(self, statement: str) -> PlainConnection | None:
        """Take the idle connection that was used last, if possible one whose session is set for the statement."""
        for at in reversed(range(len(self._idle))):
            if self._idle[at].suits(statement):
                return self._idle.pop(at)
        return self._idle.pop() if self._idle else None

    async def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for plain in idle:
            await plain.close()

    async def _open(self) -> PlainConnection:
        try:
            pooled = await self.engine.raw_connection()
        except psycopg.Error as error:
            raise self._translated(error, dead=False) from error
        connection = cast("psycopg.AsyncConnection[Any]", pooled.driver_connection)
        pooled.detach()
        return PlainConnection(connection, timeout=PATIENCE_SECONDS)

    def _translated(self, error: psycopg.Error, *, dead: bool) -> DBAPIError:
        """Return psycopg's error as one of SQLAlchemy's, without the statement's parameters."""
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


class _Session(Connections):
    """One connection, for the texts of a session. No other takes its place: once it is lost, every statement fails."""

    reconnects = False

    def __init__(self, engine: AsyncEngine, connection: PlainConnection) -> None:
        super().__init__(engine, limit=1)
        self._idle.append(connection)

    async def close(self) -> None:
        """Close the connection. The engine stays open, because others use it."""
        await self._close_idle()

    async def _open(self) -> PlainConnection:
        raise self._translated(psycopg.OperationalError("the session has ended"), dead=True)


class _One(Connections):
    """One connection, for the statements of a transaction."""

    reconnects = False

    def __init__(self, engine: AsyncEngine, connection: AsyncConnection) -> None:
        super().__init__(engine, limit=1)
        self._connection = connection

    async def execute(
        self, statement: str | sa.Executable, parameters: Mapping[str, Any] | None, *, patience_seconds: float
    ) -> Sequence[Row]:
        """Run one statement on this connection. Raises the same errors as any other connection.

        In a transaction, a longer patience holds until the transaction's end.
        """
        if patience_seconds > PATIENCE_SECONDS:
            await _execute(
                self._connection, _give_up_after(patience_seconds, local=True), None, patience_seconds=PATIENCE_SECONDS
            )
        return await _execute(self._connection, statement, parameters, patience_seconds=patience_seconds)


class Patience:
    """Closes a connection on which no answer comes in time. Behind a dead router the kernel would wait for hours."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], seconds: float) -> None:
        self.over = False
        """Whether the time has passed, and the connection is closed."""
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
    """Return the SET by which Postgres gives up before a client of this patience. `local` holds for a transaction."""
    milliseconds = round(patience_seconds * SERVER_SHARE * 1000)
    return f"SET {'LOCAL ' if local else ''}statement_timeout = {milliseconds}"


@contextlib.asynccontextmanager
async def _longer(connection: AsyncConnection, patience_seconds: float) -> AsyncIterator[None]:
    """Raise a connection's `statement_timeout` meanwhile, if the patience is longer than usual."""
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
    with _answer_within(await _driver_connection(connection), patience_seconds):
        if isinstance(statement, str):
            result = await connection.exec_driver_sql(statement, parameters)
        else:
            result = await connection.execute(statement, parameters)
        return result.all() if result.returns_rows else []


async def _revive(connection: AsyncConnection) -> None:
    """Reconnect a connection that is dead, as all that the engine kept are after a restart of Postgres."""
    try:
        await _execute(connection, "SELECT", None, patience_seconds=PATIENCE_SECONDS)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        await connection.rollback()  # then it gets a new one with the next statement
        await _execute(connection, "SELECT", None, patience_seconds=PATIENCE_SECONDS)
    await connection.rollback()


async def _driver_connection(connection: AsyncConnection) -> psycopg.AsyncConnection[Any]:
    raw = await connection.get_raw_connection()
    return cast("psycopg.AsyncConnection[Any]", raw.driver_connection)


@contextlib.contextmanager
def _answer_within(connection: psycopg.AsyncConnection[Any], seconds: float) -> Iterator[None]:
    """Close a connection on which no answer comes in time, and raise that as `no_answer` has it."""
    with Patience(connection, seconds) as patience:
        try:
            yield
        except DBAPIError as error:
            if patience.over:
                raise no_answer(seconds) from error
            raise
