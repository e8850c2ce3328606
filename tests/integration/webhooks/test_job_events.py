"""The events of a job's end: ours for every job, and OpenAI's for a job of the Responses API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import openai
import orjson
import pytest

from headrace.batches.queries import fail_batch
from headrace.jobs.state import State
from headrace.stores.connections import Row
from headrace.stores.database import execute
from headrace.webhooks import queries
from headrace.webhooks.signing import derive_secret
from scheduler.webhooks import WebhookSender
from tests.fakes.receiver import Receiver, running_receiver
from tests.integration.batches.test_queries import create
from tests.integration.job_rows import Jobs, end_of

KEY = "tests-secret-key-tests-secret-key"
URL = "http://127.0.0.1:9/"

End = Callable[[Jobs, str], Awaitable[None]]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


@pytest.fixture
async def sender(jobs: Jobs) -> AsyncIterator[WebhookSender]:
    await execute(jobs.database.durable, "TRUNCATE webhook_secrets, webhooks_gone")
    await queries.ensure_secret(jobs.database, jobs.owner.account_id)
    sender = WebhookSender(jobs.database, secret_key=KEY, allow_private=True)
    yield sender
    await sender.close()


def response(job_id: str, status: str) -> str:
    head = {"id": "resp_" + job_id[4:], "object": "response", "created_at": 1_800_000_000, "status": status}
    return orjson.dumps({**head, "output": [{"status": "failed", "text": "x" * 10_000}]}).decode()


def finished(state: State, status: str | None = None) -> End:
    """Return how a worker ends a job."""

    async def end(jobs: Jobs, job_id: str) -> None:
        [job] = await jobs.claim(job_id)
        changes: dict[str, Any] = {} if status is None else {"response": response(job_id, status)}
        assert await jobs.finish(end_of(job, state, **changes)) == [True]

    return end


async def put_back_after_cancel(jobs: Jobs, job_id: str) -> None:
    [job] = await jobs.claim(job_id)
    await jobs.cancel(job_id)
    assert await jobs.retry(job) is State.CANCELLED


async def lost(jobs: Jobs, job_id: str) -> None:
    await jobs.claim(job_id)
    await jobs.lose(job_id)
    await jobs.rescue(max_lost=1)


async def lost_after_cancel(jobs: Jobs, job_id: str) -> None:
    await jobs.claim(job_id)
    await jobs.cancel(job_id)
    await jobs.lose(job_id)
    await jobs.rescue()


async def expired_in_the_queue(jobs: Jobs, job_id: str) -> None:
    await jobs.set(job_id, "deadline_at = now()")
    await jobs.expire()


async def cancelled_in_the_queue(jobs: Jobs, job_id: str) -> None:
    await jobs.cancel(job_id)


ENDS = [
    pytest.param(finished(State.COMPLETED, "completed"), "completed", "completed", id="completed"),
    pytest.param(finished(State.COMPLETED, "incomplete"), "completed", "incomplete", id="incomplete"),
    pytest.param(finished(State.FAILED), "failed", "failed", id="failed"),
    pytest.param(finished(State.CANCELLED), "cancelled", "cancelled", id="cancelled"),
    pytest.param(finished(State.EXPIRED), "expired", "failed", id="expired"),
    pytest.param(put_back_after_cancel, "cancelled", "cancelled", id="put back after a cancel"),
    pytest.param(lost, "failed", "failed", id="lost"),
    pytest.param(lost_after_cancel, "cancelled", "cancelled", id="lost after a cancel"),
    pytest.param(expired_in_the_queue, "expired", "failed", id="expired in the queue"),
    pytest.param(cancelled_in_the_queue, "cancelled", "cancelled", id="cancelled in the queue"),
]


async def deliveries(jobs: Jobs, job_id: str) -> list[Row]:
    return list(await queries.list_deliveries(jobs.database, job_id, jobs.owner.account_id))


@pytest.mark.parametrize(("end", "state", "status"), ENDS)
async def test_a_response_that_ends_has_two_events(jobs: Jobs, end: End, state: str, status: str) -> None:
    job_id = await jobs.submit(format="responses", webhook=URL)
    assert await deliveries(jobs, job_id) == []
    await end(jobs, job_id)
    ours, openais = await deliveries(jobs, job_id)
    assert (ours.event, openais.event) == (f"job.{state}", f"response.{status}")
    assert ours.id != openais.id


@pytest.mark.parametrize(("end", "state"), [pytest.param(*end.values[:2], id=end.id) for end in ENDS])
async def test_a_chat_job_that_ends_has_one_event(jobs: Jobs, end: End, state: str) -> None:
    job_id = await jobs.submit(webhook=URL)
    await end(jobs, job_id)
    assert [row.event for row in await deliveries(jobs, job_id)] == [f"job.{state}"]


async def test_a_response_without_a_webhook_has_no_event(jobs: Jobs) -> None:
    job_id = await jobs.submit(format="responses")
    await finished(State.COMPLETED, "completed")(jobs, job_id)
    assert await deliveries(jobs, job_id) == []


async def test_a_response_that_is_erased_while_it_runs_has_its_events(jobs: Jobs) -> None:
    job = await jobs.run(format="responses", webhook=URL)
    await jobs.delete(job.id)
    await jobs.finish(end_of(job, response=response(job.id, "completed")))
    assert [row.event for row in await deliveries(jobs, job.id)] == ["job.completed", "response.completed"]


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed", "cancelled"])
async def test_openais_client_reads_the_events_of_a_response(
    jobs: Jobs, sender: WebhookSender, receiver: Receiver, status: str
) -> None:
    job_id = await jobs.submit(format="responses", webhook=receiver.url)
    ended = State.COMPLETED if status == "incomplete" else State(status)
    await finished(ended, status if ended is State.COMPLETED else None)(jobs, job_id)
    assert await sender.send_due() == 2
    [row] = await queries.list_secrets(jobs.database, jobs.owner.account_id)
    client = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9/v1", webhook_secret=derive_secret(KEY, row.id))
    [message] = [each for each in receiver.messages if orjson.loads(each.body)["type"].startswith("response.")]
    event = client.webhooks.unwrap(message.body, message.headers)
    assert type(event).__name__ == f"Response{status.capitalize()}WebhookEvent"
    assert event.model_dump() == {
        "id": message.id,
        "object": "event",
        "type": f"response.{status}",
        "created_at": event.created_at,
        "data": {"id": "resp_" + job_id[4:]},
    }


@pytest.mark.parametrize("of", ["job", "batch"])
async def test_the_receiver_gets_the_trace_context_of_the_request(
    jobs: Jobs, sender: WebhookSender, receiver: Receiver, of: str
) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for context, sent_on in (
        (f"{parent}\na=1,b=2", {"traceparent": parent, "tracestate": "a=1,b=2"}),
        (parent, {"traceparent": parent}),
        (None, {}),
    ):
        if of == "job":
            job_id = await jobs.submit(webhook=receiver.url, trace_context=context)
            await finished(State.COMPLETED)(jobs, job_id)
        else:
            batch_id = await create(jobs.database, jobs.owner, webhook=receiver.url, trace_context=context)
            assert await fail_batch(jobs.database, batch_id, [])
        await sender.send_due()
        headers = receiver.messages[-1].headers
        assert {name: value for name, value in headers.items() if name.startswith("trace")} == sent_on
