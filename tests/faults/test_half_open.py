"""Connections that stay open and carry nothing: each process notices, and goes on when the connection is mended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from headrace.stores.database import Database, execute
from tests.e2e.jobs import chat, completed, submit
from tests.e2e.streams import EventStream, text_of
from tests.fakes.provider import DONE, Exchange, Gate, Provider, answer, chunk, settled, stream
from tests.faults.chaos.proxy import Link, Mode, postgres_socket
from tests.faults.test_takeover import leader
from tests.service import BOOTSTRAP_KEY, Service, Stores, connect
from tests.waiting import eventually, until


@pytest.fixture
def link(stores: Stores) -> Iterator[Link]:
    link = Link(postgres_socket(stores.database_url))
    yield link
    link.close()


@pytest.fixture
async def database(link: Link) -> AsyncIterator[Database]:
    database = Database.connect(f"postgresql://headrace@127.0.0.1:{link.port}/headrace")
    yield database
    await database.close()


@pytest.mark.parametrize("statement", ["SELECT 1", sa.select(sa.literal(1))], ids=["plain", "sqlalchemy"])
async def test_a_half_open_connection_to_postgres_is_given_up(
    database: Database, link: Link, statement: str | sa.Executable
) -> None:
    await asyncio.gather(*(execute(database.relaxed, statement) for _ in range(3)))
    link.be(Mode.STALL)
    async with asyncio.timeout(30):
        with pytest.raises(SQLAlchemyError):
            await execute(database.relaxed, statement, patience_seconds=0.5)
    link.be(Mode.PASS)
    assert (await execute(database.relaxed, statement))[0][0] == 1


async def test_a_slow_one_is_not(database: Database, link: Link) -> None:
    link.be(Mode.SLOW)
    rows = await execute(database.relaxed, "SELECT repeat('x', 20000)", patience_seconds=10)
    assert len(rows[0][0]) == 20_000


# -- parts of a service behind links ----------------------------------------------------------------------------------

CATALOGUE = """
[providers.behind]
kind = "openai"
base_url = "http://127.0.0.1:{port}/v1"
api_key = "env:TESTS_PROVIDER_KEY"
connect_timeout = 1
read_timeout = 1

