"""The real service for tests: API, workers and scheduler as the `headrace` commands start them, on stores given.

Every process writes to a log file of its own, is known by its pid, and is ended by it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import httpx
import psycopg
from psycopg import sql
from psycopg.rows import DictRow, dict_row

from headrace.dev.postgres import EmbeddedPostgres
from headrace.dev.scratch import scratch_dir
from headrace.dev.store import EmbeddedStore
from headrace.dev.valkey import EmbeddedValkey
from tests.forks import Fork, fork
from tests.waiting import PATIENCE, eventually, until

ROOT = Path(__file__).resolve().parent.parent

PROVIDER_KEY = f"sk-provider-{secrets.token_hex(16)}"
"""The providers' key. Must never be seen but in the fake provider's ledger."""

BOOTSTRAP_KEY = f"hr_{secrets.token_urlsafe(32)}"

SECRET_KEY = "tests-secret-key-tests-secret-key"
"""The same for every service: stores outlive one."""

NAMESPACE = "tests"
"""Every service's namespace in Redis, whichever database it has."""

QUICK = {
    "HEADRACE_HEADER_WAIT_SECONDS": "1",
    "HEADRACE_PING_SECONDS": "0.5",
    "HEADRACE_SWEEP_SECONDS": "0.5",
    "HEADRACE_RESEND_SECONDS": "2",
    "HEADRACE_DRAIN_SECONDS": "1",
    "HEADRACE_CIRCUIT_FAILURES": "1000000",  # one test's broken provider is another one's
    "HEADRACE_WEBHOOK_ALLOW_PRIVATE": "true",
    "HEADRACE_MAX_BODY_BYTES": str(256 * 1024),
    "HEADRACE_SUBSCRIBERS_PER_KEY": "50",
}
"""What makes waiting short. Leases and heartbeats keep their defaults, so that a busy machine loses none."""

SHORT_LEASES = {"HEADRACE_HEARTBEAT_SECONDS": "1", "HEADRACE_LEASE_SECONDS": "4"}
"""For tests that kill workers: their jobs are rescued sooner."""


def catalogue(provider_url: str, second_url: str, absent_url: str) -> str:
    """Return a headrace.toml: one provider that is there, the same under a second name, and one that is not there."""
    return f"""
[providers.fake]
kind = "openai"
base_url = "{provider_url}"
api_key = "env:TESTS_PROVIDER_KEY"
timeout = 120
connect_timeout = 5
read_timeout = 60

[providers.second]
kind = "openai"
base_url = "{second_url}"
api_key = "env:TESTS_PROVIDER_KEY"

[providers.impatient]
kind = "openai"
base_url = "{provider_url}"
api_key = "env:TESTS_PROVIDER_KEY"
timeout = 1
connect_timeout = 1
read_timeout = 0.5

[providers.absent]
kind = "openai"
base_url = "{absent_url}"
api_key = "env:TESTS_PROVIDER_KEY"
connect_timeout = 1

[providers.claude]
kind = "anthropic"
base_url = "{provider_url}"
api_key = "env:TESTS_PROVIDER_KEY"

[providers.google]
kind = "gemini"
base_url = "{provider_url}"
api_key = "env:TESTS_PROVIDER_KEY"

[models."fake*"]
routes = ["fake/*"]
input_price = 2.50
output_price = 10.00

[models."anthropic-*"]
routes = ["claude/*"]
input_price = 3.00
output_price = 15.00

[models."responses-*"]
routes = [{{ route = "fake/*", format = "responses" }}]
input_price = 2.50
output_price = 10.00

[models."gemini-*"]
routes = ["google/*"]
input_price = 0.30
output_price = 2.50

[models."either-*"]
routes = ["claude/*", "fake/*"]

[models."impatient*"]
routes = ["impatient/*"]

[models."routed*"]
routes = ["second/*", "fake/*"]
input_price = 2.50
output_price = 10.00

[models."renamed"]
routes = ["fake/upstream-name"]

[models."detour*"]
routes = ["absent/*", "fake/*"]

[models."absent"]
routes = ["absent/absent"]
"""


_PORTS = range(20_000, 32_000)
"""Below the ports that systems choose by themselves, such as for a connection, which might take one before a test."""

_given_ports = set[int]()


def free_port() -> int:
    """Return a port that nothing listens on, and that was not returned before."""
    while True:
        port = secrets.choice(_PORTS)
        if port in _given_ports:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given_ports.add(port)
            return port


