"""The directory of one embedded store: its locks, its log, and the URL that other commands read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import time
from pathlib import Path
from typing import IO

from headrace.dev.errors import EmbeddedStoreError
from headrace.dev.user import StoreUser
from headrace.settings import SettingError

# Seconds that a server of an earlier run gets to end, and seconds between two looks.
_EARLIER_SECONDS = 30.0
_POLL_SECONDS = 0.02


class DataDir:
    """A directory that one starter and one server use at a time.

    The starter's lock is held from `take` to `release`. The server inherits a second lock and holds it until its last
    process has ended: a server whose starter was killed may still be shutting down.
    """

    def __init__(self, path: Path, user: StoreUser, *, store: str) -> None:
        """Name the directory; `store` is the store's name, for messages."""
        self.path = path.absolute()
        self._user = user
        self._store = store
        self._lock: IO[str] | None = None

    @property
    def is_taken(self) -> bool:
        """Whether this process has the starter's lock."""
        return self._lock is not None

    def take(self) -> None:
        """Make the directory and lock it.

        Raises:
            EmbeddedStoreError: Another process has the lock.
            SettingError: The store's user cannot reach the directory.
        """
        if self._lock is None:
            self._make()
            self._lock = self._take_lock()
            (self.path / "url").unlink(missing_ok=True)  # of a run that was killed

    def release(self) -> None:
        """Remove the URL and release the lock, if this process has it."""
        if self._lock is not None:
            (self.path / "url").unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def publish(self, url: str) -> None:
        """Write the URL for `running_url`."""
        with open(self.path / "url", "w", opener=_private) as file:
            file.write(url)

    def open_log(self) -> IO[bytes]:
        """Open the server's log, emptied."""
        return open(self.path / "log", "wb", opener=_private)

    def log_end(self) -> str:
        """Return a sentence with the last lines of the server's log."""
        path = self.path / "log"
        lines = path.read_text(errors="replace").strip().splitlines()
        return f"The end of its log, {path}: {' / '.join(lines[-3:])}"

    def take_server_lock(self) -> IO[str]:
        """Wait for the end of an earlier run's server, and return the open lock for the new server to inherit.

        Raises:
            EmbeddedStoreError: The server of the earlier run does not end.
        """
        lock = open(self.path / "server.lock", "a+", opener=_private)  # noqa: SIM115  the caller closes it
        deadline = time.monotonic() + _EARLIER_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    lock.close()
                    raise EmbeddedStoreError(
                        f"{self._store} of an earlier run still uses {self.path} and does not end."
                    ) from None
                time.sleep(_POLL_SECONDS)
            else:
                return lock

    def _make(self) -> None:
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        for path in {self.path, *made}:  # `mkdir` leaves the mode to the umask
            path.chmod(0o711 if self._user.differs else 0o700)
        if self._user.differs:
            try:
                subprocess.run(["test", "-x", self.path], check=True, **self._user.child_arguments)
            except (OSError, subprocess.SubprocessError) as error:
                raise SettingError(
                    f"{self._store} runs as `nobody` when root starts it, and that user cannot reach {self.path}. "
                    "Set HEADRACE_DATA_DIR to a directory whose parents everyone may enter."
                ) from error

    def _take_lock(self) -> IO[str]:
        lock = open(self.path / "lock", "a+", opener=_private)  # noqa: SIM115  held until `release`
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with lock:
                lock.seek(0)
                raise EmbeddedStoreError(
                    f"{self.path} is in use by process {lock.read() or 'unknown'}. Stop that one, or set "
                    "HEADRACE_DATA_DIR to another directory."
                ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock


def running_url(path: Path) -> str:
    """Return the URL of the store that runs over a directory, or an empty string if none does, or it still starts."""
    try:
        with (path / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(FileNotFoundError):
            return (path / "url").read_text()
    except OSError:
        pass
    return ""


def _private(path: str, flags: int) -> int:
    """Open a file that only its owner may read: an `opener` for `open`."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
