"""How a connection's session is set up, and the check that a pooler keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg

from headrace.stores.connections import PATIENCE_SECONDS, SERVER_SHARE, Patience
from headrace.stores.database_url import connection_parameters

# Times that a process compares two connections' sessions, as other clients of a pooler may use the same ones meanwhile.
_SESSION_CHECKS = 4

# What every session sets once it is connected: poolers refuse options in a connection's start-up. The server, too,
# notices half-open connections in about ten seconds: what a client that is gone held, as a lock, is free as soon.
SESSION = {
    "statement_timeout": f"{round(PATIENCE_SECONDS * SERVER_SHARE * 1000)}ms",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
}


class SessionsNotKeptError(psycopg.OperationalError):
    """`DATABASE_URL` leads to a pooler that gives one connection's statements to several sessions of Postgres."""

    def __init__(self) -> None:
        """Say what to do."""
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
    """See that each connection has a session of Postgres of its own, which its next statement finds again.

    A pooler in transaction mode gives a statement to any session that is free: two connections then have the same one,
    or one connection has several. Two statements in a row tell that of a pooler that takes turns.

    Raises:
        SessionsNotKeptError: They have not.
        psycopg.OperationalError: Postgres is unavailable.
    """
    async with await psycopg.AsyncConnection.connect(**parameters, autocommit=True) as other:
        with Patience(other, PATIENCE_SECONDS):
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
    await (await Opener(connection_parameters(database_url, part), {})()).close()
