"""Connections to Postgres, of autocommitted statements, and the schema's migrations.

Every write of Headrace is one statement, so a transaction is one round trip. What must not be lost goes through
`durable`; what only repeats work when it is lost (heartbeats, lines that become jobs) and all reading goes through
`relaxed`, whose commits do not wait for the disk. That and the time-outs are settings of a connection's session, which
a pooler has to keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from headrace.stores.connections import PATIENCE_SECONDS, ROOM_SECONDS, Connections, Row
from headrace.stores.database_url import connection_parameters
from headrace.stores.failures import leave_stale
from headrace.stores.sessions import SESSION, Opener

LIST_SECONDS = 3.0
"""Seconds that a list may take, over all that it has to look at."""
_LIST_CONNECTIONS = 3

DIALECT = "postgresql+psycopg://"


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
                DIALECT,
                isolation_level="AUTOCOMMIT",
                hide_parameters=True,  # a prompt has no place in a log
                pool_size=connections,
                max_overflow=0,
                pool_timeout=ROOM_SECONDS,
                pool_use_lifo=True,
                async_creator=Opener(connection_parameters(database_url, part), {**SESSION, **settings}),
            )
            sa.event.listen(engine.sync_engine, "handle_error", leave_stale)
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
