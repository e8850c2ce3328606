"""The server's side of a connection."""

from __future__ import annotations

from headrace.stores.database import Database, execute
from headrace.stores.plain import Prepared

PID = Prepared("SELECT pg_backend_pid()")


async def pid_of(database: Database) -> int:
    """Return the id of the process that serves the connection."""
    [(pid,)] = await execute(database.relaxed, PID, {})
    return int(pid)
