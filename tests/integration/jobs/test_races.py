"""Two statements on the same job at the same moment, over two connections: in either order, the row stays right.

No model says who wins. What is checked is that what each statement was told agrees with the row, that the row went from
state to state as `state.TRANSITIONS` allows, that an end never changes, and that the ledger, the batch's counts and the
webhooks have what the winners brought, once.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from psycopg.rows import DictRow, dict_row

from headrace.batches.queries import fold_tallies
from headrace.formats.chat.usage import TokenUsage
from headrace.ids import new_id
from headrace.jobs.records import ClaimedJob, Segment
from headrace.jobs.sql.accept import insert_jobs
from headrace.jobs.sql.run import extend_leases, retry_job
from headrace.jobs.state import TRANSITIONS, State
from headrace.stores.database import Database
from headrace.usage.spent import SpentUsage
from tests.integration.batches.test_queries import create, feed
from tests.integration.job_rows import Jobs, Owner, end_of, new_job

MAX_LOST = 3
STAGES = ("queued", "running", "lost", "late")
"""A running job is in its second attempt. A lost job's lease has expired. A late job is queued again."""

_LOCK = "SELECT FROM jobs WHERE id = %s FOR UPDATE"
_BLOCKED = "SELECT count(DISTINCT pid) AS n FROM pg_locks WHERE NOT granted"
_JOBS = """
SELECT jobs.*,
       coalesce((SELECT jsonb_agg(jsonb_build_array(attempt, chunks)) FROM job_deltas WHERE job_id = jobs.id), '[]')
               AS deltas,
       coalesce((SELECT jsonb_agg(jsonb_build_array(kind, prompt_tokens)) FROM usage WHERE job_id = jobs.id), '[]')
               AS ledger,
       coalesce((SELECT jsonb_agg(event) FROM webhook_deliveries WHERE job_id = jobs.id), '[]') AS told
FROM jobs WHERE id = ANY(%s)
"""
_COUNTS = """
SELECT batches.id, batches.completed + coalesce(sum(tally.completed), 0) AS completed,
       batches.failed + coalesce(sum(tally.failed), 0) AS failed,
       batches.cancelled + coalesce(sum(tally.cancelled), 0) AS cancelled
FROM batches LEFT JOIN batch_tallies AS tally ON batch_id = batches.id GROUP BY batches.id
"""
_END = ("state", "attempt", "error", "finished_at", "finished_in", "lost", "retries", "delta_count")


@dataclass(frozen=True)
class Outcome:
    """The parts of a statement's result that its caller relies on."""

    claimed: int | None = None
    """The attempt that the claim won."""
    ended: State | None = None
    """The end that the statement wrote."""
    put_back: State | None = None
    seen: State | None = None
    """The state that the statement reports."""
    erased: bool = False
    lost: bool = False
    """The statement reports that the worker no longer holds the attempt."""
    token: int = 0
    spent: bool = False


Act = Callable[[Jobs, ClaimedJob, int], Awaitable[Outcome]]


def _spent(token: int) -> SpentUsage:
    """Return what an attempt used: a number of tokens of its own."""
    return SpentUsage("fake", "fake-1", TokenUsage(token, 1), Decimal("0.1"))


def _record(job: ClaimedJob, token: int) -> str:
    return json.dumps({"attempt": job.attempt, "status": "failed", "token": token})


async def _claim(jobs: Jobs, job: ClaimedJob, token: int) -> Outcome:
    claimed = await jobs.claim(job.id, worker=f"worker-{token}")
    return Outcome(claimed=claimed[0].attempt if claimed else None)


async def _heartbeat(jobs: Jobs, job: ClaimedJob, token: int) -> Outcome:
    stop = await extend_leases(jobs.database, [(job.id, job.attempt)], lease_seconds=60)
    return Outcome(lost=any(lost for _, _, lost in stop))


async def _append(jobs: Jobs, job: ClaimedJob, token: int) -> Outcome:
    await jobs.append(Segment(job.id, job.attempt, token, token, f"{job.id} {job.attempt}"))
    return Outcome()


def _finish(state: State, *, spent: bool) -> Act:
    async def act(jobs: Jobs, job: ClaimedJob, token: int) -> Outcome:
        segment = Segment(job.id, job.attempt, token, token, f"{job.id} {job.attempt}")
        ended = end_of(job, state, segment=segment, delta_count=token, spent=_spent(token) if spent else None)
        [ours] = await jobs.finish(replace(ended, record=_record(job, token)))
        return Outcome(ended=state if ours else None, token=token, spent=spent)

    return act


