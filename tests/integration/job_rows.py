"""Jobs for tests: brought to a state by the product's own statements, and looked at row by row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from headrace.formats.chat.usage import TokenUsage
from headrace.ids import new_id
from headrace.jobs.records import Backlog, ClaimedJob, FinishedJob, MovedJob, NewJob, Segment
from headrace.jobs.sql.accept import insert_jobs
from headrace.jobs.sql.cancel import cancel_job
from headrace.jobs.sql.erase import delete_job
from headrace.jobs.sql.rescue import expire_jobs, rescue_jobs, resend_jobs
from headrace.jobs.sql.run import append_segments, claim_jobs, finish_jobs, retry_job
from headrace.jobs.state import State
from headrace.stores.connections import Row
from headrace.stores.database import Database, execute
from headrace.usage.spent import SpentUsage

WORKER = "worker-1"
LEASE = 60.0
SPENT = SpentUsage("fake", "fake-1", TokenUsage(50, 30, cached_tokens=20, reasoning_tokens=10), Decimal("0.0042"))
ERROR = '{"error":{"message":"no"},"status":500}'
RESPONSE = '{"choices":[]}'
NOTHING_WAITS = Backlog([], [], whole=True)


@dataclass(frozen=True)
class Owner:
    """The account and the key that own a job."""

    account_id: str
    key_id: str


def new_job(owner: Owner, **changes: Any) -> NewJob:
    """Return a job as a client would submit it; `changes` are fields of NewJob."""
    job = NewJob(
        id=new_id("job"),
        account_id=owner.account_id,
        key_id=owner.key_id,
        model="fake",
        request='{"messages":[]}',
        metadata=None,
        tier="default",
        background=True,
        streamed=False,
        origin=None,
        timeout_seconds=3600,
    )
    return replace(job, **changes)


def end_of(job: ClaimedJob, state: State = State.COMPLETED, **changes: Any) -> FinishedJob:
    """Return an end of the attempt that keeps every CHECK; `changes` are fields of FinishedJob."""
    completed = state is State.COMPLETED
    ended = FinishedJob(
        id=job.id,
        attempt=job.attempt,
        state=state,
        provider="fake",
        response=RESPONSE if completed else None,
        error=None if completed else ERROR,
        delta_count=0,
        seconds_since_first_token=None,
        segment=None,
        spent=SPENT if completed else None,
        record=record_of(job, state.value),
        followed=job.batch_id is not None or job.has_webhook,
    )
    return replace(ended, **changes)


def record_of(job: ClaimedJob, status: str) -> str:
    """Return what a job's attempts say of this one."""
    return json.dumps({"attempt": job.attempt, "status": status, "provider": "fake", "model": "m", "seconds": 0.5})


def segment(job: ClaimedJob, first_seq: int, last_seq: int) -> Segment:
    """Return these deltas of the attempt; each chunk tells its number."""
    chunks = "\n".join(f'{{"n":"{job.attempt}-{seq}"}}' for seq in range(first_seq, last_seq + 1))
    return Segment(job.id, job.attempt, first_seq, last_seq, chunks)


