"""Stores that lose everything or are unavailable for a while. Postgres is the truth; Redis may lose all that it has."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import psycopg
import pytest
from redis import Redis

from headrace.dev.store import EmbeddedStore
from tests.e2e.jobs import chat, completed, ended, refused, submit
from tests.e2e.streams import EventStream, chunks_of, text_of
from tests.fakes.provider import DONE, Gate, Provider, answer, chunk, settled, stream
from tests.service import BOOTSTRAP_KEY, Service, Stores, connect, embedded_stores, free_port, running_service
from tests.waiting import eventually, until

LEASE_SECONDS = 10


@pytest.fixture(scope="module")
def own_stores() -> Iterator[Stores]:
    """Stores that only this module breaks."""
    with embedded_stores() as stores:
        yield stores


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, own_stores: Stores, config: str) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("broken"), own_stores, config) as service:
        yield service


@pytest.fixture
async def broken_client(broken: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service that works, whatever the test before did to it."""
    async with connect(broken, BOOTSTRAP_KEY) as client:
        broken.wait_until_ready()
        yield client


def kill(store: EmbeddedStore) -> None:
    """End a store with SIGKILL; `start` brings it back at the same place."""
    assert store.pid is not None
    os.kill(store.pid, signal.SIGKILL)
    store.stop()


def leased(service: Service, model: str) -> int:
    with psycopg.connect(service.stores.database_url) as connection:
        query = "SELECT count(*) FROM jobs WHERE model = %s AND attempt = 1 AND lease_until > now()"
        [count] = connection.execute(query, [model]).fetchone() or [0]
        return int(count)


def flush(stores: Stores) -> None:
    with Redis.from_url(stores.redis_url) as redis:
        redis.flushall()


async def test_a_redis_that_forgets_everything_loses_no_queued_job(
    broken: Service, broken_client: httpx.AsyncClient, model: str
) -> None:
    broken.processes["worker"].terminate()
    ids = [await submit(broken_client, model) for _ in range(20)]
    flush(broken.stores)
    broken.launch("worker")
    for job_id in ids:
        await completed(broken_client, job_id)