def _retry(*, spent: bool) -> Act:
    async def act(jobs: Jobs, job: ClaimedJob, token: int) -> Outcome:
        state = await retry_job(
            jobs.database,
            job.id,
            job.attempt,
            delay_seconds=0,
            route=0,
            retries=1,
            cancelled='{"why":"cancelled"}',
            record=_record(job, token),
            spent=_spent(token) if spent else None,
        )
        return Outcome(put_back=state, token=token, spent=spent)

    return act


async def _cancel(jobs: Jobs, job: ClaimedJob, token: int) -> Outcome:
    moved = await jobs.cancel(job.id)
    return Outcome(seen=None if moved is None else moved.state)


async def _delete(jobs: Jobs, job: ClaimedJob, token: int) -> Outcome:
    return Outcome(erased=await jobs.delete(job.id))


async def _rescue(jobs: Jobs, job: ClaimedJob, token: int) -> Outcome:
    moved = await jobs.rescue(max_lost=MAX_LOST)
    return Outcome(seen=next((found.state for found in moved if found.id == job.id), None))


async def _expire(jobs: Jobs, job: ClaimedJob, token: int) -> Outcome:
    moved = await jobs.expire()
    return Outcome(ended=State.EXPIRED if any(found.id == job.id for found in moved) else None)


async def _insert_again(jobs: Jobs, job: ClaimedJob, token: int) -> Outcome:
    await insert_jobs(jobs.database, [new_job(jobs.owner, id=job.id)])
    return Outcome()


async def _resend(jobs: Jobs, job: ClaimedJob, token: int) -> Outcome:
    for tier in ("default", "batch"):
        await jobs.resend(tier)
    return Outcome()


async def _fold(jobs: Jobs, job: ClaimedJob, token: int) -> Outcome:
    await fold_tallies(jobs.database)
    return Outcome()


ACTS: dict[str, Act] = {
    "claim": _claim,
    "heartbeat": _heartbeat,
    "append": _append,
    "complete": _finish(State.COMPLETED, spent=True),
    "fail": _finish(State.FAILED, spent=False),
    "retry": _retry(spent=False),
    "retry of what was used": _retry(spent=True),
    "cancel": _cancel,
    "delete": _delete,
    "rescue": _rescue,
    "expire": _expire,
    "insert again": _insert_again,
    "resend": _resend,
    "fold tallies": _fold,
}

REACHED = {
    before: {before}
    | TRANSITIONS[before]
    | {after for between in TRANSITIONS[before] for after in TRANSITIONS[between]}
    for before in State
}
"""Where two statements may take a job."""


