"""The service that is broken: two of each part, behind links of its kind, and stores that come back where they were."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg
from redis import Redis

from headrace.dev.postgres import EmbeddedPostgres
from headrace.dev.scratch import scratch_dir
from headrace.dev.store import EmbeddedStore
from headrace.dev.valkey import EmbeddedValkey
from headrace.keys.queries import create_key
from headrace.stores.database import Database
from headrace.stores.migrate import migrate
from tests.fakes.provider import Provider, running_provider
from tests.fakes.receiver import listening
from tests.faults.chaos import steps
from tests.faults.chaos.hooks import Hooks
from tests.faults.chaos.memory import Memory
from tests.faults.chaos.plan import (
    ALL_WORKERS,
    APIS,
    CLIENT_LINKS,
    PROVIDER_LINK,
    SCHEDULERS,
    STORE_LINKS,
    WORKERS,
    Fault,
)
from tests.faults.chaos.proxy import Link, Mode, postgres_socket
from tests.faults.chaos.upstreams import Upstreams, catalogue
from tests.service import QUICK, Process, Service, Stores
from tests.waiting import until

_MODES = {mode.value for mode in Mode}
_STEPPED = ("wake", "lock-jobs", "fail-over")
_STORES = ("kill-redis", "empty-redis", "away-redis", "kill-postgres", "restart-postgres", "away-postgres")
# Far beyond what a part needs that is told to end: to drain, and then to hand back.
_END_SECONDS = 60.0

# Seconds for running jobs to end once their worker is told to: fewer than some answers take, so that jobs are handed
# back, and streams that have begun break off.
DRAIN_SECONDS = 5.0

# Everything as an operator has it, but for what tests cannot wait for.
_ENVIRONMENT = {
    **dict.fromkeys(QUICK, ""),
    "HEADRACE_UNSTORED_SECONDS": "120",
    "HEADRACE_WEBHOOK_ALLOW_PRIVATE": "true",
}


@dataclass(frozen=True, slots=True)
class Kill:
    """A worker that was killed, when by the clock, and the attempts that it had."""

    at: float
    attempts: list[tuple[str, int]]


@dataclass(slots=True)
class Happening:
    """A fault, and when by the clock it began and was over."""

    fault: Fault
    began: float
    ended: float
    """Until it is over: when it is to be."""
    over: bool = False
    steps: Iterator[None] = field(default_factory=lambda: iter(()))
    """The remaining steps of a fault that has steps."""


@dataclass(slots=True)
class Rig:
    """All that runs. Faults are done from the main thread, which the stores die with."""

    service: Service
    provider: Provider
    upstreams: Upstreams
    hooks: Hooks
    links: dict[str, Link]
    ports: dict[str, int]
    done: Counter[str] = field(default_factory=Counter)
    history: list[Happening] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Parts that ended by themselves, or did not when they were told to."""
    memory: Memory = field(default_factory=Memory)
    _launched: dict[str, float] = field(default_factory=dict)

    @property
    def database_url(self) -> str:
        """Postgres itself, around all links."""
        return self.service.stores.database_url

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the APIs are."""
        return tuple(f"http://127.0.0.1:{port}" for port in self.ports.values())

    @property
    def linked_urls(self) -> tuple[str, ...]:
        """Where clients find them: behind links."""
        return tuple(f"http://127.0.0.1:{self.links[name].port}" for name in CLIENT_LINKS)

    def create_key(self, account: str) -> str:
        """Return a key of an account."""

        async def create() -> str:
            database = Database.connect(self.database_url, connections=1)
            try:
                return (await create_key(database, account=account))[1]
            finally:
                await database.close()

        return asyncio.run(create())

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start every part, and return when all serve. They stop with the stack."""
        Service.running.append(self.service)
        stack.callback(self.service.stop)
        for name in (*APIS, *WORKERS, *SCHEDULERS):
            self.launch(name)
        self.wait_until_whole()

    def launch(self, name: str) -> Process:
        """Start a part behind its links."""
        kind = name.partition("-")[0]
        redis = urlsplit(self.service.stores.redis_url)
        link = self.links[f"{kind}-redis"]
        environment = {
            "DATABASE_URL": f"postgresql://headrace@127.0.0.1:{self.links[f'{kind}-postgres'].port}/headrace",
            "REDIS_URL": redis._replace(netloc=f":{redis.password}@127.0.0.1:{link.port}").geturl(),
            "HEADRACE_PORT": str(self.ports.get(name, 0)),
        }
        self._launched[name] = time.time()
        return self.service.launch(name, **environment)

    def run(self, faults: Sequence[Fault], seconds: float) -> None:
        """Do each fault at its time, or once its target is whole again, and return when all are over."""
        began = time.monotonic()
        waiting, active = list(faults), list[Happening]()
        while waiting or active or time.monotonic() - began < seconds:
            now = time.monotonic() - began
            for happening in list(active):
                if happening.ended <= time.time() and self._over(happening):
                    happening.ended, happening.over = time.time(), True
                    active.remove(happening)
            for fault in [fault for fault in waiting if fault.at <= now]:
                if not any(_clash(fault, other.fault) for other in active):
                    waiting.remove(fault)
                    active.append(self._begin(fault))
            broken = {part for happening in active for part in _parts(happening.fault)}
            self._look_after(self.service.processes.keys() - broken)
            self.memory.look(self.service.processes, self._launched)
            time.sleep(0.05)

    def settle(self) -> None:
        """Measure what memory is left in use, and note where that is too much."""
        self.memory.settle(self.service.processes, self._launched)
        self.wrong += self.memory.problems()

    def wait_until_whole(self) -> None:
        """Return when both APIs are ready: everything else is, or comes by itself."""
        for name in APIS:
            until(partial(self._answers, name, "readyz"), f"{name} to be ready")

    # -- one fault ----------------------------------------------------------------------------------------------------

    def _begin(self, fault: Fault) -> Happening:
        self.done[f"{fault.kind} {fault.target}"] += 1
        happening = Happening(fault, time.time(), 0)
        self.history.append(happening)
        if fault.kind in _MODES:
            self.links[fault.target].be(Mode(fault.kind))
        elif fault.kind in _STEPPED:
            happening.steps = self._steps(fault)
            return happening
        elif fault.kind in _STORES:
            self._break(fault)
        else:
            process = self.service.processes[fault.target]
            if fault.kind == "kill":
                if fault.target in WORKERS:
                    self._note(process)
                process.kill()
            else:
                process.signal(signal.SIGSTOP if fault.kind == "freeze" else signal.SIGTERM)
        happening.ended = time.time() + fault.seconds
        return happening

    def _over(self, happening: Happening) -> bool:
        """Mend it, and tell whether that is done."""
        fault = happening.fault
        if fault.kind in _MODES:
            self.links[fault.target].be(Mode.PASS)
        elif fault.kind in _STEPPED:
            return self._step(happening)
        elif fault.kind in _STORES:
            self._store(fault).start()
        elif fault.kind == "freeze":
            self.service.processes[fault.target].signal(signal.SIGCONT)
        elif fault.kind == "roll" and self._launched[fault.target] > happening.began:
            self._look_after({happening.fault.target})
            return fault.target not in APIS or self._answers(fault.target, "healthz")
        else:
            process = self.service.processes[fault.target]
            if process.running and time.time() < happening.began + fault.seconds + _END_SECONDS:
                return False
            if process.running:
                self.wrong.append(f"{fault.target} did not end within {_END_SECONDS:g} s of SIGTERM")
                process.kill()
            self.launch(fault.target)
            return fault.kind != "roll"
        return True

    def _steps(self, fault: Fault) -> Iterator[None]:
        if fault.kind == "wake":
            return steps.wake_after_rescue(self.database_url, {name: self.service.processes[name] for name in WORKERS})
        if fault.kind == "lock-jobs":
            return steps.lock_jobs(self.database_url, fault.seconds)
        return steps.fail_over(self.database_url, fault.seconds)

    def _step(self, happening: Happening) -> bool:
        """Take the next step, and tell whether it was the last."""
        try:
            next(happening.steps)
        except StopIteration:
            return True
        except steps.NotMendedError as error:
            self.wrong.append(str(error))
            return True
        return False

    def _look_after(self, names: Collection[str]) -> None:
        """Restart parts that ended by themselves, as a supervisor would, and note it."""
        for name in names:
            process = self.service.processes[name]
            if process.running:
                continue
            # A part that starts while Postgres is unavailable cannot begin, and exits.
            kind = name.partition("-")[0]
            if self._broken_since(self._launched[name], {"postgres", f"{kind}-postgres"}):
                self.done[f"(no start without Postgres) {name}"] += 1
            else:
                code = process.wait()
                self.wrong.append(f"{name} ended by itself, with {code}: see {process.log.name}")
            self.launch(name)

    def _broken_since(self, since: float, targets: set[str]) -> bool:
        return any(
            happening.fault.target in targets and (happening.ended > since or not happening.over)
            for happening in self.history
        )

    def _answers(self, name: str, path: str) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{self.ports[name]}/{path}", timeout=2).status_code == 200
        return False

    def _store(self, fault: Fault) -> EmbeddedStore:
        stores = self.service.stores
        return stores.valkey if fault.target == "redis" else stores.postgres

    def _break(self, fault: Fault) -> None:
        store = self._store(fault)
        assert store.pid is not None
        if fault.kind == "empty-redis":
            with Redis.from_url(self.service.stores.redis_url) as redis:
                redis.flushall()
        if fault.kind.startswith("kill"):
            os.kill(store.pid, signal.SIGKILL)
        store.stop()

    def _note(self, worker: Process) -> None:
        """Note the attempts of a worker that is about to die."""
        options = steps.NO_WAIT
        with (
            contextlib.suppress(psycopg.Error),
            psycopg.connect(self.database_url, connect_timeout=1, options=options) as connection,
        ):
            rows = connection.execute(
                "SELECT id, attempt FROM jobs WHERE state = 'running' AND split_part(worker, ':', 2) = %s",
                [str(worker.pid)],
            ).fetchall()
            self.kills.append(Kill(time.time(), rows))