[models."behind-*"]
routes = ["behind/*"]
"""


@dataclass(frozen=True)
class Behind:
    """A service, and the links that parts of it are behind."""

    service: Service
    api_redis: Link
    worker_redis: Link
    worker_postgres: Link
    scheduler_postgres: Link
    provider: Link

    def mend(self) -> None:
        """Let everything through again, whatever the test before did."""
        for link in (
            self.api_redis, self.worker_redis, self.worker_postgres, self.scheduler_postgres, self.provider
        ):  # fmt: skip
            link.be(Mode.PASS)


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, stores: Stores, config: str, provider: Provider
) -> Iterator[Behind]:
    own = stores.fresh()
    redis, database = urlsplit(own.redis_url), urlsplit(own.database_url)
    assert redis.port is not None
    with contextlib.ExitStack() as stack:
        socket = postgres_socket(own.database_url)
        links = [Link(target) for target in (redis.port, redis.port, socket, socket, provider.port)]
        for link in links:
            stack.callback(link.close)
        api_redis, worker_redis, worker_postgres, scheduler_postgres, upstream = [link.port for link in links]

        def redis_url(port: int) -> str:
            return redis._replace(netloc=f":{redis.password}@127.0.0.1:{port}").geturl()

        def database_url(port: int, name: str) -> str:
            return f"postgresql://headrace@127.0.0.1:{port}{database.path}?application_name={name}"

        service = Service(tmp_path_factory.mktemp("behind"), own, config + CATALOGUE.format(port=upstream))
        Service.running.append(service)
        stack.callback(service.stop)
        service.run("migrate")
        service.launch("api", REDIS_URL=redis_url(api_redis))
        service.launch(
            "worker", REDIS_URL=redis_url(worker_redis), DATABASE_URL=database_url(worker_postgres, "worker")
        )
        service.launch("scheduler-1", DATABASE_URL=database_url(scheduler_postgres, "scheduler-1"))
        service.wait_until_ready()
        until(lambda: leader(service) == "scheduler-1", "the first scheduler to act")
        yield Behind(service, *links)


@pytest.fixture
async def behind(shared: Behind) -> AsyncIterator[Behind]:
    yield shared
    shared.mend()


@pytest.fixture
async def client(behind: Behind) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(behind.service, BOOTSTRAP_KEY) as client:
        yield client


# Nothing goes through, or new connections would and the consumer of the broker waits at its old one.
HALF_OPEN = pytest.mark.parametrize("mode", [Mode.STALL, Mode.DEAD])


@HALF_OPEN
async def test_a_worker_that_hears_nothing_of_the_broker_runs_jobs_nevertheless(
    behind: Behind, client: httpx.AsyncClient, model: str, mode: Mode
) -> None:
    await completed(client, await submit(client, model))
    behind.worker_redis.be(mode)
    whole = asyncio.create_task(client.post("/chat/completions", json=chat(model)))
    ids = await asyncio.gather(*[submit(client, model) for _ in range(5)])
    for job_id in ids:
        await completed(client, job_id)
    assert (await whole).status_code == 200
    behind.worker_redis.be(Mode.PASS)
    await completed(client, await submit(client, model))


@HALF_OPEN
async def test_a_subscriber_to_whom_the_live_wire_carries_nothing_gets_every_event(
    behind: Behind, client: httpx.AsyncClient, provider: Provider, model: str, mode: Mode
) -> None:
    gate = Gate()
    words = [chunk(f"w{number} ") for number in range(20)]
    provider.script(
        model, stream(chunk({"role": "assistant", "content": "a "}), gate, *words, chunk(finish="stop"), DONE)
    )
    job_id = await submit(client, model)
    async with client.stream("GET", f"/jobs/{job_id}/events") as response:
        reader = EventStream(response)
        events = await reader.up_to("job.delta")
        behind.api_redis.be(mode)
        gate.release()
        events += await reader.rest()
    deltas = [event for event in events if event.name == "job.delta"]
    assert [event.id for event in deltas] == [f"1-{number}" for number in range(1, len(deltas) + 1)]
    assert text_of(event.data for event in deltas) == "a " + "".join(f"w{number} " for number in range(20))
    assert events[-1].name == "job.completed"


async def test_a_reader_may_come_back_with_what_postgres_is_yet_to_get(
    behind: Behind, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gates = Gate(), Gate()
    first, last = chunk({"role": "assistant", "content": "a "}), chunk("c", finish="stop")
    provider.always(model, stream(first, gates[0], chunk("b "), gates[1], last, DONE))
    job_id = await submit(client, model)
    async with client.stream("GET", f"/jobs/{job_id}/events") as response:
        reader = EventStream(response)
        events = await reader.up_to("job.delta")
        # From here on the worker can tell readers, and Postgres nothing.
        behind.worker_postgres.be(Mode.STALL)
        gates[0].release()
        events += await reader.up_to("job.delta")
    headers = {"last-event-id": str(events[-1].id)}
    async with client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        behind.worker_postgres.be(Mode.PASS)
        gates[1].release()
        events += await EventStream(response).rest()
    last_attempt = str(events[-1].id).partition("-")[0]
    deltas = [event for event in events if str(event.id).startswith(f"{last_attempt}-") and event.name == "job.delta"]
    assert [event.id for event in deltas] == [f"{last_attempt}-{number}" for number in range(1, len(deltas) + 1)]
    assert text_of(event.data for event in deltas) == "a b c"


@HALF_OPEN
async def test_a_request_that_waits_on_a_dead_live_wire_is_answered(
    behind: Behind, client: httpx.AsyncClient, provider: Provider, model: str, mode: Mode
) -> None:
    gate = Gate()
    provider.script(model, answer("Here.", hold=gate))
    waiting = asyncio.create_task(client.post("/chat/completions", json=chat(model)))
    await settled(gate.reached)
    behind.api_redis.be(mode)
    gate.release()
    assert (await waiting).json()["choices"][0]["message"]["content"] == "Here."


def is_stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


async def test_what_a_provider_says_while_the_worker_is_frozen_counts(
    behind: Behind, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    """The worker stands still for longer than it waits for a provider, and finds the answer when it goes on."""
    model, worker = f"behind-{model}", behind.service.processes["worker"]

    async def freeze(exchange: Exchange) -> None:
        worker.signal(signal.SIGSTOP)
        try:
            await eventually(partial(is_stopped, worker.pid), "the worker to stand still")
            await answer("Here.")(exchange)
            await asyncio.sleep(3)
        finally:
            worker.signal(signal.SIGCONT)

    provider.script(model, freeze)
    job = await completed(client, await submit(client, model))
    assert len(provider.calls_for(model)) == 1, job["attempts"]
    assert job["result"]["choices"][0]["message"]["content"] == "Here."


async def test_a_provider_that_falls_silent_in_the_middle_is_given_up_and_asked_again(
    behind: Behind, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    model = f"behind-{model}"
    gate = Gate()
    provider.script(model, stream(chunk({"role": "assistant", "content": "half "}), gate), answer("Whole."))
    job_id = await submit(client, model)
    async with client.stream("GET", f"/jobs/{job_id}/events") as response:
        reader = EventStream(response)
        await reader.up_to("job.delta")
        behind.provider.be(Mode.STALL)
        await reader.up_to("job.retrying")
        behind.provider.be(Mode.PASS)
        rest = await reader.rest()
    job = await completed(client, job_id)
    assert job["attempts"][0]["error"]["code"] == "upstream_timeout"
    assert job["result"]["choices"][0]["message"]["content"] == "Whole."
    assert rest[-1].name == "job.completed"


async def test_a_scheduler_that_postgres_hears_nothing_of_loses_the_lead_and_comes_back(
    behind: Behind, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    service = behind.service
    separator = "&" if "?" in service.stores.database_url else "?"
    service.launch("scheduler-2", DATABASE_URL=f"{service.stores.database_url}{separator}application_name=scheduler-2")
    gate = Gate()
    provider.script(model, answer("lost", hold=gate), answer("At last."))
    job_id = await submit(client, model)
    await settled(gate.reached)
    assert leader(service) == "scheduler-1"
    behind.scheduler_postgres.be(Mode.STALL)
    await asyncio.to_thread(until, lambda: leader(service) == "scheduler-2", "the other to act")
    service.processes["worker"].kill()
    service.launch("worker")
    assert (await completed(client, job_id))["attempt"] == 2
    # The first finds out, comes back, and leaves the other the lead.
    behind.scheduler_postgres.be(Mode.PASS)
    service.processes["scheduler-2"].kill()
    await asyncio.to_thread(until, lambda: leader(service) == "scheduler-1", "the first to act again")
