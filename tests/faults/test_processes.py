"""Processes that die or freeze: nothing accepted is lost, nothing counted twice, and readers notice a pause at most."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator

import httpx
import psycopg
import pytest
from psycopg.rows import DictRow

from headrace.queue import JobQueue
from headrace.stores.redis import connect_redis
from tests.e2e import batches
from tests.e2e.jobs import FINAL, chat, completed, ended, get, job_of, refused, submit
from tests.e2e.streams import Event, EventStream, outline, text_of
from tests.fakes.provider import DONE, Behaviour, Gate, Provider, answer, chunk, hang, settled, stream
from tests.service import (
    BOOTSTRAP_KEY,
    NAMESPACE,
    Service,
    connect,
    free_port,
    looking_at_rows,
    second_api,
)
from tests.waiting import eventually, until
from tests.wakeups import leave_unsent


@pytest.fixture
async def cluster_client(cluster: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(cluster, BOOTSTRAP_KEY) as client:
        yield client


@pytest.fixture
async def rows(cluster: Service) -> AsyncIterator[psycopg.AsyncConnection[DictRow]]:
    async with looking_at_rows(cluster.stores) as connection:
        yield connection


def slow_words(count: int, seconds: float) -> Behaviour:
    script: list[object] = [chunk({"role": "assistant", "content": ""})]
    for number in range(count):
        script += [chunk(f"w{number} "), seconds]
    return stream(*script, chunk(finish="stop"), DONE)


async def follow(service: Service, job_id: str) -> list[Event]:
    """Read a job's events to the end, reconnecting by the last id whenever the connection is lost."""
    events: list[Event] = []

    async def read() -> bool:
        last = next((event.id for event in reversed(events) if event.id is not None), None)
        try:
            async with (
                connect(service, BOOTSTRAP_KEY) as client,
                client.stream(
                    "GET", f"/jobs/{job_id}/events", headers={"last-event-id": last} if last else {}
                ) as response,
            ):
                assert response.status_code < 500, await response.aread()
                assert response.status_code == 200, await response.aread()
                async for event in EventStream(response):
                    events.append(event)  # noqa: PERF401  (what came before a loss counts)
        except httpx.TransportError:
            return False
        return bool(events) and str(events[-1].name).removeprefix("job.") in FINAL

    await eventually(read, f"the last event of {job_id}")
    return events


def last_attempt(events: list[Event]) -> list[Event]:
    """Return the events from the last start on."""
    starts = [position for position, event in enumerate(events) if event.name == "job.started"]
    return events[starts[-1] :]


def check(events: list[Event], job: dict[str, object]) -> None:
    """Check that a reader got each event of the last attempt once and in order, and that they fold to the result."""
    last = last_attempt(events)
    deltas = [event for event in last if event.name == "job.delta"]
    assert [event.id for event in deltas] == [f"{job['attempt']}-{number}" for number in range(1, len(deltas) + 1)]
    assert job["status"] == "completed"
    assert text_of(event.data for event in deltas) == job["result"]["choices"][0]["message"]["content"]  # type: ignore[index]
    assert len({event.id for event in events if event.id}) == len([event for event in events if event.id])


async def test_a_worker_killed_in_the_middle_of_a_stream_is_replaced_by_another(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str,
    rows: psycopg.AsyncConnection[DictRow],
) -> None:  # fmt: skip
    gate = Gate()
    provider.script(model, stream(chunk({"role": "assistant", "content": "lost "}), gate), slow_words(30, 0.02))
    job_id = await submit(cluster_client, model)
    watching = asyncio.create_task(follow(cluster, job_id))
    await settled(gate.reached)
    cluster.processes["worker"].kill()
    cluster.launch("worker-2")
    job = await completed(cluster_client, job_id)
    events = await watching
    assert job["attempt"] == 2
    assert "job.retrying" in [event.name for event in events]
    check(events, job)
    check(await follow(cluster, job_id), job)
    assert last_attempt(await follow(cluster, job_id)) == last_attempt(events)
    usage = await (
        await rows.execute("SELECT * FROM usage WHERE job_id = %s AND kind = 'counted'", [job_id])
    ).fetchall()
    assert len(usage) == 1
    assert len(provider.calls_for(model)) == 2


