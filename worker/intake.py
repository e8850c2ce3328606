"""What a worker runs next: its slots, the wake-ups that wait for one, and the fair order while jobs wait.

A wake-up is a hint, and the row in Postgres decides. While slots are free, a job starts as soon as its wake-up comes.
Once jobs wait for slots here, they do not start in the order of their wake-ups, which is that of arrival: the worker
asks Postgres which waiting jobs come first, whether or not their wake-ups have come here. A wake-up whose job runs by
then claims nothing. Lines of batches start in the order in which they come: the scheduler has shared them out already.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from itertools import islice
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from headrace.jobs.records import WaitingJob
from headrace.jobs.sql.find import find_fair, find_taken
from headrace.settings import Settings
from headrace.stores.database import Database
from worker.availability import Availability

log = logging.getLogger(__name__)

_LINES = "batch"
# Seconds between two looks for jobs that may have a reserved slot.
_RESERVE_SECONDS = 0.1
# Times the duration of the last such look that the worker rests at least.
_REST = 20
# Seconds for which slots that come free are gathered, so that one look serves many.
_GATHER_SECONDS = 0.01
# Seconds until the next look after one that failed.
_FAILED_SECONDS = 0.5
# Jobs that one look finds at most, and wake-ups that it checks.
_MOST_FOUND = 32
_MOST_HINTS = 256


class Slot:
    """Room for one job, which is counted for the job's account once that is known."""

    def __init__(self, slots: Slots, tier: str) -> None:
        self._slots = slots
        self._tier = tier
        self._holder: tuple[str, bool] | None = None

    def hold(self, account: str, *, background: bool) -> None:
        """Note the account of the job that has this slot."""
        if self._holder is None:
            self._holder = (account, background)
            self._slots.count(account, 1, background=background)

    def free(self) -> None:
        """Free the slot for the next job."""
        self._slots.taken -= 1
        self._slots.lines -= self._tier == _LINES
        if self._holder is not None:
            account, background = self._holder
            self._slots.count(account, -1, background=background)


class Slots:
    """The slots of one worker, and a reserve for accounts that run few jobs here.

    A job of another account then starts although one account's long calls hold every slot.
    """

    def __init__(self, size: int, *, line_slots: int) -> None:
        """Have `size` slots, of which lines of batches may take up to `line_slots`, and an eighth more in reserve."""
        self._size = size
        self._line_slots = line_slots
        self._reserve = reserve_of(size)
        self.taken = 0
        self.lines = 0
        self.running: dict[str, tuple[int, int]] = {}
        """For each account, the number of its jobs that run here, and of its foreground jobs among them."""

    def room(self, tier: str) -> int:
        """Return how many jobs of a tier may start in slots that every account may use."""
        free = max(0, self._size - self.taken)
        return min(free, max(0, self._line_slots - self.lines)) if tier == _LINES else free

    @property
    def reserve(self) -> int:
        """Reserved slots that are free while all others are taken.

        An account gets one only if it runs fewer jobs here than that: so some are left for the next account.
        """
        return self._size + self._reserve - max(self.taken, self._size)

    def take(self, tier: str) -> Slot:
        """Take a slot."""
        self.taken += 1
        self.lines += tier == _LINES
        return Slot(self, tier)

    def may_reserve(self, job: WaitingJob) -> bool:
        """Tell whether a job may have a reserved slot."""
        running, waited_for = self.running.get(job.account_id, (0, 0))
        return (running if job.background else waited_for) < self.reserve

    def count(self, account: str, change: int, *, background: bool) -> None:
        """Note that `change` more jobs of an account run here."""
        running, waited_for = self.running.pop(account, (0, 0))
        if running + change:
            self.running[account] = (running + change, waited_for + (0 if background else change))


