"""A process's connections to Postgres, by kind, and the function that runs a statement on one.

Nearly every write of Headrace is one statement, so a transaction is one round trip. Writes that must not be lost go
through `durable`. Writes whose loss only repeats work (heartbeats, lines that become jobs, jobs that no client knows
of) and reads go through `relaxed`, whose commits do not wait for the disk; lists and counts, which may read many rows,
through `lists`; questions about usage, which may take seconds, through `reports`. The differences and the time-outs are
settings of a connection's session, which a pooler has to keep.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from headrace.stores.connections import FREE_CONNECTION_SECONDS, PATIENCE_SECONDS, Connections, Row
from headrace.stores.database_url import connection_parameters
from headrace.stores.failures import is_unavailable, leave_stale
from headrace.stores.sessions import SESSION, Opener
from headrace.telemetry.stores import POSTGRES

LIST_SECONDS = 3.0
"""Seconds that a statement of a list may take."""
# Connections for lists, and for questions about usage, at most.
_LIST_CONNECTIONS = 3
_REPORT_CONNECTIONS = 2

DIALECT = "postgresql+psycopg://"


@dataclass(frozen=True, slots=True)
class Database:
    """The kinds of connections of a process."""

    durable: Connections
    relaxed: Connections
    lists: Connections
    """Few connections, for lists, which may read all of an account's rows: no other statement waits for them."""
    reports: Connections
    """Few connections, for questions about usage, each of which may take seconds."""

    @classmethod
    def connect(cls, database_url: str, *, connections: int = 8, part: str = "cli") -> Database:
        """Return connections that open when first needed, at most `connections` of each kind and use.

        Postgres shows them as `headrace {part}`, unless the URL has an `application_name`.

        Raises:
            headrace.settings.SettingError: libpq does not accept the URL.
        """

        def kind(connections: int = connections, **settings: str) -> Connections:
            engine = create_async_engine(
                DIALECT,
                isolation_level="AUTOCOMMIT",
                hide_parameters=True,  # logs contain no prompts
                pool_size=connections,
                max_overflow=0,
                pool_timeout=FREE_CONNECTION_SECONDS,
                pool_use_lifo=True,
                async_creator=Opener(connection_parameters(database_url, part), {**SESSION, **settings}),
            )
            sa.event.listen(engine.sync_engine, "handle_error", leave_stale)
            return Connections(engine, limit=connections)

        lists = kind(min(connections, _LIST_CONNECTIONS), statement_timeout=f"{LIST_SECONDS:g}s")
        reports = kind(min(connections, _REPORT_CONNECTIONS))
        return cls(durable=kind(), relaxed=kind(synchronous_commit="off"), lists=lists, reports=reports)

    async def close(self) -> None:
        """Close every connection."""
        for connections in (self.durable, self.relaxed, self.lists, self.reports):
            await connections.close()


async def execute(
    connections: Connections,
    statement: str | sa.Executable,
    parameters: Mapping[str, Any] | None = None,
    *,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Sequence[Row]:
    """Run one statement, SQLAlchemy's or a text in psycopg's parameter style, and return its rows if it has any.

    A statement whose connection turns out to be dead, as every connection is after a restart of Postgres, runs once
    more, unless it is part of a transaction or a session. The first run may have taken effect, so every statement must
    be safe to repeat. A connection without an answer for `patience_seconds` is closed, and its statement is not
    repeated.

    Raises:
        sqlalchemy.exc.DBAPIError: Postgres refused the statement or is unavailable.
        sqlalchemy.exc.TimeoutError: Postgres did not answer in time, or every connection is in use.
    """
    began = time.monotonic()
    try:
        try:
            rows = await connections.execute(statement, parameters, patience_seconds=patience_seconds)
        except DBAPIError as error:
            if not (error.connection_invalidated and connections.reconnects):
                raise
            rows = await connections.execute(statement, parameters, patience_seconds=patience_seconds)
    except SQLAlchemyError as error:
        if is_unavailable(error):
            POSTGRES.unavailable()
        raise
    POSTGRES.answered(time.monotonic() - began)
    return rows