def _clash(fault: Fault, other: Fault) -> bool:
    """Return whether one has to wait for the other: a part is broken once at a time, and parts roll one by one."""
    return not _parts(fault).isdisjoint(_parts(other)) or fault.kind == other.kind == "roll"


def _parts(fault: Fault) -> set[str]:
    """Return the parts that a fault befalls, and those that it has to find whole."""
    if fault.kind == "fail-over":  # it checks that jobs are accepted and end soon
        return {fault.target, "api-postgres", "worker-postgres"}
    return {*WORKERS, "postgres"} if fault.target == ALL_WORKERS else {fault.target}


def _port() -> int:
    """Return a free port that no outgoing connection takes while its listener is dead."""
    while True:
        port = random.randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def running_rig(
    directory: Path, seed: int, *, forked: bool = True, drain_seconds: float = DRAIN_SECONDS
) -> Iterator[Rig]:
    """Start everything; logs and the catalogue are in the directory. Processes that are not forked take longer."""
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_dir())
        # Killing Postgres does not lose writes that the operating system has: no commit need wait for the disk.
        options = {"max_connections": "300", "fsync": "off", "full_page_writes": "off"}
        postgres = stack.enter_context(EmbeddedPostgres(scratch / "postgres", options))
        redis_port = _port()
        valkey = stack.enter_context(EmbeddedValkey(scratch / "valkey", {"port": str(redis_port)}))
        provider = stack.enter_context(running_provider())
        hooks = stack.enter_context(listening(Hooks))
        ports = {name: _port() for name in APIS}
        targets: dict[str, int | Path] = {
            **{
                name: postgres_socket(postgres.url) if name.endswith("postgres") else redis_port for name in STORE_LINKS
            },
            **dict(zip(CLIENT_LINKS, ports.values(), strict=True)),
            PROVIDER_LINK: provider.port,
        }
        links = {name: Link(target) for name, target in targets.items()}
        for link in links.values():
            stack.callback(link.close)
        stores = Stores(postgres.url, valkey.url, postgres, valkey)
        config = catalogue(provider.port, links[PROVIDER_LINK].port)
        environment = {**_ENVIRONMENT, "HEADRACE_DRAIN_SECONDS": f"{drain_seconds:g}"}
        service = Service(directory, stores, config, environment, forked=forked)
        rig = Rig(service, provider, Upstreams.scripted(provider, seed), hooks, links, ports)
        migrate(postgres.url)
        rig.start(stack)
        yield rig


def until_quiet(database_url: str, told: Callable[[], set[str]], patience: float) -> bool:
    """Wait until every job and batch has ended, all their webhooks are delivered, and the sums count every row.

    `told` are the ids of webhooks that were taken. Returns whether it became so.
    """

    def quiet() -> bool:
        with psycopg.connect(database_url, connect_timeout=2) as connection:
            row = connection.execute(
                """
                SELECT (SELECT count(*) FROM jobs WHERE finished_at IS NULL)
                     + (SELECT count(*) FROM batches WHERE state IN ('validating', 'in_progress', 'finalizing',
                                                                     'cancelling'))
                     + (SELECT count(*) FROM webhook_deliveries WHERE state = 'pending' AND id <> ALL(%s))
                     + (SELECT count(*) FROM usage, usage_mark WHERE usage.transaction >= usage_mark.transaction)
                """,
                [sorted(told())],
            ).fetchone()
            return row is not None and row[0] == 0

    with contextlib.suppress(TimeoutError):
        return bool(until(quiet, "everything to end", patience))
    return False
