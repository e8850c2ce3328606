"""Comparing the readers of a process with Postgres, as the live wire may lose any message."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy.exc import SQLAlchemyError

from headrace.events.hub import Hub
from headrace.events.wire import PAST_ALL
from headrace.jobs.sql.read import read_positions
from headrace.jobs.state import State
from headrace.runtime.chores import until_tick, wait_for
from headrace.stores.database import Database

log = logging.getLogger(__name__)

# Seconds between two comparisons of readers with Postgres: while the live wire works, and while it does not.
_CHECK_SECONDS = 2.0
_POLL_SECONDS = 0.25
# Jobs that are compared in one query, and seconds without a comparison for each second that the last one took.
_MOST_COMPARED = 1000
_REST = 4


async def compare_readers(hub: Hub, database: Database) -> None:
    """Send readers to Postgres whenever it has more events than they do, until cancelled.

    While the live wire works that is rare, so a comparison of all readers every few seconds is enough. Without the live
    wire, readers get their events this way. With many jobs a comparison takes long, and the next one waits for longer.
    """
    loop, took = asyncio.get_running_loop(), 0.0
    while True:
        await hub.has_readers.wait()
        usual = _CHECK_SECONDS if hub.connected else _POLL_SECONDS
        await wait_for(hub.interrupted, max(until_tick(usual), _REST * took))
        hub.interrupted.clear()
        began, followed = loop.time(), hub.followed
        try:
            for start in range(0, len(followed), _MOST_COMPARED):
                absent = set(followed[start : start + _MOST_COMPARED])
                for job_id, state, attempt, seq in await read_positions(database, list(absent)):
                    absent.discard(job_id)
                    # A job that is queued again has a void attempt; a reader may have missed that event.
                    void = attempt > 0 and state == State.QUEUED.value
                    hub.check(job_id, (attempt, PAST_ALL if void else seq), ended=State(state).is_final)
                for job_id in absent:  # deleted, lost in a crash of Postgres, or accepted since: the readers look
                    hub.check(job_id, (0, 0), ended=True)
            took = loop.time() - began
        except SQLAlchemyError as error:
            log.warning("could not compare readers with Postgres: %s", error)
