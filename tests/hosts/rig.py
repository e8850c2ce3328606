"""The service on several hosts: two of each part, a Postgres with a standby, a Valkey, a provider, clients."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg

from headrace.dev.postgres import EmbeddedPostgres
from headrace.dev.scratch import scratch_dir
from headrace.dev.valkey import EmbeddedValkey
from headrace.stores.migrate import migrate
from tests.fakes.provider import running_provider
from tests.fakes.receiver import listening
from tests.faults.chaos.hooks import Hooks
from tests.faults.chaos.plan import APIS, SCHEDULERS, WORKERS, Fault
from tests.faults.chaos.rig import Happening, Rig
from tests.faults.chaos.upstreams import Upstreams, catalogue
from tests.hosts.network import VIRTUAL, Network
from tests.service import QUICK, ROOT, Process, Service, Stores
from tests.waiting import until

STANDBY = "postgres-2"
HOSTS = ("client", "postgres-1", STANDBY, "redis", *APIS, *WORKERS, *SCHEDULERS, "provider")
_PORT = 8700
_POSTGRES_PORT = 5432
_REDIS_PORT = 6379
# Only our own processes reach these namespaces.
_HBA = "local all all trust\nhost all all 0.0.0.0/0 trust\nhost replication all 0.0.0.0/0 trust\n"

# Everything as an operator has it, but for what tests cannot wait for.
_ENVIRONMENT = {
    **dict.fromkeys(QUICK, ""),
    "PYTHONPATH": f"{ROOT}/",  # not ROOT itself, by which it would be forked by a process that is on no host
    "HEADRACE_HOST": "0.0.0.0",  # a namespace of its own
    "HEADRACE_PORT": str(_PORT),
    "HEADRACE_DRAIN_SECONDS": "5",
    "HEADRACE_UNSTORED_SECONDS": "120",
    "HEADRACE_WEBHOOK_ALLOW_PRIVATE": "true",
}


@dataclass(slots=True)
class HostsRig(Rig):
    """All that runs, each part on a host of its own; parts find Postgres at the virtual address."""

    network: Network = field(default_factory=lambda: Network(()))
    primary: EmbeddedPostgres | None = None
    """Where the rows are."""
    standby: EmbeddedPostgres | None = None

    @property
    def database_url(self) -> str:
        """The Postgres that is the primary now, by its socket: around the network."""
        assert self.primary is not None
        return self.primary.url

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the APIs are."""
        return tuple(self.url(name) for name in APIS)

    def url(self, api: str) -> str:
        """Return where an API is."""
        return f"http://{self.network.address(api)}:{_PORT}"

    def launch(self, name: str) -> Process:
        """Start a part on its host."""
        self._launched[name] = time.time()
        with self.network.inside(name):
            return self.service.launch(name)

    def wait_until_whole(self) -> None:
        """Return when both APIs are ready."""
        for name in APIS:
            until(partial(self._is_ready, name), f"{name} to be ready", 60)

    def _is_ready(self, api: str) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url(api)}/readyz", timeout=2, trust_env=False).status_code == 200
        return False

    @contextlib.contextmanager
    def happening(self, kind: str, target: str) -> Iterator[None]:
        """Note that something is broken while within."""
        happening = Happening(Fault(0, kind, target, 0), time.time(), 0)
        self.history.append(happening)
        self.done[f"{kind} {target}"] += 1
        try:
            yield
        finally:
            happening.ended, happening.over = time.time(), True

    def lose(self, host: str) -> None:
        """Pull a host's cable out and kill all that runs on it."""
        self.network.plug(host, out=True)
        for pid in self.network.processes(host):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.service.processes[host].wait()

    def leader(self) -> str | None:
        """Return the scheduler that leads now, or None while none does."""
        with psycopg.connect(self.database_url) as connection:
            found = connection.execute(
                "SELECT host(client_addr) FROM pg_locks JOIN pg_stat_activity USING (pid)"
                " WHERE locktype = 'advisory' AND granted AND client_addr IS NOT NULL"
            ).fetchall()
        leaders = [name for name in SCHEDULERS if (self.network.address(name),) in found]
        return leaders[0] if len(leaders) == 1 else None

    def fail_over(self) -> None:
        """Make the primary read-only, promote the standby, and have the virtual address go there a while later."""
        old, new = self.primary, self.standby
        assert old is not None
        assert new is not None
        with psycopg.connect(old.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            connection.execute("SELECT pg_reload_conf()")
            time.sleep(1)  # for what has begun to commit
            row = connection.execute("SELECT pg_current_wal_lsn()").fetchone()
            assert row is not None
        with psycopg.connect(new.url, autocommit=True) as connection:

            def caught_up() -> bool:
                found = connection.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", row).fetchone()
                return found is not None and bool(found[0])

            until(caught_up, "the standby to have all", 30)
            connection.execute("SELECT pg_promote()")
        time.sleep(2)  # until it is noticed: the old primary answers meanwhile
        self.primary, self.standby = new, old
        self.network.move_virtual(STANDBY)


@contextlib.contextmanager
def running_rig(network: Network, directory: Path, seed: int) -> Iterator[HostsRig]:
    """Start everything; logs and the catalogue are in the directory. This thread is the clients' host afterwards."""
    network.enter("client")
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_dir())
        hba = scratch / "pg_hba.conf"
        hba.write_text(_HBA)
        hba.chmod(0o644)
        options = {
            "max_connections": "300",
            "fsync": "off",  # this machine stays: nothing need wait for its disk
            "full_page_writes": "off",
            "listen_addresses": "*",
            "port": str(_POSTGRES_PORT),
            "hba_file": str(hba),
        }
        primary = EmbeddedPostgres(scratch / "postgres", options)
        with network.inside("postgres-1"):
            primary.start()
            migrate(primary.url)
            primary.stop()
            _copy(primary, scratch / "standby")
            stack.enter_context(primary)
        source = f"host={network.address('postgres-1')} port={_POSTGRES_PORT} user=headrace"
        standby = EmbeddedPostgres(scratch / "standby", {**options, "primary_conninfo": source})
        with network.inside(STANDBY):
            stack.enter_context(standby)
        network.move_virtual("postgres-1")
        valkey = EmbeddedValkey(scratch / "valkey", {"bind": "0.0.0.0", "port": str(_REDIS_PORT)})
        with network.inside("redis"):
            stack.enter_context(valkey)
        address = network.address("provider")
        with network.inside("provider"):
            provider = stack.enter_context(running_provider(address))
            hooks = stack.enter_context(listening(Hooks, address))
        redis = urlsplit(valkey.url)
        netloc = f":{redis.password}@{network.address('redis')}:{_REDIS_PORT}"
        environment = {
            "DATABASE_URL": f"postgresql://headrace@{VIRTUAL}:{_POSTGRES_PORT}/headrace",
            "REDIS_URL": redis._replace(netloc=netloc).geturl(),
        }
        config = catalogue(provider.port, provider.port).replace("127.0.0.1", address)
        stores = Stores(primary.url, valkey.url, primary, valkey)
        service = Service(directory, stores, config, {**_ENVIRONMENT, **environment})
        rig = HostsRig(
            service,
            provider,
            Upstreams.scripted(provider, seed),
            hooks,
            {},
            {},
            network=network,
            primary=primary,
            standby=standby,
        )
        rig.start(stack)
        yield rig


def _copy(primary: EmbeddedPostgres, data_dir: Path) -> None:
    """Make a standby's cluster from a stopped primary."""
    data_dir.mkdir(mode=0o711)
    subprocess.run(["cp", "-a", primary.data_dir / "cluster", data_dir / "cluster"], check=True)
    status = (data_dir / "cluster").stat()
    signal_file = data_dir / "cluster" / "standby.signal"
    signal_file.touch()
    shutil.chown(signal_file, status.st_uid, status.st_gid)
