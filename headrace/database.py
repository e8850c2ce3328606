"""Connections to Postgres, of autocommitted statements, and the schema's migrations.

Every write of Headrace is one statement, so a transaction is one round trip. What must not be lost goes through
`durable`; what only repeats work when it is lost (heartbeats, lines that become jobs) and all reading goes through
`relaxed`, whose commits do not wait for the disk. That and the time-outs are settings of a connection's session, which
a pooler has to keep.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import psycopg
import sqlalchemy as sa
from psycopg.rows import namedtuple_row
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from headrace import PARTS
from headrace.database_url import connection_parameters

if TYPE_CHECKING:
    from alembic.config import Config

Row = sa.Row[*tuple[Any, ...]]
Isolation = Literal["READ COMMITTED", "REPEATABLE READ"]

PATIENCE_SECONDS = 10.0
"""Seconds to wait for a job's statement, which normally takes milliseconds."""
LONG_PATIENCE_SECONDS = 40.0
"""Seconds to wait for a statement that reads many rows."""
ENDLESS_PATIENCE_SECONDS = 86_400.0
"""Seconds to wait for what goes through a whole ledger: a day."""
LIST_SECONDS = 3.0
"""Seconds that a list may take, over all that it has to look at."""
_LIST_CONNECTIONS = 3
# The part of the patience after which Postgres gives up itself. It has to be the first: a statement that is given up by
# its client alone may be done later.
_SERVER_SHARE = 0.8
_READ_ONLY = "25006"
# What a connection says that a new one does not: it leads to a server that is no primary any more, or its prepared
# statements are older than a change of the schema.
_STALE = frozenset({_READ_ONLY, "0A000"})
# A column or a table is not there: the schema is changed meanwhile, or is not that of this release.
_UNKNOWN = frozenset({"42703", "42P01"})
# For a connection to come free: while Postgres is away nobody stands in line for long.
_ROOM_SECONDS = 5.0
# Times that a process compares two connections' sessions, as other clients of a pooler may use the same ones meanwhile.
_SESSION_CHECKS = 4

# What every session sets once it is connected: poolers refuse options in a connection's start-up. The server, too,
# notices half-open connections in about ten seconds: what a client that is gone held, as a lock, is free as soon.
_SESSION = {
    "statement_timeout": f"{round(PATIENCE_SECONDS * _SERVER_SHARE * 1000)}ms",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
}

_MIGRATIONS = PARTS / "migrations"
_DIALECT = "postgresql+psycopg://"


class SessionsNotKeptError(psycopg.OperationalError):
    """`DATABASE_URL` leads to a pooler that gives one connection's statements to several sessions of Postgres."""

    def __init__(self) -> None:
        """Say what to do."""
        super().__init__(
            "DATABASE_URL leads through a pooler in transaction or statement mode: set it to session mode, or connect "
            "to Postgres directly."
        )


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
            patience = _Patience(plain.connection, patience_seconds)
            timeout = max(patience_seconds, PATIENCE_SECONDS)
            try:
                with patience:
                    if plain.timeout != timeout:
                        await plain.cursor.execute(_give_up_after(timeout))
                        plain.timeout = timeout
                    await plain.cursor.execute(statement, parameters)
                    rows: list[Any] = await plain.cursor.fetchall() if plain.cursor.description else []
            except psycopg.Error as error:
                dead = plain.connection.closed or error.sqlstate in _STALE
                if dead:
                    await plain.connection.close()
                    await self._close_idle()  # after a restart of Postgres, or a failover, they are all dead
                else:
                    self._idle.append(plain)
                if patience.over:
                    raise _no_answer(patience_seconds) from error
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
                async with asyncio.timeout(_ROOM_SECONDS):
                    await self._room.acquire()
            except TimeoutError:
                raise sa.exc.TimeoutError(f"No connection to Postgres came free within {_ROOM_SECONDS:g} s.") from None
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


