"""Two schedulers stand by and one of them acts; when it is gone, however it went, the other does."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator

import httpx
import psycopg
import pytest

from scheduler.leadership import _LOCK
from tests.e2e.jobs import completed, submit
from tests.fakes.provider import Gate, Provider, answer, settled
from tests.service import BOOTSTRAP_KEY, SHORT_LEASES, Service, Stores, connect, running_service
from tests.waiting import eventually, until

SCHEDULERS = ("scheduler-1", "scheduler-2")


def launch_scheduler(service: Service, name: str) -> None:
    """Start a scheduler whose connections carry its name."""
    separator = "&" if "?" in service.stores.database_url else "?"
    service.launch(name, DATABASE_URL=f"{service.stores.database_url}{separator}application_name={name}")


def leader(service: Service) -> str | None:
    """Return the scheduler that acts: the lock in Postgres is its own."""
    with psycopg.connect(service.stores.database_url) as connection:
        row = connection.execute(
            "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) "
            "WHERE locktype = 'advisory' AND objid = %s AND granted AND application_name = ANY(%s)",
            [_LOCK, list(SCHEDULERS)],
        ).fetchone()
    return None if row is None else str(row[0])


@pytest.fixture(scope="module")
def shared_pair(tmp_path_factory: pytest.TempPathFactory, stores: Stores, config: str) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("pair")
    with running_service(directory, stores.fresh(), config, "api", "worker", environment=SHORT_LEASES) as service:
        yield service


@pytest.fixture
def pair(shared_pair: Service) -> Service:
    """A service with two schedulers, one of which acts."""
    for name in SCHEDULERS:
        if name not in shared_pair.processes or not shared_pair.processes[name].running:
            launch_scheduler(shared_pair, name)
    until(lambda: leader(shared_pair), "a leader")
    return shared_pair


@pytest.fixture
async def client(pair: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(pair, BOOTSTRAP_KEY) as client:
        yield client


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
async def test_the_other_scheduler_acts_when_the_first_is_gone(
    pair: Service, client: httpx.AsyncClient, provider: Provider, model: str, how: signal.Signals
) -> None:
    gate = Gate()
    provider.script(model, answer("lost", hold=gate), answer("At last."))
    job_id = await submit(client, model)
    await settled(gate.reached)
    first = leader(pair)
    assert first is not None
    # Only a scheduler that leads rescues the job of a worker that died.
    pair.processes[first].signal(how)
    pair.processes["worker"].kill()
    pair.launch("worker")
    job = await completed(client, job_id)
    assert job["attempt"] == 2
    [second] = set(SCHEDULERS) - {first}
    assert leader(pair) == second
    pair.processes[first].kill()


async def test_a_scheduler_that_comes_back_leaves_the_other_the_lead(
    pair: Service, client: httpx.AsyncClient, model: str
) -> None:
    first = leader(pair)
    assert first is not None
    pair.processes[first].kill()
    [second] = set(SCHEDULERS) - {first}
    await asyncio.to_thread(until, lambda: leader(pair) == second, "the other to act")
    launch_scheduler(pair, first)

    async def stands_by() -> bool:
        return await asyncio.to_thread(connections_of, pair, first) > 0

    await eventually(stands_by, "the first to stand by")
    await completed(client, await submit(client, model))
    assert leader(pair) == second


def connections_of(service: Service, name: str) -> int:
    """Return how many connections a scheduler has."""
    with psycopg.connect(service.stores.database_url) as connection:
        row = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", [name]).fetchone()
    return 0 if row is None else int(row[0])
