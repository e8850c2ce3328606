"""An API that is told to end while requests wait: each answer says only what is certain about the job."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import psycopg

from tests.e2e.jobs import chat
from tests.e2e.streams import EventStream
from tests.fakes.provider import Gate, Provider, chunk, stream
from tests.service import BOOTSTRAP_KEY, Stores, connect, looking_at_rows, running_service
from tests.waiting import eventually


async def test_while_postgres_stalls_the_outcome_is_unknown_and_the_job_is_cancelled_once_it_can_be(
    tmp_path: Path, stores: Stores, config: str, model: str
) -> None:
    with running_service(tmp_path, stores.fresh(), config, "api") as service:
        async with (
            connect(service, BOOTSTRAP_KEY) as client,
            looking_at_rows(service.stores) as rows,
            await psycopg.AsyncConnection.connect(service.stores.database_url) as locking,
        ):
            await locking.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            asking = asyncio.create_task(client.post("/chat/completions", json=chat(model)))

            async def waits() -> bool:
                cursor = await rows.execute("SELECT FROM pg_locks WHERE relation = 'jobs'::regclass AND NOT granted")
                return cursor.rowcount > 0

            await eventually(waits, "the insert to wait for the lock")
            service.processes["api"].signal(signal.SIGTERM)
            answer = await asking
            assert answer.status_code == 504, answer.text
            assert answer.json()["error"]["code"] == "outcome_unknown"
            await locking.rollback()
            await asyncio.to_thread(service.processes["api"].wait)
            states = await (await rows.execute("SELECT state FROM jobs")).fetchall()
            assert [row["state"] for row in states] in ([], ["cancelled"])


async def test_a_job_that_no_worker_claimed_is_cancelled_and_its_client_told_to_come_back(
    tmp_path: Path, stores: Stores, config: str, model: str
) -> None:
    patient = {"HEADRACE_DRAIN_SECONDS": "4"}
    with running_service(tmp_path, stores.fresh(), config, "api", environment=patient) as service:
        async with connect(service, BOOTSTRAP_KEY) as client, looking_at_rows(service.stores) as rows:
            asking = asyncio.create_task(client.post("/chat/completions", json=chat(model)))

            async def states() -> list[str]:
                return [row["state"] for row in await (await rows.execute("SELECT state FROM jobs")).fetchall()]

            await eventually(states, "the job")
            service.processes["api"].signal(signal.SIGTERM)
            answer = await asking
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), answer.text
            assert answer.json()["error"]["code"] == "service_unavailable"
            assert await states() == ["cancelled"]


async def test_a_stream_whose_job_cannot_be_cancelled_in_time_is_logged_plainly(
    tmp_path: Path, stores: Stores, config: str, provider: Provider, model: str
) -> None:
    provider.script(model, stream(chunk({"role": "assistant", "content": "half "}), Gate()))
    hasty = {"HEADRACE_DRAIN_SECONDS": "1"}
    with running_service(tmp_path, stores.fresh(), config, "api", "worker", environment=hasty) as service:
        api = service.processes["api"]
        async with (
            connect(service, BOOTSTRAP_KEY) as client,
            client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response,
            await psycopg.AsyncConnection.connect(service.stores.database_url) as locking,
        ):
            events = EventStream(response)
            job_id = (await anext(events)).data["id"].replace("chatcmpl-", "job_")
            await locking.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            api.signal(signal.SIGTERM)
            await asyncio.to_thread(api.wait)
            await locking.rollback()
            log, request_id = api.log.read_text(), response.headers["x-request-id"]
    assert "Traceback" not in log
    [warning] = [line for line in log.splitlines() if "WARNING" in line and job_id in line]
    assert f"could not cancel {job_id} before the process ends" in warning
    assert request_id in warning
