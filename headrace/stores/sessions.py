"""The settings of a connection's session, and the check that a pooler keeps sessions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg

from headrace.stores.connections import PATIENCE_SECONDS, SERVER_SHARE, Patience
from headrace.stores.database_url import connection_parameters

# Comparisons of two connections' sessions at a process's start. One could miss a pooler that other clients use too.
_SESSION_CHECKS = 4

# Settings of every session, sent once it is connected, because poolers refuse options in a connection's start-up. The
# keepalives make the server detect half-open connections within about ten seconds, and free their locks. A process that
# froze in a transaction answers keepalives, so such a transaction has a limit of its own. Statements are so short that
# to compile them, or to start processes for parts of them, takes longer than they do.
SESSION = {
    "idle_in_transaction_session_timeout": f"{PATIENCE_SECONDS:g}s",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "statement_timeout": f"{round(PATIENCE_SECONDS * SERVER_SHARE * 1000)}ms",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
}


class SessionsNotKeptError(psycopg.OperationalError):
    """`DATABASE_URL` leads to a pooler that gives one connection's statements to several sessions of Postgres."""

    def __init__(self) -> None:
        """Make the message, which says how to set `DATABASE_URL`."""
        super().__init__(
            "DATABASE_URL leads through a pooler in transaction or statement mode: set it to session mode, or connect "
            "to Postgres directly."
        )


class Opener:
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
            with Patience(connection, PATIENCE_SECONDS):
                await connection.execute(self._settings.encode())
                if not self._keeps_sessions:
                    await _check_sessions(connection, self._parameters)
                    self._keeps_sessions = True
        except BaseException:
            await connection.close()
            raise
        return connection


async def _check_sessions(connection: psycopg.AsyncConnection[Any], parameters: Mapping[str, Any]) -> None:
    """Check that each connection has its own session of Postgres, and keeps it from one statement to the next.

    A pooler in transaction mode gives a statement to any free session: then two connections share one, or one
    connection has several. Two statements in a row detect a pooler that takes sessions in turn.

    Raises:
        SessionsNotKeptError: The pooler does not keep sessions.
        psycopg.OperationalError: Postgres is unavailable.
    """
    async with await psycopg.AsyncConnection.connect(**parameters, autocommit=True) as other:
        with Patience(other, PATIENCE_SECONDS):
            for _ in range(_SESSION_CHECKS):
                first, again, others = [await _session_of(each) for each in (connection, connection, other)]
                if first != again or first == others:
                    raise SessionsNotKeptError


async def _session_of(connection: psycopg.AsyncConnection[Any]) -> Any:
    """Return what identifies the session among those of this server and of other hosts."""
    # psycopg prepares a repeated statement, which would fail in another session of the pooler.
    cursor = await connection.execute("SELECT pg_backend_pid(), pg_postmaster_start_time()", prepare=False)
    return await cursor.fetchone()


async def check_sessions(database_url: str, part: str) -> None:
    """Check that the URL leads to sessions that a pooler keeps, which every part needs.

    Raises:
        SessionsNotKeptError: The URL leads through a pooler in transaction or statement mode.
        psycopg.OperationalError: Postgres is unavailable.
    """
    await (await Opener(connection_parameters(database_url, part), {})()).close()