class Arena:
    """Two connections whose statements meet on jobs, and a third that reads the rows and can lock them."""

    def __init__(self, runner: asyncio.Runner, url: str, owner: Owner) -> None:
        self.run = runner.run
        self.databases = [Database.connect(url, connections=2) for _ in range(2)]
        self.sides = [Jobs(database, owner) for database in self.databases]
        self.tokens = itertools.count(1)
        self.looker = self.run(self._connect(url))
        self.clear()

    async def _connect(self, url: str) -> psycopg.AsyncConnection[DictRow]:
        return await psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=dict_row)

    def close(self) -> None:
        self.run(self.looker.close())
        for database in self.databases:
            self.run(database.close())

    def clear(self) -> None:
        """Forget every job."""
        self.rows: dict[str, DictRow] = {}
        self.ledgers: dict[str, list[list[Any]]] = {}
        for table in ("jobs", "usage", "batches"):  # and with them what belongs to their rows
            self.run(self._look(f"DELETE FROM {table}"))

    async def _look(self, query: str, *parameters: object) -> list[DictRow]:
        cursor = await self.looker.execute(query.encode(), parameters)
        return await cursor.fetchall() if cursor.description else []

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def add(self, kinds: Sequence[str], stage: str) -> list[str]:
        """Make jobs of these kinds, and bring them to a stage but for the time that has to pass."""
        job_ids: list[str] = self.run(self._add(kinds, claimed=stage in {"running", "lost"}))
        self.rows |= self._read(job_ids)
        self.ledgers |= {job_id: [] for job_id in job_ids}
        return job_ids

    async def _add(self, kinds: Sequence[str], *, claimed: bool) -> list[str]:
        jobs = self.sides[0]
        new = {
            "told": new_job(jobs.owner, webhook="http://example.com"),
            "streamed": new_job(jobs.owner, background=False, streamed=True),
        }
        asked = [replace(new[kind], id=new_id("job")) for kind in kinds if kind != "line"]
        await insert_jobs(jobs.database, asked)
        lines: list[str] = []
        if count := kinds.count("line"):
            lines = await feed(jobs.database, await create(jobs.database, jobs.owner, total=count), 1, count)
        ids = {"line": iter(lines), **dict.fromkeys(new, iter([job.id for job in asked]))}
        job_ids = [next(ids[kind]) for kind in kinds]
        if claimed:  # for the second time
            await self._look("UPDATE jobs SET attempt = 1, started_at = now() WHERE id = ANY(%s)", job_ids)
            await jobs.claim(*job_ids)
        return job_ids

    def let_time_pass(self, job_id: str, stage: str) -> None:
        """Bring a job to its stage."""
        if stage == "lost":
            self.run(self.sides[0].lose(job_id))
        if stage == "late":
            self.run(self.sides[0].set(job_id, "deadline_at = now()"))

    def _read(self, job_ids: Iterable[str]) -> dict[str, DictRow]:
        return {row["id"]: row for row in self.run(self._look(_JOBS, list(job_ids)))}

    # -- races --------------------------------------------------------------------------------------------------------

    def race(self, job_id: str, names: Sequence[str], behind: Sequence[int], *, held: bool) -> None:
        """Let two statements meet, of the job's last attempt or of an earlier one.

        If a third connection has held the job, both statements go on at the moment it commits.
        """
        [before] = self._read([job_id]).values()
        attempts = [before["attempt"] - late for late in behind]
        acts = [
            ACTS[name](jobs, self._held(before, attempt), next(self.tokens))
            for name, attempt, jobs in zip(names, attempts, self.sides, strict=True)
        ]
        outcomes = self.run(self._meet(job_id, acts) if held else _together(acts))
        [after] = self._read([job_id]).values()
        assert State(after["state"]) in REACHED[State(before["state"])]
        self._check_told(before, after, outcomes, attempts)
        self._check_row(after)

    def _held(self, row: DictRow, attempt: int) -> ClaimedJob:
        new = new_job(self.sides[0].owner, id=row["id"])
        return ClaimedJob(
            id=row["id"],
            attempt=attempt,
            account_id=new.account_id,
            key_id=new.key_id,
            model=new.model,
            request=new.request,
            background=row["background"],
            streamed=row["streamed"],
            origin=None,
            tier=row["tier"],
            route=0,
            retries=0,
            created=0,
            seconds_left=1,
        )

    async def _meet(self, job_id: str, acts: Sequence[Awaitable[Outcome]]) -> Sequence[Outcome]:
        async with self.looker.transaction():
            await self._look(_LOCK, job_id)
            tasks = [asyncio.ensure_future(act) for act in acts]
            while True:
                [blocked] = await self._look(_BLOCKED)
                if blocked["n"] + sum(task.done() for task in tasks) >= len(tasks):
                    break
        return await _together(tasks)

    # -- what must be so ----------------------------------------------------------------------------------------------

    def _check_told(
        self, before: DictRow, after: DictRow, outcomes: Sequence[Outcome], attempts: Sequence[int]
    ) -> None:
        """Check that the statements' results agree with the row."""
        states = State(before["state"]), State(after["state"])
        if states[0].is_final:
            assert [after[name] for name in _END] == [before[name] for name in _END]
            assert after["response"] in {before["response"], None}

        won = [outcome.claimed for outcome in outcomes if outcome.claimed is not None]
        assert after["attempt"] - before["attempt"] == len(won) <= 1
        assert not won or won == [after["attempt"]]

        ends = [outcome.ended for outcome in outcomes if outcome.ended is not None]
        assert len(ends) <= 1
        assert not ends or ends == [states[1]]

        erased = [outcome.erased for outcome in outcomes].count(True)
        assert erased == (before["deleted_at"] is None and after["deleted_at"] is not None)

        ledger, tokens = self.ledgers[before["id"]], [record.get("token") for record in after["tried"]]
        for outcome, attempt in zip(outcomes, attempts, strict=True):
            written = outcome.ended is not None or outcome.put_back is not None
            if outcome.token and after["deleted_at"] is None:
                assert (outcome.token in tokens) == written
            if written and outcome.spent:
                ledger.append(["counted" if outcome.ended is not None else "discarded", outcome.token])
            if written and outcome.token:
                assert _holds(before, attempt)
            seen = outcome.put_back or outcome.seen
            if seen is not None and seen.is_final:
                assert states[1] is seen
            if outcome.lost:
                assert not (_holds(before, attempt) and _holds(after, attempt))

    def _check_row(self, row: DictRow) -> None:
        """Check that a job wrote its ledger rows, counts and webhooks once."""
        state = State(row["state"])
        assert sorted(row["ledger"]) == sorted(self.ledgers[row["id"]])
        assert [kind for kind, _ in row["ledger"]].count("counted") <= state.is_final
        for attempt, chunks in row["deltas"]:
            assert attempt <= row["attempt"]
            assert chunks == f"{row['id']} {attempt}"
        if row["deleted_at"] is not None and state.is_final:
            assert (row["request"], row["response"], row["deltas"]) == (None, None, [])
        assert row["told"] == ([f"job.{state}"] if state.is_final and row["webhook"] else [])

    def check_all(self) -> None:
        """Every job is right, and a batch counts how its lines have ended, whether its tallies are added up or not."""
        states: dict[str, list[str]] = defaultdict(list)
        for row in self._read(self.rows).values():
            before = self.rows[row["id"]]
            if State(before["state"]).is_final:
                assert [row[name] for name in _END] == [before[name] for name in _END]
            self._check_row(row)
            states[row["batch_id"]].append(row["state"])
            self.rows[row["id"]] = row
        for counted in self.run(self._look(_COUNTS)):
            known = states[counted["id"]]
            failed = known.count("failed") + known.count("expired")
            counts = [counted["completed"], counted["failed"], counted["cancelled"]]
            assert counts == [known.count("completed"), failed, known.count("cancelled")]


