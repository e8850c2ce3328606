"""Postgres crashes before a job is on disk, or its answer to the insert is lost: a client learns what is certain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg

from tests.e2e.jobs import chat, completed, refused, submit
from tests.faults.chaos.proxy import Link, Mode, postgres_socket
from tests.service import (
    BOOTSTRAP_KEY,
    Stores,
    connect,
    embedded_stores,
    looking_at_rows,
    running_service,
)
from tests.waiting import eventually

# Makes each insert of a job wait for a lock once Postgres has its whole message: to parse it, Postgres only needs the
# table. Readers of jobs do not wait.
HOLDS_INSERTS = """
CREATE FUNCTION wait_for_lock() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1);
    RETURN NULL;
END $$;
CREATE TRIGGER wait_for_lock BEFORE INSERT ON jobs EXECUTE FUNCTION wait_for_lock();
"""

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


async def test_the_outcome_of_a_job_that_ran_while_its_insert_had_no_answer_is_unknown(
    tmp_path: Path, stores: Stores, config: str, model: str
) -> None:
    """The scheduler finds a job whose wake-up was never sent, and the API learns nothing over its own connections."""
    own = stores.fresh()
    with (
        contextlib.closing(Link(postgres_socket(own.database_url))) as link,
        running_service(tmp_path, own, config, "worker", "scheduler") as service,
    ):
        path = urlsplit(own.database_url).path
        service.launch("api", DATABASE_URL=f"postgresql://headrace@127.0.0.1:{link.port}{path}")
        service.wait_until_ready()
        async with (
            connect(service, BOOTSTRAP_KEY) as client,
            looking_at_rows(own) as rows,
            await psycopg.AsyncConnection.connect(own.database_url) as locking,
            asyncio.TaskGroup() as tasks,
        ):
            assert (await client.post("/chat/completions", json=chat(model))).status_code == 200
            await rows.execute(HOLDS_INSERTS)
            await locking.execute("SELECT pg_advisory_xact_lock(1)")
            request = tasks.create_task(client.post("/chat/completions", json=chat(model)))

            async def waits() -> bool:
                cursor = await rows.execute(
                    "SELECT FROM pg_stat_activity WHERE query LIKE '%INSERT INTO jobs%' AND wait_event_type = 'Lock'"
                )
                return cursor.rowcount > 0

            async def has_run() -> bool:
                states = await (await rows.execute("SELECT state FROM jobs")).fetchall()
                return [row["state"] for row in states] == ["completed"] * 2

            await eventually(waits, "the insert to wait for the lock")
            link.be(Mode.STALL)
            await locking.rollback()
            await eventually(has_run, "the end of the job")
            link.be(Mode.REFUSE)
            refused(await request, 504, code="outcome_unknown")
            link.be(Mode.PASS)
