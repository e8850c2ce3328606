"""The service that is broken: two of each part, behind links of its kind, and stores that come back where they were."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from redis import Redis

from headrace.embedded import EmbeddedPostgres, EmbeddedStore, EmbeddedValkey, scratch_dir
from tests.faults.chaos.plan import APIS, LINKS, PROVIDER_LINK, SCHEDULERS, WORKERS, Fault
from tests.faults.chaos.proxy import Link, Mode
from tests.provider import Provider, running_provider
from tests.service import PROVIDER_KEY, Process, Service, Stores, free_port, until

_MODES = {mode.value for mode in Mode}


@dataclass(slots=True)
class Kill:
    """A worker that was killed, when by the clock, and the attempts that it had."""

    at: float
    attempts: list[tuple[str, int]]


@dataclass(slots=True)
class Rig:
    """All that runs. Faults are done from the main thread, which the stores die with."""

    service: Service
    provider: Provider
    links: dict[str, Link]
    ports: tuple[int, int]
    done: Counter[str] = field(default_factory=Counter)
    kills: list[Kill] = field(default_factory=list)

    @property
    def database_url(self) -> str:
        """Postgres itself, around all links."""
        return self.service.stores.database_url

    def launch(self, name: str) -> Process:
        """Start a part behind its links."""
        kind = name.partition("-")[0]
        stores = self.service.stores
        redis = urlsplit(stores.redis_url)
        link = self.links[f"{kind}-redis"]
        environment = {
            "DATABASE_URL": f"postgresql://headrace@127.0.0.1:{self.links[f'{kind}-postgres'].port}/headrace",
            "REDIS_URL": redis._replace(netloc=f":{redis.password}@127.0.0.1:{link.port}").geturl(),
            "HEADRACE_PORT": str(self.ports[name == "api-2"]),
        }
        return self.service.launch(name, **environment)

    def begin(self, fault: Fault) -> None:
        """Do it."""
        self.done[f"{fault.kind} {fault.target}" if fault.kind not in _MODES else f"{fault.kind} link"] += 1
        if fault.kind in _MODES:
            self.links[fault.target].be(Mode(fault.kind))
        elif fault.kind == "kill":
            if fault.target in WORKERS:
                self._note(self.service.processes[fault.target])
            self.service.processes[fault.target].kill()
        elif fault.kind == "terminate":
            self.service.processes[fault.target].signal(signal.SIGTERM)
        else:
            self._break(fault)

    def end(self, fault: Fault) -> None:
        """Have it be over."""
        if fault.kind in _MODES:
            self.links[fault.target].be(Mode.PASS)
        elif fault.kind == "terminate":
            self.service.processes[fault.target].terminate(patience=60)
            self.launch(fault.target)
        elif fault.kind == "kill":
            self.launch(fault.target)
        else:
            store = self._store(fault)
            store.start()

    def heal(self) -> None:
        """Bring back whatever is not there."""
        for link in self.links.values():
            link.be(Mode.PASS)
        for store in (self.service.stores.postgres, self.service.stores.valkey):
            store.start()
        for name, process in self.service.processes.items():
            if not process.running:
                self.launch(name)

    def _store(self, fault: Fault) -> EmbeddedStore:
        stores = self.service.stores
        return stores.valkey if fault.kind.endswith("redis") else stores.postgres

    def _break(self, fault: Fault) -> None:
        store = self._store(fault)
        if store.pid is None:  # it is broken already
            return
        if fault.kind == "empty-redis":
            with Redis.from_url(self.service.stores.redis_url) as redis:
                redis.flushall()
        if fault.kind.startswith("kill"):
            os.kill(store.pid, signal.SIGKILL)
        store.stop()

    def _note(self, worker: Process) -> None:
        """Note what a worker has that is about to die."""
        with contextlib.suppress(psycopg.Error), psycopg.connect(self.database_url, connect_timeout=1) as connection:
            rows = connection.execute(
                "SELECT id, attempt FROM jobs WHERE state = 'running' AND split_part(worker, ':', 2) = %s",
                [str(worker.pid)],
            ).fetchall()
            self.kills.append(Kill(time.time(), rows))


def _catalogue(provider_port: int) -> str:
    return f"""
[providers.fake]
kind = "openai"
base_url = "http://127.0.0.1:{provider_port}/v1"
api_key = "env:TESTS_PROVIDER_KEY"
timeout = 60
connect_timeout = 2
read_timeout = 15

[providers.impatient]
kind = "openai"
base_url = "http://127.0.0.1:{provider_port}/v1"
api_key = "env:TESTS_PROVIDER_KEY"
timeout = 3
connect_timeout = 2
read_timeout = 1

[models."fake-*"]
routes = ["fake/*"]
input_price = 2.50
output_price = 10.00

[models."impatient-*"]
routes = ["impatient/*"]
input_price = 2.50
output_price = 10.00
"""


@contextlib.contextmanager
def running_rig(directory: Path) -> Iterator[Rig]:
    """Start everything; logs and the catalogue are in the directory."""
    with (
        scratch_dir() as scratch,
        EmbeddedPostgres(scratch / "postgres", {"max_connections": "300"}) as postgres,
        EmbeddedValkey(scratch / "valkey") as valkey,
        running_provider() as provider,
        contextlib.ExitStack() as stack,
    ):
        (socket,) = (scratch / "postgres" / "socket").glob(".s.PGSQL.*[0-9]")
        valkey_port = urlsplit(valkey.url).port
        assert valkey_port is not None
        links = {name: Link(socket if name.endswith("postgres") else valkey_port) for name in LINKS}
        links[PROVIDER_LINK] = Link(provider.port)
        for link in links.values():
            stack.callback(link.close)
        stores = Stores(postgres.url, valkey.url, postgres, valkey)
        service = Service(directory, stores, _catalogue(links[PROVIDER_LINK].port), {"HEADRACE_DRAIN_SECONDS": "5"})
        rig = Rig(service, provider, links, (service.port, free_port()))
        stack.callback(service.stop)
        service.run("migrate")
        Service.running.append(service)
        for name in (*APIS, *WORKERS, *SCHEDULERS):
            rig.launch(name)
        service.wait_until_ready()
        assert PROVIDER_KEY
        yield rig


def until_quiet(database_url: str, patience: float) -> bool:
    """Wait until every job and every batch has ended; returns whether they have."""

    def quiet() -> bool:
        with psycopg.connect(database_url) as connection:
            row = connection.execute(
                "SELECT (SELECT count(*) FROM jobs WHERE finished_at IS NULL) + (SELECT count(*) FROM batches "
                "WHERE state IN ('validating', 'in_progress', 'finalizing', 'cancelling'))"
            ).fetchone()
            return row is not None and row[0] == 0

    with contextlib.suppress(TimeoutError):
        return bool(until(quiet, "every job to end", patience))
    return False