class _Patience:
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
    milliseconds = round(patience_seconds * _SERVER_SHARE * 1000)
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
    with _Patience(cast("psycopg.AsyncConnection[Any]", raw.driver_connection), patience_seconds) as patience:
        try:
            if isinstance(statement, str):
                result = await connection.exec_driver_sql(statement, parameters)
            else:
                result = await connection.execute(statement, parameters)
            return result.all() if result.returns_rows else []
        except DBAPIError as error:
            if patience.over:
                raise _no_answer(patience_seconds) from error
            raise


class NoAnswerError(sa.exc.TimeoutError):
    """Postgres did not answer in time: what was asked of it may be done, or may yet be."""


def _no_answer(patience_seconds: float) -> NoAnswerError:
    return NoAnswerError(f"Postgres did not answer within {patience_seconds:g} s.")


def was_certainly_refused(error: SQLAlchemyError) -> bool:
    """Tell whether a statement that failed by `error` did nothing, also where it was tried twice.

    That of a connection that broke under it, or from which no answer came, may have been done.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, NoAnswerError) or (isinstance(cause, DBAPIError) and _broke(cause)):
            return False
        cause = cause.__context__
    return True


def _broke(error: DBAPIError) -> bool:
    """Tell whether a connection broke under its statement, rather than be left as one to a server that refused it."""
    return error.connection_invalidated and getattr(error.orig, "sqlstate", None) not in _STALE


def _leave_stale(context: sa.engine.ExceptionContext) -> None:
    """Have the engine close a connection that a new one should replace, and all that are as old."""
    if getattr(context.original_exception, "sqlstate", None) in _STALE:
        context.is_disconnect = True


def is_foreign_schema(error: SQLAlchemyError) -> bool:
    """Tell whether a statement failed as the schema lacks what this release expects."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in _UNKNOWN


def is_away(error: SQLAlchemyError) -> bool:
    """Tell whether Postgres cannot serve now, rather than that it refused a statement."""
    if not isinstance(error, DBAPIError):
        return True  # nobody answered, or no connection came free
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    # Connections, conflicts, resources, a server that shuts down or took too long; and one that is no primary any more,
    # or whose schema is being changed.
    unavailable = state.startswith(("08", "40", "53", "57")) or state in _STALE | _UNKNOWN
    return error.connection_invalidated or unavailable


@dataclass(slots=True)
class _Plain:
    connection: psycopg.AsyncConnection[Any]
    cursor: psycopg.AsyncCursor[Any]
    timeout: float = PATIENCE_SECONDS
    """The patience in seconds that its `statement_timeout` is for."""


class _Opener:
    """Opens connections whose sessions have some settings."""

    def __init__(self, parameters: Mapping[str, Any], settings: Mapping[str, str]) -> None:
        self._parameters = dict(parameters)
        self._settings = "; ".join(f"SET {name} = '{value}'" for name, value in settings.items())
        self._keeps_sessions = False

    async def __call__(self) -> psycopg.AsyncConnection[Any]:
        """Open a connection.

        Raises:
            psycopg.OperationalError: Postgres is unavailable, or a pooler does not keep sessions.
        """
        connection = await psycopg.AsyncConnection.connect(**self._parameters, autocommit=True)
        try:
            with _Patience(connection, PATIENCE_SECONDS):
                await connection.execute(self._settings.encode())
                if not self._keeps_sessions:
                    await _check_sessions(connection, self._parameters)
                    self._keeps_sessions = True
        except BaseException:
            await connection.close()
            raise
        return connection


async def _check_sessions(connection: psycopg.AsyncConnection[Any], parameters: Mapping[str, Any]) -> None:
    """See that each connection has a session of Postgres of its own, which its next statement finds again.

    A pooler in transaction mode gives a statement to any session that is free: two connections then have the same one,
    or one connection has several. Two statements in a row tell that of a pooler that takes turns.

    Raises:
        SessionsNotKeptError: They have not.
        psycopg.OperationalError: Postgres is unavailable.
    """
    async with await psycopg.AsyncConnection.connect(**parameters, autocommit=True) as other:
        with _Patience(other, PATIENCE_SECONDS):
            for _ in range(_SESSION_CHECKS):
                first, again, others = [await _session_of(each) for each in (connection, connection, other)]
                if first != again or first == others:
                    raise SessionsNotKeptError