def run_command(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    directory: Path,
    output: Path,
    errors: Path | None = None,
    *,
    forked: bool = True,
) -> Fork | subprocess.Popen[bytes]:
    """Start a `headrace` command as the leader of a session; what it prints is appended to files.

    It is forked if it may be, unless its path asks for an interpreter of its own, one with another clock for instance.
    """
    if forked and sys.platform == "linux" and environment["PYTHONPATH"] == str(ROOT):
        return fork(arguments, environment, directory, output, errors)
    with output.open("ab") as out, (errors or output).open("ab") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "headrace", *arguments],
            env=dict(environment),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


class Command:
    """A `headrace` command whose output is kept."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        self._kept = tempfile.TemporaryDirectory()
        self._output, self._errors = Path(self._kept.name, "output"), Path(self._kept.name, "errors")
        self._errors.touch()
        self._process = run_command(arguments, environment, directory, self._output, self._errors)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def said(self) -> str:
        """Return what it has printed to its standard error so far."""
        return self._errors.read_text()

    def ended(self) -> Ended:
        """Return how it ended, once it has."""
        with self._kept:
            return Ended(self._process.wait(PATIENCE), self._output.read_text(), self._errors.read_text())


class Process:
    """One `headrace` command in a process group of its own."""

    def __init__(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], directory: Path, *, forked: bool
    ) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self._process = run_command(arguments, environment, directory, self.log, forked=forked)

    @property
    def pid(self) -> int:
        """The process's id, and its group's."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Return whether it has not ended."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send the whole group a signal."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # it has ended, or it has just been forked and is in no group of its own yet
            if self.running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, number)

    def kill(self) -> None:
        """End the group with SIGKILL."""
        self.signal(signal.SIGKILL)
        self._process.wait()

    def wait(self, patience: float = PATIENCE) -> int:
        """Return its exit code once it has ended by itself.

        Raises:
            subprocess.TimeoutExpired: It does not within `patience` seconds.
        """
        return self._process.wait(patience)

    def terminate(self, patience: float = PATIENCE) -> int:
        """Ask it to end with SIGTERM, see to it after `patience` seconds, and return its exit code."""
        if self.running:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
        self.kill()
        return self._process.wait()


@dataclass(frozen=True)
class Stores:
    """Where a service's rows and wake-ups are."""

    database_url: str
    redis_url: str
    postgres: EmbeddedStore
    valkey: EmbeddedStore

    def fresh(self) -> Stores:
        """Return an empty database and an empty keyspace on the same servers."""
        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return replace(
            self,
            database_url=urlunsplit(urlsplit(self.database_url)._replace(path=f"/{name}")),
            redis_url=f"{self.redis_url.rpartition('/')[0]}/{next(_KEYSPACES)}",
        )


_KEYSPACES = iter(range(1, 64))


@contextlib.contextmanager
def embedded_stores(**settings: str) -> Iterator[Stores]:
    """Yield stores that forget everything at their end, and so need not wait for the disk.

    `settings` are Postgres's.
    """
    with (
        scratch_dir() as directory,
        EmbeddedPostgres(directory / "postgres", {"fsync": "off", "full_page_writes": "off", **settings}) as postgres,
        EmbeddedValkey(directory / "valkey", {"databases": "64", "port": str(free_port())}) as valkey,
    ):
        yield Stores(postgres.url, valkey.url, postgres, valkey)


