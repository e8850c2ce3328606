"""`headrace` commands in processes of their own, forked from one that has imported everything.

Most of a command's start is imports, a second or more, and the suite starts hundreds. `python -m tests.forks` imports
once: it reads a line of JSON for each process, forks it, writes its id, and later its id and exit code.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

_ROOT = Path(__file__).resolve().parent.parent
_IMPORTED = (
    *("api.app", "worker.main", "scheduler.webhooks", "scheduler.batches.runner", "uvicorn", "uvloop", "httptools"),
    *(f"headrace.cli.{path.stem}" for path in sorted((_ROOT / "headrace" / "cli").glob("[!_]*.py"))),
)


class Fork:
    """A process that was forked; it has what tests use of `subprocess.Popen`."""

    def __init__(self, forks: _Forks, pid: int) -> None:
        self.pid = pid
        self._forks = forks

    @property
    def returncode(self) -> int | None:
        """The exit code, or the negative number of the signal that ended it; None while it runs."""
        return self._forks.codes.get(self.pid)

    def poll(self) -> int | None:
        """Return `returncode`."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once it has ended.

        Raises:
            subprocess.TimeoutExpired: It does not within `timeout` seconds.
        """
        with self._forks.changed:
            if not self._forks.changed.wait_for(lambda: self.pid in self._forks.codes, timeout):
                raise subprocess.TimeoutExpired("headrace", timeout or 0)
        return self._forks.codes[self.pid]

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.send_signal(signal.SIGTERM)


def fork(
    arguments: Sequence[str], environment: Mapping[str, str], directory: Path, output: Path, errors: Path | None = None
) -> Fork:
    """Run a `headrace` command as the leader of a session; what it prints is appended to files."""
    return _forks().start(
        {
            "arguments": list(arguments),
            "environment": dict(environment),
            "directory": str(directory),
            "output": str(output),
            "errors": str(errors or output),
        }
    )


@functools.cache
def _forks() -> _Forks:
    return _Forks()


class _Forks:
    """The process that forks, as the one that asks it to has it."""

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        """The exit codes of those that have ended, by process id."""
        self.changed = threading.Condition()
        self._started = deque[int]()
        self._ended = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"], cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._thread = threading.Thread(target=self._listen, name="forks", daemon=True)
        self._thread.start()
        atexit.register(self._close)

    def start(self, what: Mapping[str, Any]) -> Fork:
        """Have a process forked."""
        assert self._process.stdin is not None
        with self.changed:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
            self.changed.wait_for(lambda: self._started or self._ended)
            if not self._started:
                raise RuntimeError("the process that forks has ended: its error is above")
            return Fork(self, self._started.popleft())

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            pid, *code = map(int, line.split())
            with self.changed:
                if code:
                    [self.codes[pid]] = code
                else:
                    self.codes.pop(pid, None)  # of an earlier process that had the same id
                    self._started.append(pid)
                self.changed.notify_all()
        with self.changed:
            self._ended = True
            self.changed.notify_all()

    def _close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._thread.join()
        self._process.stdout.close()
        self._process.wait()


def _serve() -> dict[str, Any] | None:
    """Fork a process for each line of the input; returns what to do in each of them, and None at the input's end."""
    requests = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115  (as long as the process)
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)
    running: set[int] = set()
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj == woken:
                    os.read(woken, 4096)
                    _reap(running)
                    continue
                line = requests.readline()
                if not line:
                    for pid in running:
                        os.killpg(pid, signal.SIGKILL)
                    return None
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    os.close(woken)
                    os.close(waker)
                    what: dict[str, Any] = json.loads(line)
                    return what
                running.add(pid)
                _tell(pid)


def _reap(running: set[int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            running.discard(pid)
            _tell(pid, os.waitstatus_to_exitcode(status))


def _tell(*numbers: int) -> None:
    os.write(1, " ".join(map(str, numbers)).encode() + b"\n")


def _become(what: Mapping[str, Any]) -> NoReturn:
    """Become the process that was asked for."""
    os.setsid()
    os.chdir(what["directory"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    output, errors = (
        os.open(what[name], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) for name in ("output", "errors")
    )
    for number, descriptor in enumerate((nothing, output, errors)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(what["environment"])
    sys.argv = ["headrace", *what["arguments"]]
    code = 0
    try:
        runpy.run_module("headrace", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  (as the interpreter does)
        traceback.print_exc()
        code = 1
    # All that an interpreter does at its end but for freeing every object, which takes half a second.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    for module in _IMPORTED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page that it looks at
    if (task := _serve()) is not None:
        _become(task)