@dataclass(frozen=True)
class Jobs:
    """An account's jobs in a database."""

    database: Database
    owner: Owner

    async def submit(self, **changes: Any) -> str:
        """Insert a job and return its id."""
        job = new_job(self.owner, **changes)
        await insert_jobs(self.database, [job])
        return job.id

    async def claim(self, *job_ids: str, worker: str = WORKER, doubtful: bool = False) -> list[ClaimedJob]:
        """Claim jobs; `doubtful`, as a worker that never heard how its last claim of them went."""
        held = () if doubtful else job_ids
        return await claim_jobs(self.database, job_ids, worker=worker, lease_seconds=LEASE, held=held)

    async def run(self, *, deltas: int = 0, **changes: Any) -> ClaimedJob:
        """Insert and claim a job, and keep its first `deltas` deltas."""
        [job] = await self.claim(await self.submit(**changes))
        if deltas:
            await self.append(segment(job, 1, deltas))
        return job

    async def append(self, *segments: Segment) -> None:
        """Keep deltas."""
        await append_segments(self.database, segments)

    async def finish(self, *ended: FinishedJob) -> list[bool]:
        """End jobs."""
        return await finish_jobs(self.database, ended)

    async def complete(self, **changes: Any) -> ClaimedJob:
        """Insert, claim and complete a job."""
        job = await self.run(**changes)
        assert await self.finish(end_of(job)) == [True]
        return job

    async def retry(
        self, job: ClaimedJob, *, delay_seconds: float = 0, spent: SpentUsage | None = None
    ) -> State | None:
        """Put a job back, or end it if it was cancelled."""
        return await retry_job(
            self.database,
            job.id,
            job.attempt,
            delay_seconds=delay_seconds,
            route=job.route,
            retries=job.retries + 1,
            cancelled='{"why":"cancelled"}',
            record=record_of(job, "failed"),
            spent=spent,
        )

    async def cancel(self, job_id: str, owner: Owner | None = None) -> MovedJob | None:
        """Cancel a job."""
        return await cancel_job(self.database, job_id, (owner or self.owner).account_id, error='{"why":"cancelled"}')

    async def delete(self, job_id: str, owner: Owner | None = None) -> bool:
        """Erase a job."""
        return await delete_job(self.database, job_id, (owner or self.owner).account_id)

    async def rescue(self, *, max_lost: int = 3, delay_seconds: float = 0) -> list[MovedJob]:
        """Take jobs from dead workers."""
        return await rescue_jobs(
            self.database,
            max_lost=max_lost,
            delay_seconds=delay_seconds,
            cancelled='{"why":"cancelled"}',
            poisonous='{"why":"poisonous"}',
            interrupted='{"why":"interrupted"}',
        )

    async def expire(self) -> list[MovedJob]:
        """End jobs whose deadline passed."""
        return await expire_jobs(self.database, error='{"why":"expired"}')

    async def resend(
        self, tier: str = "default", backlog: Backlog = NOTHING_WAITS, *, seconds: float = -1
    ) -> list[MovedJob]:
        """Find queued jobs whose wake-up was lost, by default with empty queues."""
        return await resend_jobs(self.database, tier, backlog, resend_seconds=seconds)

    async def set(self, job_id: str, assignments: str) -> None:
        """Change a row without the product's statements: time passes, or a worker dies."""
        await execute(self.database.durable, f"UPDATE jobs SET {assignments} WHERE id = %(id)s", {"id": job_id})

    async def lose(self, job_id: str) -> None:
        """Let the lease of a running job expire."""
        await self.set(job_id, "lease_until = now() - interval '1 second'")

    async def row(self, job_id: str) -> Row:
        """Return the job's row."""
        return (await execute(self.database.durable, "SELECT * FROM jobs WHERE id = %(id)s", {"id": job_id}))[0]

    async def state(self, job_id: str) -> State:
        """Return the job's state."""
        return State((await self.row(job_id)).state)

    async def deltas(self, job_id: str) -> list[tuple[int, int, int, int]]:
        """Return `(attempt, first_seq, last_seq, number of chunks)` of every segment kept."""
        rows = await execute(
            self.database.durable,
            "SELECT attempt, first_seq, last_seq, chunks FROM job_deltas WHERE job_id = %(id)s ORDER BY 1, 2",
            {"id": job_id},
        )
        return [(row[0], row[1], row[2], len(row[3].split("\n"))) for row in rows]

    async def ledger(self, job_id: str) -> Sequence[Row]:
        """Return the job's usage rows, oldest attempt first."""
        return await execute(
            self.database.durable, "SELECT * FROM usage WHERE job_id = %(id)s ORDER BY attempt", {"id": job_id}
        )
