"""Postgres and Valkey on this machine, from the programs in their Python wheels: no container, service or account.

Each store lives in a directory of its own, and only the user who started it can reach it, through a Unix socket in a
closed directory. It ends when its starter ends, even by `kill -9`. Postgres refuses to run as root, so a store that
root starts runs as the user `nobody`. Root keeps its own files outside that user's directories.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from headrace.dev.data_dir import DataDir
from headrace.dev.errors import EmbeddedStoreError, data_dir_errors
from headrace.dev.processes import die_with_parent, may_have_ended
from headrace.dev.programs import find_program
from headrace.dev.user import StoreUser

# Seconds until a server answers; crash recovery of a large database takes its time.
_START_SECONDS = 60.0
# Seconds that a server gets to end after each signal.
_STOP_SECONDS = 30.0
# Seconds between two questions whether a server answers.
_POLL_SECONDS = 0.02
# Bytes of a socket's path, `sockaddr_un.sun_path`: 108 on Linux, 104 on macOS, with a closing zero.
_SOCKET_PATH_BYTES = 103


class EmbeddedStore(ABC):
    """One server over one directory: prepared, started and stopped."""

    name: ClassVar[str]
    variable: ClassVar[str]
    """The setting with the URL of a server that is used instead."""
    distribution: ClassVar[str]
    """The wheel that has the server's programs."""
    stop_signal: ClassVar[signal.Signals]
    socket_name: ClassVar[str]
    """Of the server's Unix socket."""

    def __init__(self, data_dir: Path, options: Mapping[str, str] | None = None) -> None:
        """Name the directory, and the server's settings that differ from ours. `start` starts the server."""
        self.user = StoreUser()
        self.options = dict(options or {})
        self._dir = DataDir(data_dir, self.user, store=self.name)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        """The store's directory."""
        return self._dir.path

    @property
    def socket_dir(self) -> Path:
        """Where the server's Unix socket is: in the store's directory, or elsewhere if that makes its path too long."""
        inside = self.data_dir / "socket"
        if len(os.fsencode(inside / self.socket_name)) <= _SOCKET_PATH_BYTES:
            return inside
        digest = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:16]
        return Path(tempfile.gettempdir(), f"headrace-{digest}")

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL for clients; it stays the same after a restart."""

    @property
    def pid(self) -> int | None:
        """The server's process id, or None while it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    async def ended(self) -> None:
        """Return once the server does not run."""
        while (pid := self.pid) is not None:
            await may_have_ended(pid)

    def start(self) -> str:
        """Start the server, wait until it answers, and return its URL. Call it from a thread that stays.

        Raises:
            EmbeddedStoreError: The directory is in use, or the server does not answer in time.
            SettingError: The directory cannot be made or written, or the server cannot reach it.
        """
        if self.pid is not None:
            return self.url
        try:
            with data_dir_errors(self.data_dir):
                self._dir.take()
                self.user.make_dir(self.socket_dir)
                self._prepare()
                self._launch()
                self._wait_until_ready()
                self._dir.publish(self.url)
        except BaseException:
            self.stop()
            raise
        return self.url

    def stop(self) -> None:
        """Shut the server down, wait until it has ended, and release the directories. Harmless if it does not run."""
        if self._process is not None:
            for signal_number in (self.stop_signal, signal.SIGQUIT, signal.SIGKILL):
                if self._process.poll() is None:
                    self._process.send_signal(signal_number)
                try:
                    self._process.wait(_STOP_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    continue
            self._process = None
        # While the directory is this store's, no other one can have begun to listen there.
        if self._dir.is_taken and self.socket_dir.parent != self.data_dir:
            shutil.rmtree(self.socket_dir, ignore_errors=True)
        self._dir.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def _prepare(self) -> None:
        """Find the server's program, and make what its first start needs."""

    @abstractmethod
    def _launch(self) -> None:
        """Start the server with `_spawn`."""

    @abstractmethod
    def _answers(self) -> bool:
        """Return whether the server accepts a connection."""

    def _program(self, path: str) -> Path:
        """Return a program of the store's wheel by its path there.

        Raises:
            EmbeddedStoreError: The wheel is not installed, or is for another machine.
        """
        return find_program(
            path, distribution=self.distribution, variable=self.variable, user=self.user, copies=self.data_dir
        )

    def _spawn(self, command: list[str | Path], *, stdin: bytes = b"") -> None:
        with (
            self._dir.take_server_lock() as server_lock,
            self._dir.open_log() as log,
            tempfile.TemporaryFile() as configuration,
        ):
            configuration.write(stdin)
            configuration.seek(0)
            self._process = subprocess.Popen(
                command,
                stdin=configuration,
                stdout=log,
                stderr=log,
                pass_fds=[server_lock.fileno()],
                start_new_session=True,  # Ctrl-C in the terminal is for the starter, which stops the stores last
                preexec_fn=die_with_parent(self.stop_signal),  # noqa: PLW1509  made for that
                **self.user.child_arguments,
            )

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None:
                raise EmbeddedStoreError(f"{self.name} stopped while starting. {self._dir.log_end()}")
            if time.monotonic() > deadline:
                raise EmbeddedStoreError(f"{self.name} did not answer in {_START_SECONDS:.0f} s. {self._dir.log_end()}")
            time.sleep(_POLL_SECONDS)