async def _session_of(connection: psycopg.AsyncConnection[Any]) -> Any:
    """Return what tells the session apart from every other one, of this server or of another host."""
    # Prepared, as psycopg does on its own when it comes again, it would be unknown to another session.
    cursor = await connection.execute("SELECT pg_backend_pid(), pg_postmaster_start_time()", prepare=False)
    return await cursor.fetchone()


async def check_sessions(database_url: str, part: str) -> None:
    """See that the URL leads to sessions that are kept, as every part needs them.

    Raises:
        SessionsNotKeptError: It leads through a pooler in transaction or statement mode.
        psycopg.OperationalError: Postgres is unavailable.
    """
    await (await _Opener(connection_parameters(database_url, part), {})()).close()


@dataclass(frozen=True, slots=True)
class Database:
    """The kinds of connections of a process."""

    durable: Connections
    relaxed: Connections
    lists: Connections
    """Few, for questions that may have to look at all of an account's rows: they keep no other statement waiting."""

    @classmethod
    def connect(cls, database_url: str, *, connections: int = 8, part: str = "cli") -> Database:
        """Return connections that are opened when first needed, at most `connections` of each kind and use.

        Postgres shows them as `headrace {part}`, unless the URL has an `application_name`.

        Raises:
            headrace.settings.SettingError: The URL is of no form that libpq takes.
        """

        def kind(connections: int = connections, **settings: str) -> Connections:
            engine = create_async_engine(
                _DIALECT,
                isolation_level="AUTOCOMMIT",
                hide_parameters=True,  # a prompt has no place in a log
                pool_size=connections,
                max_overflow=0,
                pool_timeout=_ROOM_SECONDS,
                pool_use_lifo=True,
                async_creator=_Opener(connection_parameters(database_url, part), {**_SESSION, **settings}),
            )
            sa.event.listen(engine.sync_engine, "handle_error", _leave_stale)
            return Connections(engine, limit=connections)

        lists = kind(min(connections, _LIST_CONNECTIONS), statement_timeout=f"{LIST_SECONDS:g}s")
        return cls(durable=kind(), relaxed=kind(synchronous_commit="off"), lists=lists)

    async def close(self) -> None:
        """Close every connection."""
        for connections in (self.durable, self.relaxed, self.lists):
            await connections.close()


async def execute(
    connections: Connections,
    statement: str | sa.Executable,
    parameters: Mapping[str, Any] | None = None,
    *,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Sequence[Row]:
    """Run one statement, SQLAlchemy's or a text in psycopg's parameter style, and return its rows if it has any.

    It is run again, once, when its connection turns out to be dead: after a restart of Postgres every one is. So a
    statement may have been done before, and each of ours does no harm the second time. A connection that is silent for
    `patience_seconds` is given up, and whoever waits for it has waited enough.

    Raises:
        sqlalchemy.exc.DBAPIError: Postgres refused it or is away.
        sqlalchemy.exc.TimeoutError: It does not answer, or every connection is taken.
    """
    try:
        return await connections.execute(statement, parameters, patience_seconds=patience_seconds)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        return await connections.execute(statement, parameters, patience_seconds=patience_seconds)


def create_sync_engine(database_url: str) -> sa.Engine:
    """Return an engine for migrations, which keeps no connections.

    Raises:
        headrace.settings.SettingError: The URL is of no form that libpq takes.
    """
    # Behind a pooler, no statement of a migration may count on what the session before it has prepared.
    parameters = {**connection_parameters(database_url), "prepare_threshold": None}
    return sa.create_engine(_DIALECT, poolclass=sa.NullPool, connect_args=parameters)


def _alembic(database_url: str) -> Config:
    # Alembic takes a quarter of a second to import, and most commands migrate nothing.
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["url"] = database_url
    return config


def migrate(database_url: str, revision: str = "head") -> None:
    """Bring the schema to `revision`, up or down. Several may run at once: one migrates, the others wait for it."""
    from alembic import command

    config = _alembic(database_url)
    if revision == "head" or revision.startswith("+"):
        command.upgrade(config, revision)
    else:
        command.downgrade(config, revision)
