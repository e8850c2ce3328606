"""Batches whose scheduler, worker or stores die: every line is answered once, and the batch ends by itself."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import suppress

import httpx
import psycopg
import pytest
from redis import Redis

from tests.e2e.batches import get, lines, output, reaches, submit
from tests.fakes.provider import Provider
from tests.service import BOOTSTRAP_KEY, SHORT_LEASES, Service, connect
from tests.waiting import eventually


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    return SHORT_LEASES | {"HEADRACE_BATCH_WINDOW": "100"}


async def whole(client: httpx.AsyncClient, batch_id: str, count: int) -> None:
    """Check that a batch ends with every line answered once, in order."""
    done = await reaches(client, batch_id, "completed")
    assert done["request_counts"] == {"total": count, "completed": count, "failed": 0}
    results = await output(client, done["output_file_id"])
    assert [result["custom_id"] for result in results] == [f"r{number}" for number in range(1, count + 1)]
    jobs = {result["response"]["request_id"] for result in results}
    assert len(jobs) == count


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_scheduler_that_is_killed_again_and_again_neither_repeats_nor_omits_a_line(
    cluster: Service, provider: Provider, model: str, seed: int
) -> None:
    draw = random.Random(seed)
    async with connect(cluster, BOOTSTRAP_KEY) as client:
        batch = await submit(client, lines(model, 1500))
        for _ in range(4):
            await asyncio.sleep(draw.uniform(0, 1.2))  # wherever that is in the batch's life
            cluster.processes["scheduler"].kill()
            cluster.launch("scheduler")
        await whole(client, batch["id"], 1500)
    assert len(provider.calls_for(model)) == 1500


async def test_a_worker_that_is_killed_costs_only_what_it_had_begun(
    cluster: Service, provider: Provider, model: str
) -> None:
    async with connect(cluster, BOOTSTRAP_KEY) as client:
        batch = await submit(client, lines(model, 600))

        async def some() -> bool:
            return len(provider.calls_for(model)) > 100

        await eventually(some, "the first calls")
        cluster.processes["worker"].kill()
        cluster.launch("worker")
        await whole(client, batch["id"], 600)
    assert len(provider.calls_for(model)) <= 600 + 100, "at most a window of lines was under way"


async def test_a_redis_that_forgets_everything_only_delays_a_batch(
    cluster: Service, provider: Provider, model: str
) -> None:
    async with connect(cluster, BOOTSTRAP_KEY) as client:
        batch = await submit(client, lines(model, 400))

        async def some() -> bool:
            return len(provider.calls_for(model)) > 50

        await eventually(some, "the first calls")
        with Redis.from_url(cluster.stores.redis_url) as redis:
            redis.flushdb()
        await whole(client, batch["id"], 400)
    assert len(provider.calls_for(model)) == 400


async def test_connections_to_postgres_that_are_cut_lose_no_line(
    cluster: Service, provider: Provider, model: str
) -> None:
    async with connect(cluster, BOOTSTRAP_KEY) as client:
        batch = await submit(client, lines(model, 600))
        async with await psycopg.AsyncConnection.connect(cluster.stores.database_url, autocommit=True) as admin:
            for _ in range(5):
                await asyncio.sleep(0.2)
                await admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )

        async def answers() -> bool:
            return (await client.get(f"/batches/{batch['id']}")).status_code == 200  # and 503 until it is connected

        await eventually(answers, "the API to be connected again")
        await whole(client, batch["id"], 600)


async def test_an_api_that_is_killed_in_an_upload_leaves_nothing_that_can_be_seen(cluster: Service, model: str) -> None:
    async with connect(cluster, BOOTSTRAP_KEY) as client:
        before = (await client.get("/files")).json()["data"]

        async def body() -> object:
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(8):
                yield b"x" * (256 * 1024)
            cluster.processes["api"].kill()
            yield b"x"

        with suppress(httpx.TransportError):
            await client.post(
                "/files",
                content=body(),  # type: ignore[arg-type]
                headers={"content-type": "multipart/form-data; boundary=b"},
            )
    cluster.restore()
    async with connect(cluster, BOOTSTRAP_KEY) as client:
        assert (await client.get("/files")).json()["data"] == before


async def test_a_batch_is_cancelled_whatever_process_dies_meanwhile(cluster: Service, model: str) -> None:
    async with connect(cluster, BOOTSTRAP_KEY) as client:
        batch = await submit(client, lines(model, 3000))
        await reaches(client, batch["id"], "in_progress")
        await client.post(f"/batches/{batch['id']}/cancel")
        cluster.processes["scheduler"].kill()
        cluster.processes["worker"].kill()
        cluster.restore()
        done = await reaches(client, batch["id"], "cancelled")
        answered = await output(client, done["output_file_id"])
        unrun = await output(client, done["error_file_id"])
        names = [result["custom_id"] for result in (*answered, *unrun)]
        assert sorted(names) == sorted(f"r{number}" for number in range(1, 3001))
        assert (await get(client, batch["id"]))["request_counts"]["completed"] == len(answered)