def reserve_of(slots: int) -> int:
    """Return how many slots a worker with `slots` has in reserve, beyond those."""
    return max(1, slots // 8)


class _Message:
    """The jobs of one wake-up that wait here."""

    def __init__(self) -> None:
        self.left = 0
        self.gone = asyncio.Event()


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
        run: Callable[[str, str, Slot], Coroutine[Any, Any, None]],
        send_back: Callable[[Sequence[str], str], None],
    ) -> None:
        """`run` runs the job of an id and a tier; `send_back` wakes another worker for jobs of a tier."""
        self._settings = settings
        self._database = database
        self._availability = availability
        self._tiers = tiers
        self._slots = slots
        self._run = run
        self._send_back = send_back
        self.in_hand: dict[str, str] = {}
        """Jobs whose wake-ups came here and that wait for a slot, in their order, and the tier of each."""
        self._messages: dict[str, _Message] = {}
        self._lines_in_hand = 0
        self._moved = asyncio.Event()
        """Set when a wake-up comes or a slot comes free while jobs wait."""
        self.tasks: set[asyncio.Task[None]] = set()
        self._starting: set[str] = set()
        self._heard_at = 0.0
        self._closed = False
        availability.on_lost(self.hand_back_all)

    async def hear(self, job_ids: Sequence[str], *, tier: str) -> None:
        """Start the jobs of a message as slots come free; returns once none of them waits here.

        Jobs that wait here already are not taken twice.
        """
        self._heard_at = asyncio.get_running_loop().time()
        fresh = [job_id for job_id in job_ids if job_id not in self.in_hand]
        if self._closed or not self._availability.reachable.is_set():
            self._send_back(fresh, tier)
            self.hand_back_all()
            return
        message = _Message()
        for job_id in fresh:
            if not self._waiting(tier) and self._slots.room(tier):
                self.start(job_id, tier)
            else:
                self.in_hand[job_id] = tier
                self._messages[job_id] = message
                self._lines_in_hand += tier == _LINES
                message.left += 1
        if message.left:
            self._moved.set()
            await message.gone.wait()

    def _waiting(self, tier: str) -> int:
        """Return how many jobs wait here that compete with one of this tier: lines compete with lines."""
        return self._lines_in_hand if tier == _LINES else len(self.in_hand) - self._lines_in_hand

    def start(self, job_id: str, tier: str) -> Slot:
        """Start a job now, in an additional slot if none is free, and return the slot."""
        self._drop(job_id)
        slot = self._slots.take(tier)
        task = asyncio.create_task(self._run(job_id, tier, slot))
        self._starting.add(job_id)
        self.tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, job_id, slot))
        return slot

    def _ended(self, task: asyncio.Task[None], job_id: str, slot: Slot) -> None:
        self.tasks.discard(task)
        self._starting.discard(job_id)
        slot.free()
        if self.in_hand:
            self._moved.set()

    def _drop(self, job_id: str) -> None:
        """Remove a job from those that wait here."""
        tier = self.in_hand.pop(job_id, None)
        if tier is None:
            return
        self._lines_in_hand -= tier == _LINES
        message = self._messages.pop(job_id)
        message.left -= 1
        if not message.left:
            message.gone.set()

    def hand_back_all(self) -> None:
        """Hand back every job that has no slot here yet."""
        waiting: dict[str, list[str]] = defaultdict(list)
        for job_id, tier in self.in_hand.items():
            waiting[tier].append(job_id)
        for tier, job_ids in waiting.items():
            self._send_back(job_ids, tier)
            for job_id in job_ids:
                self._drop(job_id)

    def close(self) -> None:
        """Take no more jobs."""
        self._closed = True
        self.hand_back_all()

    # -- while there are more jobs than slots -----------------------------------------------------------------------

    async def share(self) -> None:
        """Give the slots that come free to the jobs that come first, while jobs wait here; until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._moved.wait()
            while self.in_hand and not self._closed:
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
                else:
                    await self._pause(max(_RESERVE_SECONDS, _REST * took))

    def _open_tiers(self) -> list[str]:
        """Return the tiers, without that of lines, that have free slots, if jobs wait here for them."""
        tiers = [tier for tier in self._tiers if tier != _LINES and self._slots.room(tier)]
        return tiers if tiers and self._waiting(tiers[0]) else []

    async def _pause(self, seconds: float) -> None:
        """Wait until a slot comes free, or for so many seconds: a job may come that may have a reserved slot."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._moved.wait()

    def _start_lines(self) -> None:
        room = self._slots.room(_LINES) if self._lines_in_hand else 0
        if room:
            lines = (job_id for job_id, tier in self.in_hand.items() if tier == _LINES)
            for job_id in list(islice(lines, room)):
                self.start(job_id, _LINES)

    async def _share_once(self) -> None:
        """Start the jobs that come first in the slots that are free."""
        self._start_lines()
        tiers = self._open_tiers()
        if not tiers:
            if len(self.in_hand) > self._lines_in_hand:
                await self._use_reserve()
            return
        limit = min(_MOST_FOUND, max(map(self._slots.room, tiers)))
        found = await find_fair(self._database, tiers, running=self._slots.running, limit=limit)
        for job in found:
            self._start_found(job)
        await self._forget_taken()
        if len(found) < limit:  # no other job is due: so these are not due yet, or not queued any more
            for job_id, tier in list(self.in_hand.items()):
                if self._slots.room(tier):
                    self.start(job_id, tier)

    async def _use_reserve(self, *, seconds: float = 0) -> None:
        """Start jobs of accounts that run few jobs here in reserved slots, if all others are taken."""
        tiers = [tier for tier in self._tiers if tier != _LINES]
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

    def _start_found(self, job: WaitingJob, *, reserved: bool = False) -> None:
        """Start a job unless it starts already, or its tier has no slot any more."""
        if job.id not in self._starting and (reserved or self._slots.room(job.tier)):
            self.start(job.id, job.tier).hold(job.account_id, background=job.background)

    async def _forget_taken(self) -> None:
        """Drop the first wake-ups here whose jobs run elsewhere, so that the next messages come."""
        hints = list(self.in_hand)[:_MOST_HINTS]
        if hints:
            for job_id in await find_taken(self._database, hints):
                self._drop(job_id)

    # -- without wake-ups ---------------------------------------------------------------------------------------------

    async def find_unclaimed(self, *, deaf: bool) -> None:
        """While no message comes, start jobs that wait in Postgres, if there are slots.

        Redis may be unavailable, `deaf`, or have lost its lists; or Celery's consumer may hang, as it has done after
        reconnections.
        """
        quiet = asyncio.get_running_loop().time() - self._heard_at > self._settings.resend_seconds
        if self._closed or not (deaf or quiet):
            return
        try:
            await self._take_unclaimed(0 if deaf else self._settings.resend_seconds)
        except SQLAlchemyError as error:
            log.warning("could not look for jobs: %s", error)

    async def _take_unclaimed(self, seconds: float) -> None:
        tiers = [tier for tier in self._tiers if self._slots.room(tier)]
        if not tiers:
            await self._use_reserve(seconds=seconds)
            return
        limit = min(_MOST_FOUND, max(map(self._slots.room, tiers)))
        running = self._slots.running
        for job in await find_fair(self._database, tiers, running=running, limit=limit, seconds=seconds):
            self._start_found(job)
