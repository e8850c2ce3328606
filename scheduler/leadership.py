"""Which of several schedulers acts: the one whose session holds a lock in Postgres.

Postgres releases the lock when the session ends: the scheduler dies, disconnects, or is silent for some seconds, as
behind a router that died.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from sqlalchemy.exc import SQLAlchemyError

from headrace.runtime.chores import Chore, going_on, next_tick
from headrace.stores.connections import Connections
from headrace.stores.plain import Prepared
from headrace.telemetry.metrics import SCHEDULER_LEADS
from headrace.telemetry.stores import POSTGRES

log = logging.getLogger(__name__)

# The number of the advisory lock, which nothing else in the database takes.
_LOCK = 0x73776565
# Seconds between two attempts of a follower to lead, and between two of the leader's signs of life.
_ATTEMPT_SECONDS = 1.0
_PULSE_SECONDS = 2.0
# Seconds that the session waits for an answer before it counts as lost.
_PATIENCE_SECONDS = 5.0
# Seconds of silence after which Postgres ends the session. More than a pulse and the leader's patience together: a
# leader then knows that its lead is lost before another scheduler leads.
_SILENCE_SECONDS = 8
# Both return null on a standby.
_TAKE = Prepared(f"SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_try_advisory_lock({_LOCK}) END")
_PULSE = Prepared("SELECT CASE WHEN NOT pg_is_in_recovery() THEN true END")


@contextlib.asynccontextmanager
async def leadership(connections: Connections) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Wait for the lead, and yield a coroutine function that keeps the lead while the caller awaits it.

    Both use one connection.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: Postgres is unavailable, and the lead is lost.
        ConnectionError: This Postgres is a standby, where no scheduler can lead.
    """
    async with connections.session() as session:

        async def ask(question: Prepared) -> bool:
            began = time.monotonic()
            [(answer,)] = await session.execute(question, {}, patience_seconds=_PATIENCE_SECONDS)
            POSTGRES.answered(time.monotonic() - began)
            if answer is None:
                raise ConnectionError("This Postgres is a standby.")
            return bool(answer)

        await session.execute(
            f"SET idle_session_timeout = '{_SILENCE_SECONDS}s'", None, patience_seconds=_PATIENCE_SECONDS
        )
        leads = await ask(_TAKE)
        if not leads:
            log.info("ready: another scheduler leads, this one waits")
        while not leads:
            await asyncio.sleep(_ATTEMPT_SECONDS)
            leads = await ask(_TAKE)

        async def keep() -> None:
            while True:
                await ask(_PULSE)
                await next_tick(_PULSE_SECONDS)

        yield keep


async def lead(connections: Connections, chores: Sequence[Chore], *, again_seconds: float) -> None:
    """Do the chores whenever this scheduler leads, until cancelled. A lost lead is sought again after some seconds."""
    while True:
        try:
            async with leadership(connections) as keep:
                log.info("ready: this scheduler leads")
                SCHEDULER_LEADS.set(1)
                async with going_on(*chores):
                    await keep()
        except (SQLAlchemyError, OSError) as error:
            POSTGRES.unavailable()
            log.warning("this scheduler does not lead, Postgres is unavailable: %s", error)
        finally:
            SCHEDULER_LEADS.set(0)
        await asyncio.sleep(again_seconds)
