"""The slots of a worker, and the reserve that keeps one account's long calls from holding up all others."""

from __future__ import annotations

from headrace.jobs.records import WaitingJob
from headrace.queue import LINES
from worker.line_pace import LinePace


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
        self._slots.lines -= self._tier == LINES
        if self._holder is not None:
            account, background = self._holder
            self._slots.count(account, -1, background=background)


class Slots:
    """The slots of one worker, and a reserve for accounts that run few jobs here.

    A job of another account then starts although one account's long calls hold every slot.
    """

    def __init__(self, size: int, *, line_slots: int, pace: LinePace | None = None) -> None:
        """Have `size` slots, of which lines of batches may take up to `line_slots`, and an eighth more in reserve.

        With a pace, lines wait for it too.
        """
        self._size = size
        self._line_slots = line_slots
        self._reserve = reserve_of(size)
        self._pace = pace or LinePace()
        self.taken = 0
        self.lines = 0
        self.running: dict[str, tuple[int, int]] = {}
        """For each account, the number of its jobs that run here, and of its foreground jobs among them."""

    def room(self, tier: str) -> int:
        """Return how many jobs of a tier may start in slots that every account may use."""
        free = max(0, self._size - self.taken)
        if tier != LINES:
            return free
        most = max(0, self._line_slots - self.lines)
        return int(min(free, most, max(0, self._pace.room()))) if self._pace.is_limited else min(free, most)

    @property
    def line_waits(self) -> bool:
        """Whether a line has to wait although a slot is free for it."""
        return self._pace.is_limited and self._pace.room() < 1

    @property
    def reserve(self) -> int:
        """Reserved slots that are free while all others are taken.

        An account gets one only if it runs fewer jobs here than that: so some are left for the next account.
        """
        return self._size + self._reserve - max(self.taken, self._size)

    def take(self, tier: str) -> Slot:
        """Take a slot."""
        self.taken += 1
        if tier == LINES:
            self.lines += 1
            self._pace.started()
        return Slot(self, tier)

    def may_reserve(self, job: WaitingJob) -> bool:
        """Return whether a job may have a reserved slot."""
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
