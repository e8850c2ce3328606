"""Which of several schedulers acts: the one whose session holds a lock in Postgres.

The lock goes with the session: when its scheduler dies, when it hangs up, and when Postgres has heard nothing of it for
a while, as of one behind a router that died.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from headrace.database import Connections, Row

# Any constant will do, as long as nothing else in the database takes the same advisory lock.
_LOCK = 0x73776565
_PULSE_SECONDS = 1.0
_PATIENCE_SECONDS = 5.0
# Longer than the leader's patience, so that it knows before another leads.
_SILENCE_SECONDS = 8


@contextlib.asynccontextmanager
async def leadership(connections: Connections) -> AsyncIterator[Callable[[], Awaitable[None]] | None]:
    """Give what keeps the lead for as long as it is awaited, or None if another scheduler leads.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: Postgres is unavailable, and the lead lost.
        ConnectionError: This Postgres has become a standby, and the lead is lost.
    """
    async with connections.session() as session:

        async def run(statement: str) -> Sequence[Row]:
            return await session.execute(statement, None, patience_seconds=_PATIENCE_SECONDS)

        await run(f"SET idle_session_timeout = '{_SILENCE_SECONDS}s'")
        [(leads,)] = await run(f"SELECT NOT pg_is_in_recovery() AND pg_try_advisory_lock({_LOCK})")

        async def keep() -> None:
            while True:
                [(is_standby,)] = await run("SELECT pg_is_in_recovery()")
                if is_standby:
                    raise ConnectionError("This Postgres is no primary any more.")
                await asyncio.sleep(_PULSE_SECONDS)

        yield keep if leads else None
