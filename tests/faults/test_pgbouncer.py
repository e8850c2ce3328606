"""The service behind PgBouncer: it works in session mode, and every part refuses the modes that keep no session."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from headrace.dev.scratch import scratch_dir
from headrace.stores.database import Database, execute
from headrace.stores.sessions import SessionsNotKeptError, check_sessions
from tests.e2e.jobs import chat, completed, submit
from tests.e2e.streams import chunks_of, text_of
from tests.fakes.provider import Provider, answer
from tests.service import BOOTSTRAP_KEY, Service, Stores, connect, free_port, running_service
from tests.waiting import until

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed: apt-get install pgbouncer")

Pooled = Callable[..., Stores]


@contextmanager
def pgbouncer(stores: Stores, **settings: str) -> Iterator[Stores]:
    """Give the stores with a URL that leads through a PgBouncer with some settings."""
    assert PROGRAM is not None
    url = urlsplit(stores.database_url)
    port = free_port()
    lines = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "any",
        "default_pool_size": "60",
        **settings,
    }
    if os.geteuid() == 0:  # PgBouncer refuses to be root
        lines["user"] = pwd.getpwnam("nobody").pw_name
    with scratch_dir() as directory:
        file = directory / "pgbouncer.ini"
        file.write_text(
            f"[databases]\n* = host={parse_qs(url.query)['host'][0]} user={url.username}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in lines.items())
        )
        file.chmod(0o644)
        with (directory / "log").open("w") as log:
            process = subprocess.Popen([PROGRAM, file], stdout=log, stderr=log)
        pooled = f"postgresql://{url.username}@127.0.0.1:{port}{url.path}"

        def answers() -> bool:
            assert process.poll() is None, (directory / "log").read_text()
            with suppress(psycopg.OperationalError), psycopg.connect(pooled, connect_timeout=2):
                return True
            return False

        try:
            until(answers, "PgBouncer")
            yield replace(stores, database_url=pooled)
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def pooled(stores: Stores) -> Iterator[Pooled]:
    """Makes stores whose fresh database is behind a PgBouncer with some settings."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(pgbouncer(stores.fresh(), **settings))


def leads(service: Service, name: str) -> bool:
    return "this scheduler leads" in service.processes[name].log.read_text()


async def test_in_session_mode_the_service_works(
    tmp_path: Path, pooled: Pooled, config: str, provider: Provider, model: str
) -> None:
    provider.always(model, answer("all of it"))
    with running_service(tmp_path / "service", pooled(pool_mode="session"), config) as service:
        async with connect(service, BOOTSTRAP_KEY) as client:
            for _ in range(10):  # more often than psycopg runs a statement before it prepares it
                await completed(client, await submit(client, model))
            response = await client.post("/chat/completions", json=chat(model, stream=True))
            assert text_of(await chunks_of(response)) == "all of it"
        service.launch("scheduler-2")
        [first] = [name for name in service.processes if name.startswith("scheduler") and name != "scheduler-2"]
        until(lambda: leads(service, first), "the first scheduler to lead")
        service.processes[first].kill()
        until(lambda: leads(service, "scheduler-2"), "the second scheduler to lead")


async def test_in_session_mode_a_session_keeps_its_settings(pooled: Pooled) -> None:
    database = Database.connect(pooled(pool_mode="session").database_url, connections=2, part="worker")
    try:
        for _ in range(3):
            await asyncio.gather(*(execute(database.durable, "SELECT pg_sleep(0.01)") for _ in range(4)))
            [(commit, name)] = await execute(
                database.relaxed,
                "SELECT current_setting('synchronous_commit') AS commit, current_setting('application_name') AS name",
            )
            assert (commit, name) == ("off", "headrace worker")
    finally:
        await database.close()


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_mode_without_sessions_is_refused_by_every_part(
    tmp_path: Path, pooled: Pooled, config: str, mode: str
) -> None:
    service = Service(tmp_path / "service", pooled(pool_mode=mode), config)
    for command in (["api"], ["worker"], ["scheduler"], ["migrate"], ["keys", "list"]):
        ended = service.command(*command)
        assert ended.returncode == 1
        assert re.fullmatch(r"Error: DATABASE_URL leads through a pooler in .*\n", ended.stderr), ended.stderr


@pytest.mark.parametrize("turns", ["0", "1"])
async def test_a_mode_without_sessions_is_seen_while_others_use_the_pool(pooled: Pooled, turns: str) -> None:
    url = pooled(pool_mode="transaction", server_round_robin=turns, default_pool_size="8").database_url

    over = asyncio.Event()

    async def use() -> None:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True, prepare_threshold=None) as connection:
            while not over.is_set():
                await connection.execute("SELECT pg_sleep(0.001)")

    others = [asyncio.create_task(use()) for _ in range(6)]
    try:
        for _ in range(20):
            with pytest.raises(SessionsNotKeptError):
                await check_sessions(url, "worker")
    finally:
        over.set()  # a cancelled statement would wait for an answer that a pooler may give to another client
        await asyncio.gather(*others, return_exceptions=True)


async def test_session_mode_is_never_taken_for_another(pooled: Pooled) -> None:
    url = pooled(pool_mode="session", server_round_robin="1").database_url
    for _ in range(20):
        await asyncio.gather(*(check_sessions(url, "worker") for _ in range(4)))