def _holds(row: DictRow, attempt: int) -> bool:
    return bool(row["state"] == "running" and row["attempt"] == attempt)


async def _together(acts: Sequence[Awaitable[Outcome]]) -> Sequence[Outcome]:
    return list(await asyncio.gather(*acts))


@pytest.fixture
def arena(database_url: str, owner: Owner) -> Iterator[Arena]:
    with asyncio.Runner() as runner:
        arena = Arena(runner, database_url, owner)
        yield arena
        arena.close()


@pytest.mark.parametrize("stage", STAGES)
def test_any_two_statements_may_meet(arena: Arena, stage: str) -> None:
    pairs = list(itertools.combinations_with_replacement(ACTS, 2))
    races = [(names, (0, 0), held) for names in pairs for held in (True, False)]
    if stage == "running":  # and one of the two is of a worker that has lost the job
        races += [(names, (1, 0), True) for names in pairs]
    kinds = [("told", "line", "streamed")[number % 3] for number in range(len(races))]
    for job_id, (names, behind, held) in zip(arena.add(kinds, stage), races, strict=True):
        arena.let_time_pass(job_id, stage)
        arena.race(job_id, names, behind, held=held)
    arena.check_all()


class RaceMachine(RuleBasedStateMachine):
    """Races one after another, of statements of whatever attempts."""

    ids: Bundle[str] = Bundle("ids")

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self.arena = arena
        arena.clear()

    @rule(target=ids, kind=st.sampled_from(["told", "streamed", "line"]), stage=st.sampled_from(STAGES))
    def add(self, kind: str, stage: str) -> str:
        [job_id] = self.arena.add([kind], stage)
        self.arena.let_time_pass(job_id, stage)
        return job_id

    @rule(
        job_id=ids,
        names=st.tuples(*[st.sampled_from(sorted(ACTS))] * 2),
        behind=st.sampled_from([(0, 0), (0, 0), (0, 1), (1, 0)]),
        held=st.booleans(),
    )
    def race(self, job_id: str, names: tuple[str, str], behind: tuple[int, int], held: bool) -> None:
        self.arena.race(job_id, names, behind, held=held)

    @invariant()
    def all_is_right(self) -> None:
        self.arena.check_all()


def test_whatever_the_races_before_the_rows_stay_right(arena: Arena) -> None:
    run_state_machine_as_test(
        lambda: RaceMachine(arena),  # type: ignore[arg-type]  # a factory will do
        settings=settings(
            max_examples=8,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # a race that is lost once need not be lost again: there is nothing to shrink
        ),
    )
