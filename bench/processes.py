"""Programs that the measurements start: each with all that it starts itself, its CPU time, and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

from headrace.dev.processes import die_with_parent

STOP_SECONDS = 20
"""What a program has for an orderly end before it is killed."""


class Tree:
    """A running program and every process that descends from it.

    A store that puts itself in the background leaves its parent, so processes whose command line names `mark` (a
    temporary folder that nobody else can know) belong to the tree as well.
    """

    def __init__(self, command: Sequence[str], *, log: Path, env: Mapping[str, str], mark: str = "") -> None:
        """Start `command` with `env` for its whole environment and its output in `log`.

        It has a session of its own, so that a Ctrl-C reaches us alone and we stop it in order.
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
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - it takes no lock
            )

    def __enter__(self) -> Self:
        """Stop the program when the block ends, however it ends."""
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
        """Sort the live processes by `name_of` their command line; one that it cannot name is its parent's part."""
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
        """Return the CPU seconds, user and system, that each part has used up to now, its dead children's too.

        Raises:
            RuntimeError: The program has ended, and nobody knows any more what it used.
        """
        if self._popen.poll() is not None:
            raise RuntimeError(f"{self._popen.args!r} has ended with code {self._popen.returncode}")
        totals: dict[str, float] = {}
        for name, processes in self.parts(name_of).items():
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    totals[name] = totals.get(name, 0.0) + sum(process.cpu_times()[:4])
        return totals

    def stop(self) -> None:
        """End the program: politely, and then by the ids of whatever is left of it."""
        with contextlib.suppress(psutil.Error):
            self._known.update(process for process, _ in self.walk())
        if self._popen.poll() is None:
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(STOP_SECONDS)
        # psutil knows a process by its id and its start, so that an id given to another program is not harmed.
        _, left = psutil.wait_procs(self._known, timeout=3)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)
        self._popen.wait()
