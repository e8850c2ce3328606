"""Child processes that are restarted when they end, and that never outlive their starter, however it dies."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Loaded now: between fork and exec, a child of a threaded process may take no lock, and so cannot import.
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

_STANDARD_ERROR = 2  # the descriptor, as `sys.stderr` may be something else

# Seconds between two looks at a process whose end the system does not report.
_LOOK_SECONDS = 0.5
# Seconds before the first restart; each further delay is twice as long, up to the longest.
_FIRST_DELAY_SECONDS = 0.5
_LONGEST_DELAY_SECONDS = 10.0
# Seconds that a process has to run for the delays to begin anew.
_STABLE_SECONDS = 10.0


def die_with_parent(signal_number: signal.Signals) -> Callable[[], None]:
    """Return a `preexec_fn` that has the kernel send the child `signal_number` when the starting thread ends.

    The kernel watches the thread, not the process, so call it from a thread that stays, such as the main thread.
    `subprocess` changes the user before it calls a `preexec_fn`; a change afterwards would clear the setting. Systems
    other than Linux have no such setting: there a killed parent leaves its children running.
    """
    parent = os.getpid()
    number = int(signal_number)

    def preexec() -> None:
        if _libc is None:
            return
        _libc.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # the parent died before the call above
            os._exit(1)

    return preexec


async def may_have_ended(pid: int) -> None:
    """Return once a child process has ended, if the system tells that; else after half a second, in any case.

    The child is left to be reaped.
    """
    descriptor = _process_descriptor(pid)
    if descriptor is None:
        await asyncio.sleep(_LOOK_SECONDS)
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _process_descriptor(pid: int) -> int | None:
    """Return a descriptor that is readable once the process has ended; None on systems other than a recent Linux."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return os.pidfd_open(pid)
    return None


class StartError(Exception):
    """A process ended before the service was ready; the message says which process and how it ended."""


class SupervisedProcess:
    """A child process that is restarted when it ends, with growing delays.

    It writes to this process's standard error itself: a pipe would wake two processes for each line.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        say: Callable[[str], None],
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Describe the process. `say` gets each end and restart."""
        self.name = name
        self._command = command
        self._environment = environment
        self._pass_fds = pass_fds
        self._say = say
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id, or None while the process does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def keep_running(self, is_ready: Callable[[], bool]) -> NoReturn:
        """Start the process, and restart it whenever it ends. Cancelling this leaves the process running for `stop`.

        Raises:
            StartError: The process ended while `is_ready` was false.
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
        """Ask the process to end, wait `patience` seconds, and kill it if it still runs."""
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
            stdout=_STANDARD_ERROR,
            env=self._environment,
            pass_fds=self._pass_fds,
            start_new_session=True,  # Ctrl-C in the terminal is for the supervisor, which stops its children in order
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
        return await process.wait()


def _ending(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
