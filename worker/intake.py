"""What a worker runs next: the wake-ups that wait for a slot, and the fair order while jobs wait.

A wake-up is a hint, and the row in Postgres decides. While slots are free, a job starts as soon as its wake-up comes.
Once jobs wait for slots here, they do not start in the order of their wake-ups, which is that of arrival: the worker
asks Postgres which waiting jobs come first, whether or not their wake-ups have come here. A wake-up whose job runs by
then claims nothing. Lines of batches start in the order in which they come: the scheduler has shared them out already.
While lines wait for their provider's limits, the worker asks Postgres whose lines the others are, and starts few that
would wait as well. Requests that wait for slots get those of others that wait for their providers
(`worker/yielding.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from headrace.jobs.records import WaitingJob
from headrace.jobs.sql.find import find_fair, find_lines, find_taken
from headrace.queue import LINES
from headrace.runtime.chores import rest_after, wait_for
from headrace.settings import Settings
from headrace.stores.database import Database
from worker.attempt import Attempt, Stop
from worker.availability import Availability
from worker.crowds import Crowds
from worker.line_pace import BURST_SECONDS
from worker.slots import Slot, Slots
from worker.wakeups import Message, WakeUps

log = logging.getLogger(__name__)

# Seconds between two looks for jobs that may have a reserved slot.
_RESERVE_SECONDS = 0.1
# Seconds for which slots that come free are gathered, so that one look serves many.
_GATHER_SECONDS = 0.01
# Seconds until the next look after one that failed.
_FAILED_SECONDS = 0.5
# Jobs that one look finds at most, and wake-ups that it checks.
_MOST_FOUND = 32
_MOST_HINTS = 256
# Lines that one look reads from Postgres at most, to find whose they are.
_MOST_LOOKED_UP = 1000


class Intake:
    """Starts jobs of some tiers as slots come free."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        availability: Availability,
        *,
        tiers: Sequence[str],
        slots: Slots,
        crowds: Crowds,
        run: Callable[[str, str, Slot], Coroutine[Any, Any, None]],
        send_back: Callable[[Sequence[str], str], None],
        waiting: Callable[[], Sequence[Attempt]],
    ) -> None:
        """`run` runs the job of an id and a tier; `send_back` wakes another worker for jobs of a tier.

        `waiting` returns the attempts that may give up their slots, in the order in which they do.
        """
        self._settings = settings
        self._database = database
        self._availability = availability
        self._tiers = tiers
        self._slots = slots
        self._crowds = crowds
        self._run = run
        self._send_back = send_back
        self._waiting = waiting
        self._wakeups = WakeUps()
        self._moved = asyncio.Event()
        """Set when a wake-up comes or a slot comes free while jobs wait."""
        self.tasks: set[asyncio.Task[None]] = set()
        self._starting: set[str] = set()
        self._heard_at = 0.0
        self.closed = False
        """Whether the worker takes no more jobs, as it drains."""
        availability.on_lost(self.hand_back_all)

    @property
    def in_hand(self) -> Collection[str]:
        """The jobs whose wake-ups came here and that wait for a slot."""
        return self._wakeups.tiers.keys()

    async def take(self, job_ids: Sequence[str], *, tier: str) -> None:
        """Start the jobs of a message as slots come free; returns once none of them waits here.

        Jobs that wait here already are not taken twice.
        """
        self._heard_at = asyncio.get_running_loop().time()
        fresh = [job_id for job_id in job_ids if job_id not in self._wakeups]
        if self.closed or not self._availability.reachable.is_set():
            self._send_back(fresh, tier)
            self.hand_back_all()
            return
        message = Message()
        held = tier == LINES and self._crowds.hold
        for job_id in fresh:
            if not held and not self._wakeups.competing(tier) and self._slots.room(tier):
                self.start(job_id, tier)
            else:
                self._wakeups.add(job_id, tier, message)
        if message.left:
            self._moved.set()
            await message.gone.wait()

    def start(self, job_id: str, tier: str) -> Slot:
        """Start a job now, in an additional slot if none is free, and return the slot."""
        self._wakeups.drop(job_id)
        slot = self._slots.take(tier)
        task = asyncio.create_task(self._run(job_id, tier, slot))
        self._starting.add(job_id)
        self.tasks.add(task)
        task.add_done_callback(partial(self._ended, job_id, slot))
        return slot

    def start_again(self, job_id: str, tier: str) -> None:
        """Start a job whose claim got no answer, unless it starts already."""
        if job_id not in self._starting:
            self.start(job_id, tier)

    def _ended(self, job_id: str, slot: Slot, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self._starting.discard(job_id)
        slot.free()
        if self._wakeups:
            self._moved.set()

    def hand_back_all(self) -> None:
        """Hand back every job that has no slot here yet."""
        for tier, job_ids in self._wakeups.take_all().items():
            self._send_back(job_ids, tier)

    def close(self) -> None:
        """Take no more jobs."""
        self.closed = True
        self.hand_back_all()

    # -- while there are more jobs than slots -----------------------------------------------------------------------

    async def share(self) -> None:
        """Give the slots that come free to the jobs that come first, while jobs wait here; until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._moved.wait()
            # Every wake-up may be handed back by now. An event that stayed set would then starve the event loop.
            self._moved.clear()
            while self._wakeups and not self.closed:
                self._moved.clear()
                began = loop.time()
                try:
                    await self._share_once()
                except SQLAlchemyError as error:
                    log.warning("could not look for the next jobs: %s", error)
                    await asyncio.sleep(_FAILED_SECONDS)
                took = loop.time() - began
                if self._open_tiers():
                    await asyncio.sleep(max(_GATHER_SECONDS, took))
                elif self._slots.line_waits and self._wakeups.competing(LINES):
                    await asyncio.sleep(max(BURST_SECONDS, took))
                else:
                    # Until a slot comes free, or a job comes that may have a reserved slot.
                    await wait_for(self._moved, max(_RESERVE_SECONDS, rest_after(took)))

    def _open_tiers(self) -> list[str]:
        """Return the tiers, without that of lines, that have free slots, if jobs wait here for them."""
        tiers = [tier for tier in self._tiers if tier != LINES and self._slots.room(tier)]
        return tiers if tiers and self._wakeups.competing(tiers[0]) else []

    async def _share_once(self) -> None:
        """Start the jobs that come first in the slots that are free."""
        await self._start_lines()
        tiers = self._open_tiers()
        if not tiers:
            if len(self._wakeups) > self._wakeups.competing(LINES):
                await self._use_reserve()
                await self._use_waiting()
            return
        limit = min(_MOST_FOUND, max(map(self._slots.room, tiers)))
        found = await find_fair(self._database, tiers, running=self._slots.running, limit=limit)
        for job in found:
            self._start_found(job)
        await self._forget_taken()
        if len(found) < limit:  # no other job is due: so these are not due yet, or not queued any more
            for job_id, tier in list(self._wakeups.tiers.items()):
                if tier != LINES and self._slots.room(tier):
                    self.start(job_id, tier)

    async def _start_lines(self) -> None:
        """Start the lines that come first in the slots that are free, but few of those that would wait for a permit."""
        if self._slots.room(LINES) and self._crowds.hold and (unknown := self._wakeups.unknown_lines(_MOST_LOOKED_UP)):
            known = await find_lines(self._database, unknown)
            for job_id in unknown:
                if job_id in known:
                    self._wakeups.know(job_id, known[job_id])
                else:  # another worker has it, or it has ended
                    self._wakeups.drop(job_id)
        for job_id in self._wakeups.first_lines(self._slots.room(LINES), self._crowds.room):
            self.start(job_id, LINES)

    async def _use_reserve(self, *, seconds: float = 0) -> None:
        """Start jobs of accounts that run few jobs here in reserved slots, if all others are taken."""
        tiers = [tier for tier in self._tiers if tier != LINES]
        below = self._slots.reserve
        if any(map(self._slots.room, tiers)) or not tiers or below <= 0:
            return
        running, limit = self._slots.running, min(_MOST_FOUND, below)
        found = await find_fair(self._database, tiers, running=running, limit=limit, below=below, seconds=seconds)
        for job in found:
            if self._slots.may_reserve(job):
                self._start_found(job, reserved=True)
        if found:
            await self._forget_taken()

    async def _use_waiting(self, *, seconds: float = 0) -> None:
        """Start requests in the slots of others that wait for their providers, if all slots are taken.

        Jobs for the same models do not start: they would wait as well. Nor do background jobs, which may take long.
        """
        tiers = [tier for tier in self._tiers if tier != LINES]
        models = {attempt.job.model for attempt in self._waiting()}
        if not models or not tiers or any(map(self._slots.room, tiers)):
            return
        found = await find_fair(
            self._database,
            tiers,
            running=self._slots.running,
            limit=_MOST_FOUND,
            seconds=seconds,
            foreground=True,
            besides=models,
        )
        for job, attempt in zip(found, self._waiting(), strict=False):
            if job.id not in self._starting:
                attempt.interrupt(Stop.YIELDED)
                self._start_found(job, reserved=True)
        if found:
            await self._forget_taken()

    def _start_found(self, job: WaitingJob, *, reserved: bool = False) -> None:
        """Start a job unless it starts already, or its tier has no slot any more."""
        if job.id not in self._starting and (reserved or self._slots.room(job.tier)):
            self.start(job.id, job.tier).hold(job.account_id, background=job.background)

    async def _forget_taken(self) -> None:
        """Drop the first wake-ups here whose jobs run elsewhere, so that the next messages come."""
        hints = self._wakeups.first(_MOST_HINTS)
        if hints:
            for job_id in await find_taken(self._database, hints):
                self._wakeups.drop(job_id)

    # -- without wake-ups ---------------------------------------------------------------------------------------------

    async def find_unclaimed(self, *, without_redis: bool) -> None:
        """While no message comes, start jobs that wait in Postgres, if there are slots.

        The worker may be `without_redis`, or Redis may have lost its lists; or Celery's consumer may hang, as it has
        done after reconnections.
        """
        quiet = asyncio.get_running_loop().time() - self._heard_at > self._settings.resend_seconds
        if self.closed or not (without_redis or quiet):
            return
        try:
            await self._take_unclaimed(0 if without_redis else self._settings.resend_seconds)
        except SQLAlchemyError as error:
            log.warning("could not look for jobs: %s", error)

    async def _take_unclaimed(self, seconds: float) -> None:
        tiers = [tier for tier in self._tiers if self._slots.room(tier)]
        if not tiers:
            await self._use_reserve(seconds=seconds)
            await self._use_waiting(seconds=seconds)
            return
        limit = min(_MOST_FOUND, max(map(self._slots.room, tiers)))
        running = self._slots.running
        for job in await find_fair(self._database, tiers, running=running, limit=limit, seconds=seconds):
            self._start_found(job)
