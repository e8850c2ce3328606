"""An API that is told to end while Postgres stalls: what has no answer gets 503, and its job does not run."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import psycopg

from tests.e2e.jobs import chat
from tests.service import BOOTSTRAP_KEY, Stores, connect, looking_at_rows, running_service
from tests.waiting import eventually


async def test_a_request_that_still_has_no_answer_is_answered_503_and_its_job_does_not_run(
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
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), answer.text
            assert answer.json()["error"]["code"] == "service_unavailable"
            await locking.rollback()
            await asyncio.to_thread(service.processes["api"].wait)
            states = await (await rows.execute("SELECT state FROM jobs")).fetchall()
            assert [row["state"] for row in states] in ([], ["cancelled"])
