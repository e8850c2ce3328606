"""Child processes that are started again when they die, and never outlive us, however we die."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Looked up now: between fork and exec a child of a threaded process may take no lock, and so import nothing.
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

_FIRST_DELAY_SECONDS = 0.5
_LONGEST_DELAY_SECONDS = 10.0
_STABLE_SECONDS = 10.0  # who lived this long before dying is restarted with the first delay again
_LINE_BYTES = 1024 * 1024


def die_with_parent(signal_number: signal.Signals) -> Callable[[], None]:
    """Return a `preexec_fn` that has the kernel send the child `signal_number` when the starting thread ends.

    The kernel watches the thread, not the process, so such a child is started from a thread that stays, in practice the
    main one. `subprocess` changes the user before it calls this, which matters: changing it afterwards would clear the
    setting. Systems other than Linux have nothing of the kind, and there a killed parent leaves its children running.
    """
    parent = os.getpid()
    number = int(signal_number)

    def preexec() -> None:
        if _libc is None:
            return
        _libc.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)

    return preexec


def raise_descriptor_limit(wanted: int) -> None:
    """Raise this process's limit of open files and connections to `wanted`, as far as it may.

    Most systems start a process with a low limit, for programs that use `select`, and let it raise that by itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < possible:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    if possible < wanted:
        log.warning(
            "this process may have %d files and connections open, and may need %d: raise its hard limit (ulimit -Hn)",
            possible,
            wanted,
        )


def rest_garbage_collector() -> None:
    """Take what a process has loaded so far out of the collector's sight, and have it look more seldom.

    Reference counting frees what jobs and deltas are made of. The collector is for the cycles of libraries: it looks at
    the youngest objects after 50,000 more of them were made than freed, and at all but the loaded modules after two
    million. To go through all modules again and again took a tenth of the time; to look at everything but once in
    twenty million objects let a streaming worker grow by gigabytes.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # or the collector would wait for the new objects to be a quarter of the frozen ones
    gc.set_threshold(50_000, 10, 4)


class StartError(Exception):
    """A process ended before the whole was ready; the message says which and how."""


class SupervisedProcess:
    """A child process that is started again when it ends, with growing delays, and whose output is read by line."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        on_line: Callable[[str, str], None],
        say: Callable[[str], None],
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Describe the process. `on_line` gets its name and each line it prints, `say` what befalls it."""
        self.name = name
        self._command = command
        self._environment = environment
        self._pass_fds = pass_fds
        self._on_line = on_line
        self._say = say
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id, or None while it is not running."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def keep_running(self, is_ready: Callable[[], bool]) -> NoReturn:
        """Start the process, and again whenever it ends; being cancelled leaves it running for `stop`.

        Raises:
            StartError: It ended while `is_ready` still said no.
        """
        delay = _FIRST_DELAY_SECONDS
        while True:
            started = time.monotonic()
            ending = _ending(await self._run())
            if not is_ready():
                raise StartError(f"The {self.name} {ending} before the service was ready.")
            if time.monotonic() - started > _STABLE_SECONDS:
                delay = _FIRST_DELAY_SECONDS
            self._say(f"The {self.name} {ending}; starting it again in {delay:g} s.")
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)

    async def stop(self, patience: float) -> None:
        """Ask the process to end, wait `patience` seconds, and kill it if it has not."""
        if self._process is None or self.pid is None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(patience):
                await self._process.wait()
        except TimeoutError:
            self._say(f"The {self.name} did not stop in {patience:g} s and is killed.")
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _run(self) -> int:
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LINE_BYTES,
            env=self._environment,
            pass_fds=self._pass_fds,
            start_new_session=True,  # Ctrl-C in the terminal is for the supervisor: it stops its children in order
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
        reader = asyncio.create_task(self._read_lines(process))  # reads on when this is cancelled, until the end
        code = await process.wait()
        await reader
        return code

    async def _read_lines(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than the limit: the rest follows as another line
                continue
            if not line:
                return
            self._on_line(self.name, line.decode(errors="replace").rstrip())


def _ending(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
