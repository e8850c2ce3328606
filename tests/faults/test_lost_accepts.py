"""Postgres crashes before a foreground job is on disk: its client gets a 503. No job that a client knows is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import httpx
import psycopg

from tests.e2e.jobs import chat, completed, eventually, refused, submit
from tests.service import BOOTSTRAP_KEY, Stores, connect, embedded_stores, running_service

# Without a worker nothing commits durably once the last job is accepted. These settings keep Postgres's own processes
# from writing the log meanwhile; its log writer is stopped.
QUIET = {"autovacuum": "off", "bgwriter_lru_maxpages": "0", "checkpoint_timeout": "1d"}


def stop_log_writer(stores: Stores) -> int:
    """Freeze Postgres's log writer, and return its process id."""
    with psycopg.connect(stores.database_url) as connection:
        found = connection.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'").fetchone()
    assert found is not None
    os.kill(found[0], signal.SIGSTOP)
    return int(found[0])


def models_of(stores: Stores) -> set[str]:
    """Return the models that have jobs."""
    with psycopg.connect(stores.database_url) as connection:
        return {model for (model,) in connection.execute("SELECT model FROM jobs")}


async def test_a_crash_of_postgres_loses_only_jobs_that_no_client_knows(
    tmp_path: Path, config: str, model: str
) -> None:
    bodies = {kind: chat(f"{model}-{kind}", stream=kind == "streamed") for kind in ("keyed", "streamed", "whole")}
    with (
        embedded_stores(**QUIET) as stores,
        running_service(tmp_path, stores, config, "api") as service,
    ):
        async with connect(service, BOOTSTRAP_KEY) as client, asyncio.TaskGroup() as tasks:

            async def ask(kind: str) -> httpx.Response:
                headers = {"idempotency-key": model} if kind == "keyed" else {}
                return await client.post("/chat/completions", json=bodies[kind], headers=headers)

            async def asked(kind: str) -> asyncio.Task[httpx.Response]:
                request = tasks.create_task(ask(kind))
                await eventually(lambda: bodies[kind]["model"] in models_of(stores), f"the {kind} job")
                return request

            log_writer = stop_log_writer(stores)
            background = await submit(client, f"{model}-background")
            keyed, streamed, whole = [await asked(kind) for kind in ("keyed", "streamed", "whole")]
            assert stores.postgres.pid is not None
            os.kill(stores.postgres.pid, signal.SIGKILL)
            os.kill(log_writer, signal.SIGKILL)
            stores.postgres.stop()
            stores.postgres.start()

            refused(await whole, 503, code="service_unavailable")
            assert "retry-after" in (await whole).headers
            assert models_of(stores) == {f"{model}-{kind}" for kind in ("background", "keyed", "streamed")}
            service.launch("worker")
            service.launch("scheduler")
            assert (await ask("whole")).status_code == 200
            assert [(await request).status_code for request in (keyed, streamed)] == [200, 200]
            await completed(client, background)