async def test_a_background_response_goes_on_in_a_new_item_when_its_worker_is_killed(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    found = stream(chunk("found "), chunk("again"), chunk(finish="stop"), DONE)
    provider.script(model, stream(chunk("lost "), Gate()), found)
    body = {"model": model, "input": "hello there", "background": True, "stream": True}
    async with cluster_client.stream("POST", "/responses", json=body) as response:
        live = EventStream(response)
        events = await live.up_to("response.output_text.delta")
        cluster.processes["worker"].kill()
        cluster.launch("worker-2")
        events += await live.rest()
    assert [event.data["sequence_number"] for event in events] == list(range(len(events)))
    assert [event.name for event in events[3:]] == [
        *("response.output_item.added", "response.content_part.added", "response.output_text.delta"),
        *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
        *("response.output_item.added", "response.content_part.added"),
        *("response.output_text.delta", "response.output_text.delta"),
        *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
        "response.completed",
    ]
    lost, kept = (event.data for event in events if event.name == "response.output_item.done")
    assert (lost["output_index"], lost["item"]["status"], lost["item"]["content"][0]["text"]) == (
        0,
        "incomplete",
        "lost ",
    )
    assert (kept["output_index"], kept["item"]["status"]) == (1, "completed")
    assert kept["item"]["content"][0]["text"] == "found again"
    assert events[-1].data["response"]["output"] == [kept["item"]]
    path = f"/responses/{events[-1].data['response']['id']}"
    assert (await cluster_client.get(path)).json() == events[-1].data["response"]
    blocks = (await cluster_client.get(path, params={"stream": True})).content.split(b"\n\n")
    assert [json.loads(block.partition(b"data: ")[2]) for block in blocks[:-1]] == [event.data for event in events]
    for number in range(len(events)):
        later = await cluster_client.get(path, params={"stream": True, "starting_after": number})
        assert later.content.split(b"\n\n") == blocks[number + 1 :]


async def test_many_jobs_of_a_worker_that_is_killed_all_end_once(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str,
    rows: psycopg.AsyncConnection[DictRow],
) -> None:  # fmt: skip
    provider.always(model, slow_words(20, 0.05))
    ids = await asyncio.gather(*[submit(cluster_client, model, str(number)) for number in range(40)])
    await provider.call(model, 20)
    cluster.processes["worker"].kill()
    cluster.launch("worker-2")
    jobs = await asyncio.gather(*[completed(cluster_client, job_id) for job_id in ids])
    text = "".join(f"w{number} " for number in range(20))
    assert {job["result"]["choices"][0]["message"]["content"] for job in jobs} == {text}
    cursor = await rows.execute("SELECT job_id FROM usage WHERE model = %s AND kind = 'counted'", [model])
    assert sorted(row["job_id"] for row in await cursor.fetchall()) == sorted(ids)


async def kill_before_first_delta(cluster: Service, rows: psycopg.AsyncConnection[DictRow]) -> None:
    """Kill the worker while it waits for the lock of `job_deltas`, and take its statement from Postgres."""
    waiting = "FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%INSERT INTO job_deltas%'"

    async def waits() -> bool:
        return (await rows.execute(f"SELECT {waiting}")).rowcount > 0

    await eventually(waits, "the worker to write the first delta")
    cluster.processes["worker"].kill()
    await rows.execute(f"SELECT pg_terminate_backend(pid) {waiting}")


async def test_a_foreground_stream_whose_worker_is_killed_ends_with_an_error_rather_than_repeat_itself(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str,
    rows: psycopg.AsyncConnection[DictRow],
) -> None:  # fmt: skip
    async def is_written() -> bool:
        return (await rows.execute("SELECT FROM job_deltas WHERE job_id = %s", [job_id])).rowcount > 0

    gate = Gate()
    provider.script(model, stream(chunk({"role": "assistant", "content": "half "}), gate))
    async with cluster_client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        events = EventStream(response)
        job_id = (await anext(events)).data["id"].replace("chatcmpl-", "job_")
        await eventually(is_written, "Postgres to have the delta")
        cluster.processes["worker"].kill()
        cluster.launch("worker-2")
        rest = [event.data for event in await events.rest() if event.data != "[DONE]"]
    assert [item for item in rest if "error" in item] == rest[-1:]
    assert rest[-1]["error"]["code"] == "worker_lost"
    job = await ended(cluster_client, job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "worker_lost")
    assert job["result"] is None


async def test_a_foreground_stream_whose_first_delta_is_lost_ends_with_the_same_error(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str,
    rows: psycopg.AsyncConnection[DictRow],
) -> None:  # fmt: skip
    """The client of a chat stream has read a delta that Postgres never gets, so its job would start over."""
    provider.script(model, stream(chunk({"role": "assistant", "content": "half "}), Gate()))
    async with looking_at_rows(cluster.stores) as second:
        await second.execute("BEGIN; LOCK TABLE job_deltas IN EXCLUSIVE MODE")
        async with cluster_client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
            events = EventStream(response)
            job_id = (await anext(events)).data["id"].replace("chatcmpl-", "job_")
            await kill_before_first_delta(cluster, rows)
            await second.execute("ROLLBACK")
            cluster.launch("worker-2")
            rest = [event.data for event in await events.rest()]
    assert [error["error"]["code"] for error in rest] == ["worker_lost"]
    assert (await ended(cluster_client, job_id))["status"] == "cancelled"


async def test_a_foreground_stream_whose_job_is_deleted_ends_with_an_error(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    """Its worker is frozen, so the job has not ended when its content is deleted."""
    provider.script(model, stream(chunk({"role": "assistant", "content": "half "}), Gate()))
    worker = cluster.processes["worker"]
    async with cluster_client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        events = EventStream(response)
        job_id = (await anext(events)).data["id"].replace("chatcmpl-", "job_")
        worker.signal(signal.SIGSTOP)
        try:
            assert (await cluster_client.delete(f"/jobs/{job_id}")).status_code == 200
            [*_, last] = [event.data for event in await events.rest()]
        finally:
            worker.signal(signal.SIGCONT)
    assert last["error"]["message"]


async def test_a_response_whose_client_has_read_nothing_starts_over(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str,
    rows: psycopg.AsyncConnection[DictRow],
) -> None:  # fmt: skip
    """Postgres gets no delta of the first attempt: so the stream's client must not get one either."""
    found = stream(chunk("found"), chunk(finish="stop"), DONE)
    gate = Gate()
    provider.script(model, stream(chunk("lost"), gate), found)
    body = {"model": model, "input": "hello there", "stream": True}

    async def read() -> list[Event]:
        headers = {"Idempotency-Key": model}
        async with cluster_client.stream("POST", "/responses", json=body, headers=headers) as response:
            return await EventStream(response).rest()

    async with looking_at_rows(cluster.stores) as second:
        async with second.transaction():
            await second.execute("LOCK TABLE job_deltas IN EXCLUSIVE MODE")
            reading = asyncio.create_task(read())
            await settled(gate.reached)
            await kill_before_first_delta(cluster, rows)
        cluster.launch("worker-2")
        events = await reading
    assert [event.data["sequence_number"] for event in events] == list(range(len(events)))
    assert [event.data["delta"] for event in events if event.name == "response.output_text.delta"] == ["found"]
    assert events[-1].name == "response.completed"


async def test_a_stream_that_its_client_reads_fails_when_its_worker_is_told_to_stop(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    cluster.processes["worker"].terminate()
    worker = cluster.launch("worker", HEADRACE_DRAIN_SECONDS="0")
    provider.script(model, stream(chunk("half "), Gate()))
    body, headers = {"model": model, "input": "hello there", "stream": True}, {"Idempotency-Key": model}
    async with cluster_client.stream("POST", "/responses", json=body, headers=headers) as response:
        events = EventStream(response)
        read = await events.up_to("response.output_text.delta")
        assert await asyncio.to_thread(worker.terminate) == 0
        read += await events.rest()
    assert read[-1].name == "response.failed"
    assert (await job_of(cluster_client, model))["error"]["code"] == "worker_lost"
    async with cluster_client.stream("POST", "/responses", json=body, headers=headers) as response:
        again = await EventStream(response).rest()
    assert [event.data for event in again] == [event.data for event in read]


async def test_a_request_that_waits_is_answered_by_the_next_worker(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, answer("lost", hold=gate), answer("At last."))
    request = asyncio.create_task(cluster_client.post("/chat/completions", json=chat(model)))
    await settled(gate.reached)
    cluster.processes["worker"].kill()
    cluster.launch("worker-2")
    assert (await request).json()["choices"][0]["message"]["content"] == "At last."


async def test_a_worker_that_froze_past_its_lease_can_write_nothing_more(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str,
    rows: psycopg.AsyncConnection[DictRow],
) -> None:  # fmt: skip
    gate = Gate()
    provider.script(model, answer("of the frozen one", hold=gate), answer("of the second one"))
    job_id = await submit(cluster_client, model)
    await settled(gate.reached)
    frozen = cluster.processes["worker"]
    frozen.signal(signal.SIGSTOP)
    try:
        cluster.launch("worker-2")
        job = await completed(cluster_client, job_id)
        assert job["result"]["choices"][0]["message"]["content"] == "of the second one"
        gate.release()
    finally:
        frozen.signal(signal.SIGCONT)
    # The thawed worker has something to do again, and so has seen that its lease is gone.
    cluster.processes["worker-2"].kill()
    await completed(cluster_client, await submit(cluster_client, f"{model}-next"))
    assert await get(cluster_client, job_id) == job
    usage = await (
        await rows.execute("SELECT * FROM usage WHERE job_id = %s AND kind = 'counted'", [job_id])
    ).fetchall()
    assert [row["attempt"] for row in usage] == [2]


async def test_a_worker_that_is_asked_to_stop_hands_its_jobs_back(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, answer("lost", hold=gate), answer("At last."))
    job_id = await submit(cluster_client, model)
    await settled(gate.reached)
    cluster.launch("worker-2")
    assert cluster.processes["worker"].terminate() == 0
    job = await completed(cluster_client, job_id)
    assert job["result"]["choices"][0]["message"]["content"] == "At last."


@pytest.mark.parametrize(
    ("first", "second", "exit_code"),
    [
        (signal.SIGTERM, signal.SIGTERM, 0),
        (signal.SIGINT, signal.SIGINT, 1),
        (signal.SIGTERM, signal.SIGINT, 0),
    ],
)
async def test_a_worker_that_is_told_twice_drains_no_longer(
    cluster: Service,
    cluster_client: httpx.AsyncClient,
    provider: Provider,
    model: str,
    first: signal.Signals,
    second: signal.Signals,
    exit_code: int,
) -> None:
    cluster.processes["worker"].terminate()
    worker = cluster.launch("worker", HEADRACE_DRAIN_SECONDS="3600")
    gate = Gate()
    provider.script(model, answer("lost", hold=gate), answer("At last."))
    job_id = await submit(cluster_client, model)
    await settled(gate.reached)
    cluster.launch("worker-2")
    before = worker.log.read_text().count("draining")
    worker.signal(first)
    await asyncio.to_thread(until, lambda: worker.log.read_text().count("draining") > before, "the draining")
    worker.signal(second)
    assert await asyncio.to_thread(worker.wait) == exit_code
    job = await completed(cluster_client, job_id)
    assert job["result"]["choices"][0]["message"]["content"] == "At last."
    assert job["attempts"][0]["status"] == "returned"


async def test_a_reader_reconnects_to_an_api_that_was_killed_and_misses_nothing(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, slow_words(60, 0.05))
    job_id = await submit(cluster_client, model)
    watching = asyncio.create_task(follow(cluster, job_id))
    await provider.call(model)
    cluster.processes["api"].kill()
    cluster.launch("api")
    events = await watching
    job = await completed(cluster_client, job_id)
    check(events, job)
    assert job["attempt"] == 1
    assert outline(events) == outline(await follow(cluster, job_id))


async def test_no_job_of_an_api_that_was_killed_stays_in_limbo(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, answer("Done.", hold=gate))
    request = asyncio.create_task(cluster_client.post("/chat/completions", json=chat(model)))
    await settled(gate.reached)
    cluster.processes["api"].kill()
    with pytest.raises(httpx.TransportError):
        await request
    cluster.launch("api")
    cluster.wait_until_ready()
    gate.release()
    job = await job_of(cluster_client, model)
    assert (await ended(cluster_client, job["id"]))["status"] in {"completed", "cancelled"}


async def test_jobs_that_were_accepted_just_before_the_api_was_killed_run(
    cluster: Service, cluster_client: httpx.AsyncClient, model: str
) -> None:
    accepted: list[str] = []

    async def keep_submitting() -> None:
        while True:
            accepted.append(await submit(cluster_client, model))

    submitting = [asyncio.create_task(keep_submitting()) for _ in range(8)]

    async def enough() -> bool:
        return len(accepted) >= 50

    await eventually(enough, "fifty jobs")
    cluster.processes["api"].kill()
    await asyncio.gather(*submitting, return_exceptions=True)
    cluster.launch("api")
    cluster.wait_until_ready()
    for job_id in accepted:
        await completed(cluster_client, job_id)


async def test_a_scheduler_that_was_killed_is_missed_only_until_the_next(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, answer("lost", hold=gate), answer("At last."))
    job_id = await submit(cluster_client, model)
    await settled(gate.reached)
    cluster.processes["scheduler"].kill()
    cluster.processes["worker"].kill()
    cluster.launch("worker-2")
    cluster.launch("scheduler-2")
    assert (await completed(cluster_client, job_id))["attempt"] == 2


async def test_a_wake_up_that_comes_many_times_runs_a_job_once(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, answer("Done.", hold=gate))
    job_id = await submit(cluster_client, model)
    await settled(gate.reached)
    redis = connect_redis(cluster.stores.redis_url, NAMESPACE)
    queue = JobQueue(redis, leave_unsent)
    for _ in range(5):
        queue.wake([job_id, job_id], tier="default")
    gate.release()
    job = await completed(cluster_client, job_id)
    queue.wake([job_id, "job_" + "0" * 32, "nonsense"], tier="default")
    await queue.close()
    await redis.aclose()
    # The wake-ups before this job's own have been looked at when it is done.
    await completed(cluster_client, await submit(cluster_client, f"{model}-next"))
    assert await get(cluster_client, job_id) == job
    assert job["attempt"] == 1
    assert len(provider.calls_for(model)) == 1


async def test_a_job_that_kills_every_worker_is_given_up(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.always(model, answer(hold=gate))
    job_id = await submit(cluster_client, model)
    for attempt in range(1, 4):
        await provider.call(model, attempt)
        cluster.processes["worker"].kill()
        cluster.launch("worker")
    job = await ended(cluster_client, job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "worker_lost")
    assert job["attempt"] == 3
    await completed(cluster_client, await submit(cluster_client, f"{model}-next"))


async def test_a_reader_may_reconnect_to_another_api(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    port = free_port()
    cluster.launch("api-2", HEADRACE_PORT=str(port))
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}/api/v1", headers=cluster_client.headers, timeout=60, verify=False
    ) as second:

        async def ready() -> bool:
            try:
                return (await second.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(ready, "the second API")
        provider.script(model, slow_words(40, 0.03))
        job_id = await submit(cluster_client, model)
        events: list[Event] = []
        while not events or events[-1].name != "job.completed":
            # A few events from the one, then a few from the other.
            client = second if len(events) % 2 else cluster_client
            headers = {"last-event-id": str(events[-1].id)} if events else {}
            async with client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as response:
                reader = EventStream(response)
                async for event in reader:
                    events.append(event)
                    if len(events) % 3 == 0:
                        break
        job = await completed(second, job_id)
        check(events, job)
        assert outline(events) == outline(await follow(cluster, job_id))


async def test_an_api_that_is_asked_to_stop_ends_its_streams_and_itself(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, stream(chunk({"role": "assistant", "content": "a"}), gate, chunk(finish="stop"), DONE))
    job_id = await submit(cluster_client, model)
    watching = asyncio.create_task(follow(cluster, job_id))
    await settled(gate.reached)
    # By itself, that is, and not by the SIGKILL that follows a while later.
    assert await asyncio.to_thread(cluster.processes["api"].terminate) in {0, -signal.SIGTERM}
    cluster.launch("api")
    gate.release()
    events = await watching
    check(events, await completed(cluster_client, job_id))


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_an_api_that_is_asked_to_stop_sends_those_who_still_wait_elsewhere(
    cluster: Service, cluster_client: httpx.AsyncClient, provider: Provider, model: str, streamed: bool
) -> None:
    gate = Gate()
    provider.always(model, answer("Here.", hold=gate))
    body = chat(model, stream=streamed)
    key = {"idempotency-key": model}
    async with second_api(cluster, BOOTSTRAP_KEY, HEADRACE_DRAIN_SECONDS="4") as leaving:
        waiting = asyncio.create_task(leaving.post("/chat/completions", json=body))
        returning = asyncio.create_task(leaving.post("/chat/completions", json=body, headers=key))
        await provider.call(model, 2)
        assert await asyncio.to_thread(cluster.processes["api-2"].terminate) in {0, -signal.SIGTERM}
        answers = await asyncio.gather(waiting, returning)
    for response in answers:
        if response.status_code == 200:  # its headers were sent before, so the stream has the error
            assert streamed
            assert "shutting down" in response.text
        else:
            refused(response, 503)
            assert response.headers["retry-after"] == "1"
    gate.release()
    again = await cluster_client.post("/chat/completions", json=body, headers=key)
    assert again.headers["idempotent-replayed"] == "true"
    assert "Here." in again.text
    states = sorted(job["status"] for job in (await cluster_client.get(f"/jobs?model={model}")).json()["data"])
    assert states == ["cancelled", "completed"], "a job whose client will not come back is cancelled"


@pytest.fixture
async def leaving(cluster: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a second API, which has much time to end."""
    async with second_api(cluster, BOOTSTRAP_KEY, HEADRACE_DRAIN_SECONDS="30") as client:
        yield client


async def told_to_stop(cluster: Service) -> None:
    """Tell the second API to end, and return once it knows."""
    process = cluster.processes["api-2"]
    count = process.log.read_text().count("Shutting down")
    process.signal(signal.SIGTERM)
    await asyncio.to_thread(
        until, lambda: process.log.read_text().count("Shutting down") > count, "the API to be shutting down"
    )


# At the end of a stream: the milliseconds before the next try, a few more with many subscribers.
RECONNECT = re.compile(r"(?:\A|\n)retry: 1\d\d\n\n\Z")


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_an_api_that_is_asked_to_stop_finishes_requests_that_wait_with_an_idempotency_key_too(
    cluster: Service, leaving: httpx.AsyncClient, provider: Provider, model: str, streamed: bool
) -> None:
    gate = Gate()
    provider.always(model, answer("Here.", hold=gate))
    body, key = chat(model, stream=streamed), {"idempotency-key": model}
    waiting = [
        asyncio.create_task(leaving.post("/chat/completions", json=body, headers=headers)) for headers in (key, key, {})
    ]
    await provider.call(model, 2)
    await told_to_stop(cluster)
    gate.release()
    for response in await asyncio.gather(*waiting):
        assert response.status_code == 200
        assert "Here." in response.text
        assert not streamed or response.text.endswith("data: [DONE]\n\n")


async def test_an_api_that_is_asked_to_stop_tells_who_reads_a_stored_completion_that_it_is_not_whole(
    cluster: Service, leaving: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, stream(chunk({"role": "assistant", "content": "a"}), gate, chunk(finish="stop"), DONE))
    job_id = await submit(leaving, model)
    path = f"/chat/completions/{job_id.replace('job_', 'chatcmpl-')}?stream=true"
    async with leaving.stream("GET", path) as response:
        events = EventStream(response)
        assert text_of([(await anext(events)).data]) == "a"
        await told_to_stop(cluster)
        (last,) = await events.rest()
    assert last.data["error"]["code"] == "service_unavailable"
    gate.release()


async def test_an_api_that_is_asked_to_stop_tells_readers_of_a_batch_to_come_back(
    cluster: Service, leaving: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.always(model, hang)
    batch = await batches.submit(leaving, batches.lines(model, 1))
    async with leaving.stream("GET", f"/batches/{batch['id']}/events") as response:
        texts = response.aiter_text()
        assert "batch.progress" in await anext(texts)
        await told_to_stop(cluster)
        rest = "".join([text async for text in texts])
    assert RECONNECT.search(rest)
    async with connect(cluster, BOOTSTRAP_KEY) as client:
        await client.post(f"/batches/{batch['id']}/cancel")


async def test_an_api_that_is_stopping_holds_no_new_reader(
    cluster: Service,
    leaving: httpx.AsyncClient,
    provider: Provider,
    model: str,
    rows: psycopg.AsyncConnection[DictRow],
) -> None:
    provider.always(model, hang)
    job_id = await submit(leaving, model)
    batch = await batches.submit(leaving, batches.lines(model, 1))
    # The API has not seen this key and has to look it up: until it can, requests with the key wait for authentication.
    key = {"authorization": f"Bearer {(await leaving.post('/api-keys', json={})).json()['key']}"}
    paths = [
        f"/jobs/{job_id}/events",
        f"/batches/{batch['id']}/events",
        f"/chat/completions/{job_id.replace('job_', 'chatcmpl-')}?stream=true",
        f"/jobs/{job_id}?wait=60",
    ]
    looks = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%previous_hash = %'"

    async def at_the_door() -> bool:
        return len(await (await rows.execute(looks)).fetchall()) == len(paths)

    async with await psycopg.AsyncConnection.connect(cluster.stores.database_url) as door:
        await door.execute("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE")
        asked = [asyncio.create_task(leaving.get(path, headers=key)) for path in paths]
        await eventually(at_the_door, "all of them to wait")
        await told_to_stop(cluster)
    job_events, batch_events, stored, waited = await asyncio.gather(*asked)
    assert RECONNECT.search(job_events.text)
    assert RECONNECT.search(batch_events.text)
    assert "shutting down" in stored.text
    assert waited.json()["status"] in {"queued", "running"}
    async with connect(cluster, BOOTSTRAP_KEY) as client:
        await client.post(f"/jobs/{job_id}/cancel")
        await client.post(f"/batches/{batch['id']}/cancel")
