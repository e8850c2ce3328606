"""Programs that the measurements start: their process trees, CPU time and end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

from headrace.dev.processes import die_with_parent

STOP_SECONDS = 20
"""Seconds that a program has to end by itself before it is killed."""


class Tree:
    """A running program and every process that descends from it.

    A store that goes to the background leaves its parent. So processes whose command line has `mark`, the name of a
    temporary folder, belong to the tree as well.
    """

    def __init__(
        self, command: Sequence[str], *, log: Path, env: Mapping[str, str], mark: str = "", cwd: Path | None = None
    ) -> None:
        """Start `command` in `cwd` with `env` as its whole environment and its output in `log`.

        The program has a session of its own, so that Ctrl-C reaches only the measurement, which stops it in order.
        """
        self._mark = mark
        self._log = log
        self._known: set[psutil.Process] = set()
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - it takes no lock
            )

    def __enter__(self) -> Self:
        """Stop the program when the block ends, also after an error."""
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_ready(self, url: str, seconds: float) -> None:
        """Wait until `url` answers 200; raise RuntimeError with the end of the log if it does not."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._popen.poll() is not None:
                break
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (OSError, urllib.error.HTTPError):
                time.sleep(0.2)
        raise RuntimeError(f"{self._popen.args!r} is not ready at {url}; its log ends:\n{self.log_tail()}")

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines that the program printed."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def walk(self) -> Iterator[tuple[psutil.Process, psutil.Process | None]]:
        """Yield every live process of the tree with its parent in the tree, parents first."""
        everyone = list(psutil.process_iter(["pid", "ppid", "cmdline"]))
        children: dict[int, list[psutil.Process]] = {}
        for process in everyone:
            children.setdefault(process.info["ppid"], []).append(process)
        seen: set[int] = set()

        def descend(
            process: psutil.Process, parent: psutil.Process | None
        ) -> Iterator[tuple[psutil.Process, psutil.Process | None]]:
            if process.pid in seen:
                return
            seen.add(process.pid)
            yield process, parent
            for child in children.get(process.pid, ()):
                yield from descend(child, process)

        own = os.getpid()
        for process in everyone:
            if process.pid == self._popen.pid:
                yield from descend(process, None)
        for process in everyone:
            if self._mark and process.pid != own and any(self._mark in part for part in process.info["cmdline"] or ()):
                yield from descend(process, None)

    def parts(self, name_of: Callable[[list[str]], str | None]) -> dict[str, list[psutil.Process]]:
        """Group the live processes by `name_of` their command line; one without a name belongs to its parent's part."""
        names: dict[int, str] = {}
        parts: dict[str, list[psutil.Process]] = {}
        for process, parent in self.walk():
            inherited = names.get(parent.pid) if parent else None
            name = name_of(process.info["cmdline"] or []) or inherited or "other"
            names[process.pid] = name
            parts.setdefault(name, []).append(process)
            self._known.add(process)
        return parts

    def cpu(self, name_of: Callable[[list[str]], str | None]) -> dict[str, float]:
        """Return the CPU seconds, user and system, that each part has used so far, with those of its dead children.

        Raises:
            RuntimeError: The program has ended, and its CPU time is no longer known.
        """
        if self._popen.poll() is not None:
            raise RuntimeError(f"{self._popen.args!r} has ended with code {self._popen.returncode}")
        totals: dict[str, float] = {}
        for name, processes in self.parts(name_of).items():
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    totals[name] = totals.get(name, 0.0) + _seconds(process)
        return totals

    def stop(self) -> None:
        """End the program with SIGTERM, and then kill the remaining processes by their ids."""
        with contextlib.suppress(psutil.Error):
            self._known.update(process for process, _ in self.walk())
        if self._popen.poll() is None:
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(STOP_SECONDS)
        # psutil identifies a process by its id and its start, so that no other program with a reused id is killed.
        _, left = psutil.wait_procs(self._known, timeout=3)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)
        self._popen.wait()


def _seconds(process: psutil.Process) -> float:
    """Return the CPU seconds of a process and of its dead children.

    The kernel's accounts count in steps of 10 ms, which is much beside the idling of a process. Its clocks do not.
    """
    own_user, own_system, user, system = process.cpu_times()[:4]
    own = own_user + own_system
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            # What clock_getcpuclockid(3) returns for the process: the kernel's CPUCLOCK_SCHED, of all its threads.
            own = time.clock_gettime((~process.pid << 3) | 2)
    return float(own + user + system)
