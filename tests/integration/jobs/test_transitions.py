"""The statements move jobs as `state.TRANSITIONS` says, in whatever order they come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from headrace.jobs.records import ClaimedJob, NewJob
from headrace.jobs.sql.accept import insert_jobs
from headrace.jobs.sql.run import extend_leases
from headrace.jobs.state import TRANSITIONS, State
from headrace.stores.database import Database, execute
from tests.integration.job_rows import RESPONSE, SPENT, Jobs, Owner, end_of, new_job, segment

FINAL = [state for state in State if state.is_final]

# -- every statement in every state -----------------------------------------------------------------------------------


async def brought_to(jobs: Jobs, state: State) -> ClaimedJob:
    """Return an attempt of a job that is in this state now: its only one, or for a queued job its last."""
    job = await jobs.run()
    if state.is_final:
        await jobs.finish(end_of(job, state))
    elif state is State.QUEUED:
        await jobs.retry(job)
    return job


async def _lost(jobs: Jobs, job: ClaimedJob, *, max_lost: int, cancel: bool) -> None:
    if cancel:
        await jobs.set(job.id, "cancel_requested_at = now()")
    if await jobs.state(job.id) is State.RUNNING:
        await jobs.lose(job.id)
    await jobs.rescue(max_lost=max_lost)


async def _expired(jobs: Jobs, job: ClaimedJob) -> None:
    await jobs.set(job.id, "deadline_at = now()")
    await jobs.expire()


async def _resent(jobs: Jobs, job: ClaimedJob) -> None:
    await jobs.resend(job.tier)


def _finished(state: State) -> Callable[[Jobs, ClaimedJob], Awaitable[object]]:
    return lambda jobs, job: jobs.finish(end_of(job, state))


STATEMENTS: dict[str, Callable[[Jobs, ClaimedJob], Awaitable[object]]] = {
    "claim": lambda jobs, job: jobs.claim(job.id),
    "insert again": lambda jobs, job: insert_jobs(jobs.database, [new_job(jobs.owner, id=job.id)]),
    "heartbeat": lambda jobs, job: extend_leases(jobs.database, [(job.id, job.attempt)], lease_seconds=9),
    "retry": lambda jobs, job: jobs.retry(job),
    "cancel": lambda jobs, job: jobs.cancel(job.id),
    "delete": lambda jobs, job: jobs.delete(job.id),
    "rescue": lambda jobs, job: _lost(jobs, job, max_lost=9, cancel=False),
    "rescue of a cancelled job": lambda jobs, job: _lost(jobs, job, max_lost=9, cancel=True),
    "rescue of a poisonous job": lambda jobs, job: _lost(jobs, job, max_lost=1, cancel=False),
    "expire": _expired,
    "resend": _resent,
    **{f"finish as {state}": _finished(state) for state in FINAL},
}


async def test_the_statements_can_do_what_transitions_says_and_nothing_else(jobs: Jobs) -> None:
    seen: dict[State, set[State]] = {state: set() for state in State}
    for before in State:
        for statement in STATEMENTS.values():
            job = await brought_to(jobs, before)
            assert await jobs.state(job.id) is before
            await statement(jobs, job)
            after = await jobs.state(job.id)
            if after is not before:
                seen[before].add(after)
            await execute(jobs.database.durable, "DELETE FROM jobs")
    assert seen == TRANSITIONS


# -- any order of statements ------------------------------------------------------------------------------------------

MAX_LOST = 2


@dataclass
class Model:
    """The expected state of a job."""

    new: NewJob
    state: State = State.QUEUED
    attempt: int = 0
    retries: int = 0
    lost: int = 0
    due: bool = True
    late: bool = False
    dead: bool = False
    cancelled: bool = False
    deleted: bool = False
    deltas: int = 0
    result: bool = False
    usage: dict[int, bool] = field(default_factory=dict)

    def claimed(self, behind: int) -> ClaimedJob:
        """Return the attempt that is this many behind the last, as its worker knows it."""
        new = self.new
        return ClaimedJob(
            id=new.id,
            attempt=self.attempt - behind,
            account_id=new.account_id,
            key_id=new.key_id,
            model=new.model,
            request=new.request,
            background=new.background,
            streamed=new.streamed,
            origin=None,
            tier=new.tier,
            route=0,
            retries=self.retries,
            created=0,
            seconds_left=1,
        )

    def held_by(self, behind: int) -> bool:
        """Return whether that attempt may still write."""
        return self.state is State.RUNNING and behind == 0

    def end(self, state: State) -> None:
        """Take the job to its end."""
        self.state, self.dead = state, False
        self.result = state is State.COMPLETED and not self.deleted

    def put_back(self) -> None:
        """Take the job back to the queue."""
        self.state, self.dead, self.due = State.QUEUED, False, True


BEHIND = st.sampled_from([0, 0, 0, 0, 1, -1])


class JobMachine(RuleBasedStateMachine):
    """Statements in any order on a few jobs, beside a model of each."""

    ids: Bundle[str] = Bundle("ids")

    def __init__(self, runner: asyncio.Runner, database: Database, owner: Owner, stranger: Owner) -> None:
        super().__init__()
        self.runner = runner
        self.jobs = Jobs(database, owner)
        self.stranger = stranger
        self.models: dict[str, Model] = {}
        self.seen: dict[str, State] = {}
        self.run(execute(database.durable, "DELETE FROM jobs"))
        self.run(execute(database.durable, "DELETE FROM usage"))

    def run(self, awaitable: Any) -> Any:
        return self.runner.run(awaitable)

    @rule(target=ids, background=st.booleans(), streamed=st.booleans())
    def insert(self, background: bool, streamed: bool) -> str:
        new = new_job(self.jobs.owner, background=background, streamed=streamed)
        self.run(insert_jobs(self.jobs.database, [new]))
        self.models[new.id] = Model(new)
        return new.id

    @rule(job_id=ids)
    def insert_again(self, job_id: str) -> None:
        self.run(insert_jobs(self.jobs.database, [self.models[job_id].new]))

    @rule(job_ids=st.lists(ids, min_size=1, max_size=4))
    def claim(self, job_ids: list[str]) -> None:
        claimed = self.run(self.jobs.claim(*job_ids))
        takable = {
            model.new.id: model
            for model in map(self.models.__getitem__, job_ids)
            if model.state is State.QUEUED and model.due and not model.late
        }
        assert {(job.id, job.attempt) for job in claimed} == {
            (job_id, model.attempt + 1) for job_id, model in takable.items()
        }
        for model in takable.values():
            model.state, model.deltas = State.RUNNING, 0
            model.attempt += 1

    @rule(job_id=ids, behind=BEHIND)
    def heartbeat(self, job_id: str, behind: int) -> None:
        model = self.models[job_id]
        attempt = model.attempt - behind
        stop = self.run(extend_leases(self.jobs.database, [(job_id, attempt)], lease_seconds=60))
        if not model.held_by(behind):
            assert stop == [(job_id, attempt, True)]
        else:
            assert stop == ([(job_id, attempt, False)] if model.cancelled else [])
            model.dead = False

    @rule(job_id=ids, behind=BEHIND, count=st.integers(1, 3))
    def append(self, job_id: str, behind: int, count: int) -> None:
        model = self.models[job_id]
        first = model.deltas + 1
        self.run(self.jobs.append(segment(model.claimed(behind), first, first + count - 1)))
        if model.held_by(behind) and not model.deleted:
            model.deltas += count

    @rule(job_id=ids, behind=BEHIND, state=st.sampled_from(FINAL), last=st.booleans(), spent=st.booleans())
    def finish(self, job_id: str, behind: int, state: State, last: bool, spent: bool) -> None:
        model = self.models[job_id]
        job = model.claimed(behind)
        tail = segment(job, model.deltas + 1, model.deltas + 1) if last else None
        ended = end_of(job, state, segment=tail, delta_count=model.deltas + last, spent=SPENT if spent else None)
        assert self.run(self.jobs.finish(ended)) == [model.held_by(behind)]
        if model.held_by(behind):
            model.end(state)
            if last and not model.deleted:
                model.deltas += 1
            if spent:
                model.usage[model.attempt] = False

    @rule(job_id=ids, behind=BEHIND, delayed=st.booleans(), spent=st.booleans())
    def retry(self, job_id: str, behind: int, delayed: bool, spent: bool) -> None:
        model = self.models[job_id]
        held, spending = model.held_by(behind), SPENT if spent else None
        state = self.run(self.jobs.retry(model.claimed(behind), delay_seconds=600 if delayed else 0, spent=spending))
        if not held:
            assert state is None
            return
        if model.cancelled:
            model.end(State.CANCELLED)
        else:
            model.put_back()
            model.due = not delayed
        assert state is model.state
        model.deltas = 0
        model.retries += 1
        if spent:
            model.usage[model.attempt] = True

    @rule(job_id=ids, own=st.booleans())
    def cancel(self, job_id: str, own: bool) -> None:
        model = self.models[job_id]
        moved = self.run(self.jobs.cancel(job_id, None if own else self.stranger))
        if not own or model.deleted:
            assert moved is None
            return
        if not model.state.is_final:
            model.cancelled = True
        if model.state is State.QUEUED:
            model.end(State.CANCELLED)
        assert moved.state is model.state

    @rule(job_id=ids, own=st.booleans())
    def delete(self, job_id: str, own: bool) -> None:
        model = self.models[job_id]
        assert self.run(self.jobs.delete(job_id, None if own else self.stranger)) == (own and not model.deleted)
        if own:
            model.deleted, model.result, model.deltas = True, False, 0

    @rule(job_id=ids)
    def worker_dies(self, job_id: str) -> None:
        model = self.models[job_id]
        if model.state is State.RUNNING:
            self.run(self.jobs.lose(job_id))
            model.dead = True

    @rule(job_id=ids)
    def deadline_passes(self, job_id: str) -> None:
        self.run(self.jobs.set(job_id, "deadline_at = now()"))
        self.models[job_id].late = True

    @rule(job_id=ids)
    def delay_passes(self, job_id: str) -> None:
        self.run(self.jobs.set(job_id, "scheduled_at = least(scheduled_at, now()), sent_at = least(sent_at, now())"))
        self.models[job_id].due = True

    @rule()
    def rescue(self) -> None:
        expected = {}
        for job_id, model in self.models.items():
            if not model.dead:
                continue
            model.lost += 1
            begun = model.new.streamed and not model.new.background and model.deltas > 0
            if model.cancelled:
                model.end(State.CANCELLED)
            elif model.lost >= MAX_LOST or begun:
                model.end(State.FAILED)
            else:
                model.put_back()
                model.deltas = 0
            expected[job_id] = model.state
        moved = self.run(self.jobs.rescue(max_lost=MAX_LOST))
        assert {job.id: job.state for job in moved} == expected

    @rule()
    def expire(self) -> None:
        late = [model for model in self.models.values() if model.state is State.QUEUED and model.late]
        for model in late:
            model.end(State.EXPIRED)
        assert {job.id for job in self.run(self.jobs.expire())} == {model.new.id for model in late}

    @rule()
    def resend(self) -> None:
        sent = self.run(self.jobs.resend())
        waiting = {model.new.id for model in self.models.values() if model.state is State.QUEUED and model.due}
        assert {job.id for job in sent} == waiting

    @invariant()
    def the_rows_are_what_the_model_says(self) -> None:
        rows = self.run(
            execute(
                self.jobs.database.durable,
                """
                SELECT id, state, attempt, lost, response, cancel_requested_at IS NOT NULL AS cancelled,
                       (SELECT coalesce(sum(last_seq - first_seq + 1), 0) FROM job_deltas WHERE job_id = id) AS deltas,
                       (SELECT coalesce(jsonb_object_agg(usage.attempt, kind = 'discarded'), '{}')
                        FROM usage WHERE job_id = id) AS usage
                FROM jobs
                """,
            )
        )
        assert len(rows) == len(self.models)
        for row in rows:
            model, before, state = self.models[row.id], self.seen.get(row.id, State.QUEUED), State(row.state)
            assert state is before or state in TRANSITIONS[before]
            self.seen[row.id] = state
            assert (state, row.attempt, row.lost) == (model.state, model.attempt, model.lost)
            assert row.cancelled == model.cancelled
            assert row.response == (RESPONSE if model.result else None)
            assert row.deltas == model.deltas
            assert {int(attempt): discarded for attempt, discarded in row.usage.items()} == model.usage

    @invariant()
    def the_ledger_sums_to_what_finished_jobs_spent(self) -> None:
        [sums] = self.run(
            execute(
                self.jobs.database.durable,
                """
                SELECT coalesce(sum(prompt_tokens) FILTER (WHERE kind = 'counted'), 0) AS counted,
                       coalesce(sum(prompt_tokens) FILTER (WHERE kind = 'discarded'), 0) AS discarded,
                       count(*) FILTER (WHERE kind = 'counted' AND state IN ('queued', 'running')) AS too_early
                FROM usage JOIN jobs ON jobs.id = job_id
                """,
            )
        )
        spent = [discarded for model in self.models.values() for discarded in model.usage.values()]
        assert sums.counted == spent.count(False) * SPENT.tokens.prompt_tokens
        assert sums.discarded == spent.count(True) * SPENT.tokens.prompt_tokens
        assert sums.too_early == 0


@pytest.fixture
def runner() -> Any:
    with asyncio.Runner() as runner:
        yield runner


def test_whatever_the_order_a_job_has_one_end_and_is_counted_once(
    runner: asyncio.Runner, database_url: str, owner: Owner, stranger: Owner
) -> None:
    database = Database.connect(database_url, connections=2)
    try:
        run_state_machine_as_test(
            lambda: JobMachine(runner, database, owner, stranger),  # type: ignore[arg-type]  # a factory will do
            settings=settings(
                max_examples=60,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        runner.run(database.close())
