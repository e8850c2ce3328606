"""Machines whose clocks differ by hours: Postgres's decides, and no other is asked.

A process gets another clock by a `sitecustomize` on its path, which Python imports before anything else: `time.time`,
`time.time_ns` and `datetime.now` are off by so many seconds there, in C as in Python.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg.rows import DictRow
from standardwebhooks import Webhook

from tests.e2e.jobs import chat, completed, ended, submit
from tests.e2e.streams import chunks_of, text_of
from tests.fakes.provider import DONE, Gate, Provider, answer, chunk, hang, settled, stream
from tests.fakes.receiver import running_receiver
from tests.service import BOOTSTRAP_KEY, ROOT, SHORT_LEASES, Service, Stores, connect, looking_at_rows, running_service
from tests.waiting import eventually

SITECUSTOMIZE = """
import ctypes, datetime, gc, os, time

seconds = float(os.environ["TESTS_CLOCK_SECONDS"])
real_time, real_time_ns = time.time, time.time_ns
time.time = lambda: real_time() + seconds
time.time_ns = lambda: real_time_ns() + int(seconds * 1e9)
(methods,) = gc.get_referents(datetime.datetime.__dict__)  # the type is written in C, and refuses new attributes
methods["now"] = classmethod(lambda kind, tz=None: kind.fromtimestamp(time.time(), tz))
ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))
"""
HOUR = 3600
CLOCKS = {
    "worker-ahead": 5 * HOUR,
    "worker-behind": -7 * HOUR,
    "scheduler-ahead": 3 * HOUR,
    "scheduler-behind": -11 * HOUR,
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What PYTHONPATH is to be for another clock."""
    directory: Path = tmp_path_factory.mktemp("clock")
    (directory / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return f"{directory}:{ROOT}"


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, stores: Stores, config: str, path: str) -> Iterator[Service]:
    """A service of whose four clocks no two agree, nor any with Postgres's."""
    directory = tmp_path_factory.mktemp("apart")
    with running_service(directory, stores.fresh(), config, "api", environment=SHORT_LEASES) as service:
        for name in CLOCKS:
            launch(service, name, path)
        yield service


def launch(service: Service, name: str, path: str) -> None:
    service.launch(name, PYTHONPATH=path, TESTS_CLOCK_SECONDS=str(CLOCKS[name]))


@pytest.fixture
async def client(apart: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(apart, BOOTSTRAP_KEY) as client:
        yield client


@pytest.fixture
async def rows(apart: Service) -> AsyncIterator[psycopg.AsyncConnection[DictRow]]:
    async with looking_at_rows(apart.stores) as connection:
        yield connection


def test_another_clock_is_another_in_c_too(path: str) -> None:
    script = "import time, datetime; print(time.time(), time.time_ns() / 1e9, datetime.datetime.now().timestamp())"
    printed = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONPATH": path, "TESTS_CLOCK_SECONDS": str(seconds)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for seconds in (0, 10 * HOUR)
    ]
    for here, there in zip(*printed, strict=True):
        assert 9 * HOUR < float(there) - float(here) < 11 * HOUR


async def test_jobs_run(client: httpx.AsyncClient, model: str) -> None:
    ids = await asyncio.gather(*[submit(client, model) for _ in range(20)])
    jobs = [await completed(client, job_id) for job_id in ids]
    assert {job["attempt"] for job in jobs} == {1}
    streamed = await client.post("/chat/completions", json=chat(model, stream=True))
    assert text_of(await chunks_of(streamed)) == "You said: hello there"


async def test_a_lease_holds_that_is_extended_and_a_deadline_that_is_far(
    client: httpx.AsyncClient, provider: Provider, model: str, rows: psycopg.AsyncConnection[DictRow]
) -> None:
    gate = Gate()
    script = (chunk({"role": "assistant", "content": "a "}), gate, chunk("b"), chunk(finish="stop"), DONE)
    provider.always(model, stream(*script))
    ids = await asyncio.gather(*[submit(client, model, timeout=600) for _ in range(8)])
    await provider.call(model, 8)

    async def held() -> bool:
        """Whether each has outlived its first lease twice, whatever clock its worker has."""
        found = await rows.execute(
            "SELECT attempt, lease_until > started_at + interval '12 seconds' AS extended, state FROM jobs "
            "WHERE id = ANY(%s)",
            [ids],
        )
        jobs = await found.fetchall()
        assert {(job["state"], job["attempt"]) for job in jobs} == {("running", 1)}
        return all(job["extended"] for job in jobs)

    await eventually(held, "leases to be extended")
    gate.release()
    for job_id in ids:
        job = await completed(client, job_id)
        assert (job["attempt"], job["result"]["choices"][0]["message"]["content"]) == (1, "a b")


async def test_a_deadline_that_has_passed_is_noticed(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.always(model, hang)
    ids = await asyncio.gather(*[submit(client, model, timeout=1) for _ in range(4)])
    for job_id in ids:
        job = await ended(client, job_id)
        assert job["status"] == "expired"
        assert job["finished_at"] >= job["expires_at"]


@pytest.mark.parametrize("name", ["worker-ahead", "worker-behind"])
async def test_jobs_of_a_worker_that_dies_run_elsewhere(
    apart: Service, client: httpx.AsyncClient, provider: Provider, model: str, path: str, name: str,
    rows: psycopg.AsyncConnection[DictRow],
) -> None:  # fmt: skip
    gate, ids, pid = Gate(), list[str](), str(apart.processes[name].pid)

    async def taken() -> set[str]:
        """Submit some more, and return those that this worker has: on a busy machine it takes none of the first."""
        provider.script(model, *[answer("lost", hold=gate) for _ in range(16)])
        ids.extend(await asyncio.gather(*[submit(client, model) for _ in range(16)]))
        await provider.call(model, len(ids))
        query = "SELECT id FROM jobs WHERE id = ANY(%s) AND split_part(worker, ':', 2) = %s"
        return {row["id"] for row in await (await rows.execute(query, [ids, pid])).fetchall()}

    its_own = await eventually(taken, "jobs of its own")
    apart.processes[name].kill()
    launch(apart, name, path)
    for job_id in its_own:
        assert (await completed(client, job_id))["attempt"] == 2
    gate.release()
    for job_id in set(ids) - its_own:
        assert (await completed(client, job_id))["attempt"] == 1


async def test_webhooks_tell_the_time_of_postgres(client: httpx.AsyncClient, model: str) -> None:
    with running_receiver() as receiver:
        await submit(client, model, webhook=receiver.url)

        async def told() -> bool:
            return bool(receiver.messages)

        await eventually(told, "a webhook")
    secrets = (await client.get("/webhook-secrets")).json()["data"]
    [message] = receiver.messages
    Webhook(secrets[0]["secret"]).verify(message.body, message.headers)  # which refuses what is five minutes old


async def test_what_was_used_is_told_at_once(client: httpx.AsyncClient, model: str) -> None:
    await completed(client, await submit(client, model))
    usage = (await client.get("/usage", params={"model": model, "bucket": "hour"})).json()["data"]
    assert [bucket["requests"] for bucket in usage] == [1]


async def test_a_job_under_another_clock_can_be_cancelled(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, answer("never", hold=gate))
    job_id = await submit(client, model)
    await settled(gate.reached)
    assert (await client.post(f"/jobs/{job_id}/cancel")).status_code == 200
    assert (await ended(client, job_id))["status"] == "cancelled"
