"""The cost of the ledger's roll-ups: in the statement that ends jobs, and of folding its rows afterwards."""

from __future__ import annotations

import statistics
import time
from decimal import Decimal

from headrace.formats.chat.usage import TokenUsage
from headrace.ids import new_id
from headrace.jobs.records import ClaimedJob, FinishedJob, NewJob
from headrace.jobs.sql.accept import insert_jobs
from headrace.jobs.sql.run import claim_jobs, finish_jobs
from headrace.jobs.state import State
from headrace.stores.database import Database, execute
from headrace.usage.rollups import fold_usage
from headrace.usage.spent import SpentUsage

_ROUNDS = 8
_JOBS = 1000
_TOGETHER = 20
_RESPONSE = '{"choices": [], "padding": "%s"}' % ("x" * 1000)
# Roll-ups need one thing of the statement that ends a job: its row can be found by its transaction.
_INDEX = "ix_usage_transaction"
_SPENT = SpentUsage("openai", "model-1-2026", TokenUsage(500, 200), Decimal("0.0042"), '{"source": "bench"}', "user")


async def measure_finishing(database: Database) -> dict[str, float]:
    """Return the ms to end one of twenty jobs, with and without support for roll-ups, and the µs to fold a row.

    The two kinds of ends take turns, on the same long ledger.
    """
    key = {"id": "key_f", "account_id": "acct_0"}
    await execute(
        database.relaxed,
        "INSERT INTO api_keys (id, account_id, name, hash, hint) VALUES (%(id)s, %(account_id)s, '', sha256('f'), '') "
        "ON CONFLICT DO NOTHING",
        key,
    )
    await fold_usage(database, metadata_keys=["customer"])
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(_ROUNDS):
        for indexed in (True, False):
            if indexed:
                await execute(database.relaxed, f"CREATE INDEX IF NOT EXISTS {_INDEX} ON usage (transaction)")
            else:
                await execute(database.relaxed, f"DROP INDEX {_INDEX}")
            times[indexed] += await _finish_some(database)
    await execute(database.relaxed, f"CREATE INDEX IF NOT EXISTS {_INDEX} ON usage (transaction)")
    began = time.perf_counter()
    folded = await fold_usage(database, metadata_keys=["customer"])
    fold = (time.perf_counter() - began) / folded
    with_index, without = (statistics.median(times[indexed]) for indexed in (True, False))
    return {"with_ms": with_index, "without_ms": without, "added": with_index / without - 1, "fold_us": fold * 1e6}


async def _finish_some(database: Database) -> list[float]:
    """Return the time of each statement, in ms a job."""
    new = [
        NewJob(
            id=new_id("job"),
            account_id="acct_0",
            key_id="key_f",
            model="model-1",
            request='{"messages": []}',
            metadata='{"customer": "customer-1"}',
            tier="default",
            background=True,
            streamed=False,
            origin=None,
            timeout_seconds=3600,
        )
        for _ in range(_JOBS)
    ]
    await insert_jobs(database, new)
    claimed = await claim_jobs(database, [job.id for job in new], worker="bench", lease_seconds=3600)
    times = []
    for at in range(0, _JOBS, _TOGETHER):
        ends = [_end(job) for job in claimed[at : at + _TOGETHER]]
        began = time.perf_counter()
        await finish_jobs(database, ends)
        times.append((time.perf_counter() - began) * 1000 / _TOGETHER)
    return times


def _end(job: ClaimedJob) -> FinishedJob:
    return FinishedJob(
        id=job.id,
        attempt=job.attempt,
        state=State.COMPLETED,
        provider="openai",
        response=_RESPONSE,
        error=None,
        delta_count=0,
        seconds_since_first_token=None,
        segment=None,
        spent=_SPENT,
        record="{}",
    )