class Service:
    """A running service: `base_url` answers, and processes may be killed and started by name."""

    running: list[Service] = []  # noqa: RUF012  (who failed a test wants to see the logs of)

    def __init__(
        self,
        directory: Path,
        stores: Stores,
        config: str,
        environment: Mapping[str, str] | None = None,
        *,
        forked: bool = True,
    ) -> None:
        self._forked = forked
        self.directory = directory
        self.stores = stores
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.processes: dict[str, Process] = {}
        self._marks: dict[Path, int] = {}
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "models.toml").write_text(config)
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HEADRACE_", "OTEL_")) and not name.endswith("_API_KEY")
        }
        self._environment = {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "DATABASE_URL": stores.database_url,
            "REDIS_URL": stores.redis_url,
            "HEADRACE_CONFIG": str(directory / "models.toml"),
            "HEADRACE_DATA_DIR": str(directory / "data"),
            "HEADRACE_HOST": "127.0.0.1",
            "HEADRACE_PORT": str(self.port),
            "HEADRACE_BOOTSTRAP_KEY": BOOTSTRAP_KEY,
            "HEADRACE_SECRET_KEY": SECRET_KEY,
            "HEADRACE_REDIS_NAMESPACE": NAMESPACE,
            "TESTS_PROVIDER_KEY": PROVIDER_KEY,
            **QUICK,
            **(environment or {}),
        }

    def command(self, *arguments: str, **environment: str) -> Ended:
        """Run a `headrace` command to its end, however that is."""
        return Command(arguments, {**self._environment, **environment}, self.directory).ended()

    def run(self, *arguments: str) -> str:
        """Run a `headrace` command to its end and return what it printed.

        Raises:
            AssertionError: it failed.
        """
        ended = self.command(*arguments)
        assert ended.returncode == 0, f"headrace {' '.join(arguments)}:\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    def create_key(self, account: str, *options: str) -> dict[str, Any]:
        """Create an API key by the operator's command and return what it prints with `--json`."""
        printed: dict[str, Any] = json.loads(self.run("keys", "create", "--account", account, "--json", *options))
        return printed

    def launch(self, name: str, **environment: str) -> Process:
        """Start a part by name: its command is the name up to the first hyphen (`worker-2` is a `headrace worker`)."""
        process = Process(
            name, [name.partition("-")[0]], {**self._environment, **environment}, self.directory, forked=self._forked
        )
        self.processes[name] = process
        return process

    def start(self, *names: str) -> None:
        """Migrate, start these parts (or one of each), and return when the API is ready for requests."""
        Service.running.append(self)
        self.run("migrate")
        for name in names or ("api", "worker", "scheduler"):
            self.launch(name)
        if "api" in self.processes:
            self.wait_until_ready()

    def restore(self) -> None:
        """Bring back one of each part, where a test has killed some and started others."""
        for name, process in list(self.processes.items()):
            if name.partition("-")[0] != name:
                process.kill()
                del self.processes[name]
            elif not process.running:
                self.launch(name)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Return when `/readyz` says so.

        Raises:
            AssertionError: the API ended instead.
        """

        def ready() -> bool:
            assert self.processes["api"].running, f"the API ended:\n{self.tail()}"
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{self.base_url}/readyz", verify=False, timeout=5).status_code == 200
            return False

        until(ready, "readiness")

    def stop(self) -> None:
        """End every process by its pid, and see that none has logged a key.

        Raises:
            AssertionError: one has.
        """
        Service.running.remove(self)
        for process in self.processes.values():
            if process.running:
                process.signal(signal.SIGTERM)
        for process in self.processes.values():
            process.terminate()
        logs = self.logs()
        assert PROVIDER_KEY not in logs
        assert BOOTSTRAP_KEY not in logs

    def logs(self) -> str:
        """Return everything that every process has printed."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.directory.glob("*.log")))

    def mark(self) -> None:
        """Let `tail` begin here: what was logged before is another test's."""
        self._marks = {path: path.stat().st_size for path in self.directory.glob("*.log")}

    def tail(self, lines: int = 60) -> str:
        """Return the end of what each process has logged since `mark`."""
        shown = []
        for path in sorted(self.directory.glob("*.log")):
            text = path.read_bytes()[self._marks.get(path, 0) :].decode(errors="replace")
            shown += [f"--- {path.name}", *text.splitlines()[-lines:]]
        return "\n".join(shown)


@contextlib.contextmanager
def running_service(
    directory: Path, stores: Stores, config: str, *names: str, environment: Mapping[str, str] | None = None
) -> Iterator[Service]:
    """Yield a started service and stop it afterwards."""
    service = Service(directory, stores, config, environment)
    try:
        service.start(*names)
        yield service
    finally:
        service.stop()


def connect(service: Service, key: str | None) -> httpx.AsyncClient:
    """Return a client of a service; without a key it sends none."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=f"{service.base_url}/api/v1", headers=headers, timeout=60, verify=False)


@contextlib.asynccontextmanager
async def looking_at_rows(stores: Stores) -> AsyncIterator[psycopg.AsyncConnection[DictRow]]:
    """A connection to look at rows with."""
    async with await psycopg.AsyncConnection.connect(
        stores.database_url, autocommit=True, row_factory=dict_row
    ) as connection:
        yield connection


@contextlib.asynccontextmanager
async def second_api(service: Service, key: str, **environment: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an API process beside the service's own."""
    port = free_port()
    process = service.launch("api-2", HEADRACE_PORT=str(port), **environment)
    url, headers = f"http://127.0.0.1:{port}", {"authorization": f"Bearer {key}"}
    try:
        async with httpx.AsyncClient(base_url=f"{url}/api/v1", headers=headers, timeout=60) as client:

            async def answers() -> bool:
                assert process.running, f"the second API ended:\n{service.tail()}"
                with contextlib.suppress(httpx.TransportError):
                    return (await client.get("/account")).status_code == 200
                return False

            await eventually(answers, "the second API")
            yield client
    finally:
        process.terminate()
        del service.processes["api-2"]
