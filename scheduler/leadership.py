"""Which of several schedulers acts: the one whose session holds a lock in Postgres.

The lock goes with the session: when its scheduler dies, when it hangs up, and when Postgres has heard nothing of it for
a while, as of one behind a router that died.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from headrace.stores.connections import Connections

log = logging.getLogger(__name__)

# Any constant will do, as long as nothing else in the database takes the same advisory lock.
_LOCK = 0x73776565
_PULSE_SECONDS = 1.0
_PATIENCE_SECONDS = 5.0
# Longer than the leader's patience, so that it knows before another leads.
_SILENCE_SECONDS = 8


@contextlib.asynccontextmanager
async def leadership(connections: Connections) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Wait for the lead, and give what keeps it for as long as it is awaited. Both use one connection.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: Postgres is unavailable, and the lead lost.
        ConnectionError: This Postgres is a standby, where no scheduler can lead.
    """
    async with connections.session() as session:

        async def ask(question: str) -> bool:
            statement = f"SELECT CASE WHEN NOT pg_is_in_recovery() THEN {question} END"
            [(answer,)] = await session.execute(statement, None, patience_seconds=_PATIENCE_SECONDS)
            if answer is None:
                raise ConnectionError("This Postgres is a standby.")
            return bool(answer)

        await session.execute(
            f"SET idle_session_timeout = '{_SILENCE_SECONDS}s'", None, patience_seconds=_PATIENCE_SECONDS
        )
        take = f"pg_try_advisory_lock({_LOCK})"
        leads = await ask(take)
        if not leads:
            log.info("ready: another scheduler leads, this one waits")
        while not leads:
            await asyncio.sleep(_PULSE_SECONDS)
            leads = await ask(take)

        async def keep() -> None:
            while True:
                await ask("true")
                await asyncio.sleep(_PULSE_SECONDS)

        yield keep