async def test_a_redis_that_forgets_everything_disturbs_no_running_job(
    broken: Service, broken_client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(
        model,
        stream(chunk({"role": "assistant", "content": "before "}), gate, chunk("after"), chunk(finish="stop"), DONE),
    )
    async with broken_client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        events = EventStream(response)
        first = (await anext(events)).data
        flush(broken.stores)
        gate.release()
        rest = [event.data for event in await events.rest() if event.data != "[DONE]"]
    assert text_of([first, *rest]) == "before after"


async def test_jobs_are_accepted_and_run_while_redis_is_unavailable(
    broken: Service, broken_client: httpx.AsyncClient, own_stores: Stores, model: str
) -> None:
    kill(own_stores.valkey)
    try:
        ids = [await submit(broken_client, model) for _ in range(5)]
        whole = await broken_client.post("/chat/completions", json=chat(model))
        assert whole.status_code == 200
        streamed = await broken_client.post("/chat/completions", json=chat(model, stream=True))
        assert text_of(await chunks_of(streamed)) == "You said: hello there"
        for job_id in ids:
            await completed(broken_client, job_id)
    finally:
        own_stores.valkey.start()


async def test_a_worker_that_starts_while_redis_is_full_runs_jobs(
    broken: Service, broken_client: httpx.AsyncClient, own_stores: Stores, model: str
) -> None:
    with Redis.from_url(own_stores.redis_url) as redis:
        broken.processes["worker"].terminate()
        redis.config_set("maxmemory", "1")
        try:
            broken.launch("worker")
            streamed = await broken_client.post("/chat/completions", json=chat(model, stream=True))
            assert text_of(await chunks_of(streamed)) == "You said: hello there"
            await completed(broken_client, await submit(broken_client, model))

            async def says_so() -> bool:
                ready = await broken_client.get(f"{broken.base_url}/readyz")
                return bool(ready.json()["redis"] == "refuses writes")

            await eventually(says_so, "the API to notice")
        finally:
            redis.config_set("maxmemory", "0")


async def test_readers_are_served_from_postgres_while_redis_is_unavailable(
    broken: Service, broken_client: httpx.AsyncClient, own_stores: Stores, provider: Provider, model: str
) -> None:
    gates = Gate(), Gate()
    provider.script(
        model,
        stream(
            chunk({"role": "assistant", "content": "one "}),
            gates[0],
            chunk("two "),
            gates[1],
            chunk("three"),
            chunk(finish="stop"),
            DONE,
        ),
    )
    job_id = await submit(broken_client, model)
    async with broken_client.stream("GET", f"/jobs/{job_id}/events") as response:
        reader = EventStream(response)
        events = await reader.up_to("job.delta")
        kill(own_stores.valkey)
        try:
            gates[0].release()
            # While Redis is unavailable, so that this delta cannot have come over it.
            events += await reader.up_to("job.delta")
            async with broken_client.stream("GET", f"/jobs/{job_id}/events", params={"after": events[-1].id or ""}):
                pass
        finally:
            own_stores.valkey.start()
        gates[1].release()
        events += await reader.rest()
    assert text_of(event.data for event in events if event.name == "job.delta") == "one two three"
    numbers = [event.id for event in events if event.name == "job.delta"]
    assert numbers == [f"1-{number}" for number in range(1, len(numbers) + 1)]
    assert events[-1].name == "job.completed"


async def test_a_reader_whose_live_connection_is_cut_misses_nothing(
    broken: Service, broken_client: httpx.AsyncClient, own_stores: Stores, provider: Provider, model: str
) -> None:
    text = " ".join(f"w{number}" for number in range(60))
    script: list[object] = [chunk({"role": "assistant", "content": ""})]
    for number in range(60):
        script += [chunk(f"w{number}" if not number else f" w{number}"), 0.03]
    provider.script(model, stream(*script, chunk(finish="stop"), DONE))
    async with broken_client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        events = EventStream(response)
        chunks = []
        with Redis.from_url(own_stores.redis_url) as redis:
            async for event in events:
                if event.data == "[DONE]":
                    break
                chunks.append(event.data)
                if len(chunks) in {10, 25, 40}:
                    redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    assert text_of(chunks) == text


async def test_a_redis_that_answers_nothing_delays_no_request(
    broken: Service, broken_client: httpx.AsyncClient, own_stores: Stores, provider: Provider, model: str
) -> None:
    """It is frozen, not gone: connections stay open, and every command on them waits."""
    gate = Gate()
    provider.script(model, answer("Done.", hold=gate))
    job_id = await submit(broken_client, model)
    await settled(gate.reached)
    assert own_stores.valkey.pid is not None
    os.kill(own_stores.valkey.pid, signal.SIGSTOP)
    try:
        gate.release()
        await completed(broken_client, job_id)
        accepted = await submit(broken_client, model)
        assert (await broken_client.get(f"{broken.base_url}/healthz")).status_code == 200
    finally:
        os.kill(own_stores.valkey.pid, signal.SIGCONT)
    await completed(broken_client, accepted)


async def test_a_running_job_can_be_cancelled_while_redis_is_unavailable(
    broken: Service, broken_client: httpx.AsyncClient, own_stores: Stores, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, answer("never", hold=gate))
    job_id = await submit(broken_client, model)
    call = await provider.call(model)
    kill(own_stores.valkey)
    try:
        assert (await broken_client.post(f"/jobs/{job_id}/cancel")).status_code == 200
        await settled(call.disconnected)
        assert (await ended(broken_client, job_id))["status"] == "cancelled"
    finally:
        own_stores.valkey.start()


@pytest.mark.parametrize("how", ["restarted", "killed"])
async def test_a_running_job_survives_a_postgres_that_is(
    how: str, broken: Service, broken_client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    postgres = broken.stores.postgres
    gate = Gate()
    behaviour = stream(
        chunk({"role": "assistant", "content": "before "}), gate, chunk("after"), chunk(finish="stop"), DONE
    )
    provider.always(model, behaviour)
    job_id = await submit(broken_client, model)
    await settled(gate.reached)
    if how == "killed":
        kill(postgres)
    else:
        postgres.stop()
    gate.release()
    postgres.start()
    broken.wait_until_ready()
    job = await completed(broken_client, job_id)
    assert job["result"]["choices"][0]["message"]["content"] == "before after"


async def test_running_jobs_survive_a_postgres_that_is_unavailable_for_longer_than_their_leases(
    broken: Service, broken_client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    postgres = broken.stores.postgres
    gate = Gate()
    script = (chunk({"role": "assistant", "content": "before "}), gate, chunk("after"), chunk(finish="stop"), DONE)
    provider.always(model, stream(*script))
    job_id = await submit(broken_client, model)
    async with broken_client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        lines = response.aiter_lines()
        assert "before" in await anext(line async for line in lines if "content" in line)
        await provider.call(model, 2)
        postgres.stop()
        over = time.monotonic() + LEASE_SECONDS + 1
        await asyncio.to_thread(until, lambda: time.monotonic() > over, "the leases to run out")
        postgres.start()
        broken.wait_until_ready()
        await asyncio.to_thread(until, lambda: leased(broken, model) == 2, "leases that are extended")
        gate.release()
        rest = [line async for line in lines]
    assert "[DONE]" in rest[-2] + rest[-1]
    job = await completed(broken_client, job_id)
    assert (job["attempt"], job["result"]["choices"][0]["message"]["content"]) == (1, "before after")


async def test_nothing_is_accepted_while_postgres_is_unavailable(
    broken: Service, broken_client: httpx.AsyncClient, own_stores: Stores, model: str
) -> None:
    own_stores.postgres.stop()
    try:
        for request in (
            broken_client.post("/chat/completions", json=chat(model, background=True)),
            broken_client.post("/chat/completions", json=chat(model)),
            broken_client.get("/jobs"),
        ):
            refused(await request, 503)

        async def is_not_ready() -> bool:
            return (await broken_client.get(f"{broken.base_url}/readyz")).status_code == 503

        await eventually(is_not_ready, "an answer of /readyz that is not the last second's")
        assert (await broken_client.get(f"{broken.base_url}/healthz")).status_code == 200
    finally:
        own_stores.postgres.start()
    broken.wait_until_ready()
    assert (await broken_client.get("/jobs", params={"model": model})).json()["data"] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_process_that_waits_for_its_namespace_ends_on_a_signal(broken: Service, number: signal.Signals) -> None:
    name, text = f"worker-{number.name}", "waiting for Postgres, which has the namespace"
    waiting = broken.launch(
        name, DATABASE_URL=f"postgresql://tests@127.0.0.1:{free_port()}/none", HEADRACE_REDIS_NAMESPACE=""
    )
    try:
        until(lambda: waiting.log.exists() and text in waiting.log.read_text(), "the wait")
        waiting.signal(number)
        assert waiting.wait() == 0
        assert "Traceback" not in waiting.log.read_text()
    finally:
        del broken.processes[name]
        waiting.kill()


@pytest.mark.parametrize("part", ["api", "worker", "scheduler"])
def test_a_process_that_waits_for_its_namespace_serves_its_health(broken: Service, part: str) -> None:
    name, port = f"{part}-waiting", free_port()
    waiting = broken.launch(
        name,
        DATABASE_URL=f"postgresql://tests@127.0.0.1:{free_port()}/none",
        HEADRACE_REDIS_NAMESPACE="",
        HEADRACE_METRICS_PORT=str(port),
    )
    try:
        text = "waiting for Postgres, which has the namespace"
        until(lambda: waiting.log.exists() and text in waiting.log.read_text(), "the wait")
        told = httpx.get(f"http://127.0.0.1:{port}/livez", timeout=30)
        assert (told.status_code, told.json()["part"]) == (200, part)
        assert httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=30).status_code == 503
    finally:
        del broken.processes[name]
        waiting.kill()


def test_a_worker_warns_of_redis_and_logs_no_error(broken: Service, own_stores: Stores) -> None:
    name = "worker-warning"
    worker = broken.launch(name)
    try:
        until(lambda: worker.log.exists() and "ready: this worker" in worker.log.read_text(), "the worker")
        own_stores.valkey.stop()
        try:
            lines = until(
                lambda: [line for line in worker.log.read_text().splitlines() if "cannot connect" in line.lower()],
                "what the worker says of Redis",
            )
        finally:
            own_stores.valkey.start()
        assert " WARNING celery.worker.consumer.consumer: cannot connect to Redis at redis://" in lines[0]
        assert " ERROR " not in worker.log.read_text()
        assert "cancels all currently executed tasks" not in worker.log.read_text()
    finally:
        del broken.processes[name]
        worker.kill()


async def test_a_failure_while_postgres_is_unavailable_puts_no_prompt_into_a_log(
    broken: Service, broken_client: httpx.AsyncClient, own_stores: Stores, provider: Provider, model: str
) -> None:
    gate = Gate()
    said, heard = f"prompt of {model}", f"answer to {model}"
    provider.script(model, answer(heard, hold=gate))
    job_id = await submit(broken_client, model, said)
    await settled(gate.reached)
    own_stores.postgres.stop()
    try:
        refused(await broken_client.post("/chat/completions", json=chat(model, said, background=True)), 503)
        gate.release()
    finally:
        own_stores.postgres.start()
    broken.wait_until_ready()
    await completed(broken_client, job_id)
    assert said not in broken.logs()
    assert heard not in broken.logs()


def cut_connections(stores: Stores) -> None:
    with psycopg.connect(stores.database_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
        )


async def test_every_connection_to_postgres_cut_at_once_is_made_anew(
    broken: Service, broken_client: httpx.AsyncClient, own_stores: Stores, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, answer("Done.", hold=gate))
    job_id = await submit(broken_client, model)
    await settled(gate.reached)
    cut_connections(own_stores)
    gate.release()

    async def done() -> bool:
        response = await broken_client.get(f"/jobs/{job_id}")
        assert response.status_code in {200, 503}, response.text
        return response.status_code == 200 and response.json()["status"] == "completed"

    await eventually(done, "the job's end")


async def test_a_statement_whose_connection_was_cut_puts_no_prompt_into_a_log(
    broken: Service, broken_client: httpx.AsyncClient, own_stores: Stores, provider: Provider, model: str
) -> None:
    said, heard = f"prompt of {model}", f"answer to {model}"
    provider.always(model, answer(heard))
    for _ in range(3):
        cut_connections(own_stores)
        response = await broken_client.post("/chat/completions", json=chat(model, said))
        assert response.status_code in {200, 503}, response.text
    assert said not in broken.logs()
    assert heard not in broken.logs()


async def test_after_all_this_the_service_is_as_new(
    broken: Service, broken_client: httpx.AsyncClient, model: str
) -> None:
    async with broken_client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        assert text_of(await chunks_of(response)) == "You said: hello there"
    await asyncio.gather(*[completed(broken_client, await submit(broken_client, model)) for _ in range(5)])
    assert all(process.running for process in broken.processes.values())
