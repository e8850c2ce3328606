"""A busy worker that is asked to stop: whatever it has, running, claimed or in hand, starts elsewhere at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
import psycopg
import pytest
from psycopg.rows import DictRow

from tests.e2e.jobs import completed, submit
from tests.fakes.provider import Gate, Provider, answer
from tests.service import BOOTSTRAP_KEY, Service, Stores, connect, looking_at_rows, running_service

SLOTS = 4
FEW_SLOTS = {"HEADRACE_WORKER_SLOTS": str(SLOTS), "HEADRACE_RESEND_SECONDS": "3600"}


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory, stores: Stores, config: str) -> Iterator[Service]:
    """A service whose workers have few slots, and whose scheduler sends nothing again."""
    directory = tmp_path_factory.mktemp("busy")
    with running_service(directory, stores.fresh(), config, environment=FEW_SLOTS) as service:
        yield service


@pytest.fixture
async def busy_client(busy: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(busy, BOOTSTRAP_KEY) as client:
        yield client


@pytest.fixture
async def rows(busy: Service) -> AsyncIterator[psycopg.AsyncConnection[DictRow]]:
    async with looking_at_rows(busy.stores) as connection:
        yield connection


async def test_a_full_worker_that_is_asked_to_stop_hands_back_what_waits_for_a_slot_too(
    busy: Service,
    busy_client: httpx.AsyncClient,
    rows: psycopg.AsyncConnection[DictRow],
    provider: Provider,
    model: str,
) -> None:
    gate = Gate()
    provider.always(model, answer("Here.", hold=gate))
    job_ids = await asyncio.gather(*(submit(busy_client, model) for _ in range(5 * SLOTS)))
    await provider.call(model, SLOTS)
    assert await asyncio.to_thread(busy.processes["worker"].terminate) == 0
    states = await (await rows.execute("SELECT DISTINCT state FROM jobs WHERE model = %s", [model])).fetchall()
    assert [row["state"] for row in states] == ["queued"]
    gate.release()
    busy.launch("worker-2")
    for job_id in job_ids:
        await completed(busy_client, job_id)
    lost = await (await rows.execute("SELECT id FROM jobs WHERE model = %s AND lost > 0", [model])).fetchall()
    assert lost == []
