"""`headrace dev` and `headrace demo` as people start them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from headrace.dev.postgres import EmbeddedPostgres
from headrace.dev.scratch import scratch_dir
from headrace.dev.valkey import EmbeddedValkey
from tests.e2e.metrics import scrape
from tests.waiting import PATIENCE, until

COMMAND = [sys.executable, "-P", "-m", "headrace"]


def ended(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


def command(process: psutil.Process) -> str:
    """Return the beginning of a process's command line; empty if the process has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline()[:5])
    return ""


class Dev:
    """A `headrace` command in the background, with what it prints and the processes it started."""

    def __init__(self, home: Path, *arguments: str, **environment: str) -> None:
        self.home = home
        self._output = home.with_suffix(".out")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        defaults = {"HEADRACE_DATA_DIR": str(home), "HEADRACE_PORT": "0", "HEADRACE_DRAIN_SECONDS": "2"}
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [*COMMAND, *(arguments or ["dev"])],
                env=inherited | {"OPENAI_API_KEY": "", "DATABASE_URL": "", "REDIS_URL": ""} | defaults | environment,
                cwd=home.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        def found() -> re.Match[str] | None:
            assert self.process.poll() is None, self.output
            return re.search(pattern, self.output)

        return until(found, f"{pattern!r} in:\n{self.output}")

    def wait_until_ready(self) -> None:
        self.port = int(self.wait_for(r"base URL +http://127\.0\.0\.1:(\d+)/api/v1")[1])
        self.wait_for("Ctrl-C stops it")

    @property
    def key(self) -> str | None:
        found = re.search(r"hr_[\w-]+", self.output)
        return found[0] if found else None

    def started(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def part(self, name: str) -> psutil.Process:
        """Return the process of a part or a store by a word of its command line."""

        def found() -> psutil.Process | None:
            return next((process for process in self.started() if name in command(process)), None)

        return until(found, name)

    def kill_parts(self, *names: str) -> None:
        """Kill parts and return when others run in their places."""
        killed = {name: self.part(name) for name in names}
        for process in killed.values():
            process.kill()
        until(lambda: all(self.part(name) != process for name, process in killed.items()), "others in their places")

    def ask(self, key: str) -> str:
        """Return what the demo model answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "Hello!"}]})
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        with contextlib.closing(connection):
            connection.request("POST", "/api/v1/chat/completions", body, headers)
            response = connection.getresponse()
            text = response.read().decode()
            assert response.status == 200, text
            return str(json.loads(text)["choices"][0]["message"]["content"])

    def end(self, signal_number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal, and return the exit code when nothing that was started is left."""
        started = self.started()
        self.process.send_signal(signal_number)
        code = self.process.wait(PATIENCE)
        until(lambda: all(ended(process) for process in started), "the end of every process")
        return code


@pytest.fixture
def home() -> Iterator[Path]:
    with scratch_dir() as path:
        yield path / "home"


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., Dev]]:
    running: list[Dev] = []

    def start(*arguments: str, **environment: str) -> Dev:
        running.append(Dev(home, *arguments, **environment))
        return running[-1]

    yield start
    for dev in running:
        dev.process.kill()
        dev.process.wait()


def test_what_dies_is_started_again_and_ctrl_c_ends_all(start: Callable[..., Dev]) -> None:
    dev = start()
    dev.wait_until_ready()
    key = dev.key
    assert key is not None
    assert "Hello!" in dev.ask(key)
    assert f"Authorization: Bearer {key}" in dev.output
    dev.kill_parts("worker", "scheduler", "api", "valkey-server", "bin/postgres")
    dev.wait_for("The worker was killed by SIGKILL; starting it again")
    # The listening socket outlived the API: this waits for the new one rather than fail.
    until(lambda: _answers(dev, key), "an answer after everything had been killed")
    assert dev.end() == 0

    again = start()
    again.wait_until_ready()
    assert again.key is None
    assert "Hello!" in again.ask(key)
    assert again.end(signal.SIGTERM) == 0


def _answers(dev: Dev, key: str) -> bool:
    with contextlib.suppress(AssertionError, OSError, http.client.HTTPException):
        return "Hello!" in dev.ask(key)
    return False


def test_its_death_ends_all(start: Callable[..., Dev]) -> None:
    dev = start()
    dev.wait_until_ready()
    assert dev.end(signal.SIGKILL) == -signal.SIGKILL


def test_a_second_ctrl_c_does_not_wait(start: Callable[..., Dev]) -> None:
    dev = start(HEADRACE_DRAIN_SECONDS="3600")
    dev.wait_until_ready()
    stuck = dev.part("worker")
    stuck.suspend()
    dev.process.send_signal(signal.SIGINT)
    dev.wait_for("Ctrl-C again stops at once")
    until(lambda: not any("api" in command(process) for process in _alive(dev)), "the API's end")
    assert dev.end() == 0
    assert ended(stuck)


def _alive(dev: Dev) -> list[psutil.Process]:
    return [process for process in dev.started() if not ended(process)]


def test_given_servers_are_used(start: Callable[..., Dev], home: Path) -> None:
    with (
        EmbeddedPostgres(home.with_name("postgres"), {"fsync": "off"}) as postgres,
        EmbeddedValkey(home.with_name("valkey")) as valkey,
    ):
        dev = start(DATABASE_URL=postgres.url, REDIS_URL=valkey.url)
        dev.wait_until_ready()
        assert dev.key is not None
        assert "Hello!" in dev.ask(dev.key)
        assert [process for process in dev.started() if process.name() in ("postgres", "valkey-server")] == []
        assert not home.exists()
        assert dev.end() == 0
        with psycopg.connect(postgres.url) as connection:
            assert connection.execute("SELECT count(*), min(state) FROM jobs").fetchone() == (1, "completed")


def test_what_keeps_it_from_starting_is_one_line(start: Callable[..., Dev], home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        closed = f"redis://:hidden@127.0.0.1:{_closed_port()}/0"
        config = home.with_suffix(".toml")
        config.write_text("[models]\nx = 1\n")
        for environment, reason in (
            ({"HEADRACE_PORT": str(port)}, rf"Cannot listen on 127\.0\.0\.1 port {port}: Address already in use"),
            ({"HEADRACE_PORT": "many"}, "HEADRACE_PORT: "),
            ({"DATABASE_URL": "postgresql://me:hidden@127.0.0.1:1/x", "REDIS_URL": closed}, "Redis at REDIS_URL: "),
            ({"DATABASE_URL": "postgresql://me:hidden@127.0.0.1:1/x"}, "Postgres at DATABASE_URL: .*refused"),
            ({"DATABASE_URL": "nonsense"}, "DATABASE_URL is no URL"),
            ({"REDIS_URL": "nonsense"}, "REDIS_URL must begin with redis://"),
            ({"HEADRACE_CONFIG": str(config)}, rf"{config}:2: models\.x: 1 is not a table"),
        ):
            dev = start(**environment)
            # What was set is wrong, or what it names does not answer.
            assert dev.process.wait(PATIENCE) == (1 if " at " in reason else 2)
            last = [line for line in dev.output.splitlines() if not line.startswith("Starting ")]
            assert len(last) == 1, dev.output
            assert re.match(f"Error: {reason}", last[0]), dev.output
            assert "hidden" not in dev.output


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_the_demo_ends_by_itself_without_a_terminal(start: Callable[..., Dev], home: Path) -> None:
    demo = start("demo", TMPDIR=str(home.parent))
    assert demo.process.wait(PATIENCE) == 0
    assert "Traceback" not in demo.output
    assert len(re.findall(r"completed +\d+ → \d+ +0\.\d+ +\d.* m?s", demo.output)) == 5
    assert list(home.parent.glob("headrace-*")) == []


def test_the_demo_in_a_terminal_stays_until_ctrl_c(home: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TMPDIR"] = str(home.parent)
        os.execv(COMMAND[0], [*COMMAND, "demo"])
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        shown = b""
        while b"leaves nothing behind" not in shown:
            piece = screen.read(4096)
            assert piece, shown
            shown += piece
        started = psutil.Process(pid).children(recursive=True)
        os.write(terminal, b"\x03")
        with contextlib.suppress(OSError):  # Linux's answer when the other side is closed
            while screen.read(4096):
                pass
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert started
    until(lambda: all(ended(process) for process in started), "the end of every process")
    assert list(home.parent.glob("headrace-*")) == []


def test_each_part_has_a_metrics_port_which_is_printed(start: Callable[..., Dev]) -> None:
    dev = start()
    dev.wait_until_ready()
    listed = dev.wait_for(r"metrics +api (\d+), worker (\d+), batches (\d+), scheduler (\d+)")
    assert [scrape(int(port)).total("process_resident_memory_bytes") > 0 for port in listed.groups()] == [True] * 4
    assert dev.end() == 0


def test_metrics_ports_can_be_turned_off(start: Callable[..., Dev]) -> None:
    dev = start(HEADRACE_METRICS_PORT="0")
    dev.wait_until_ready()
    assert "/metrics" not in dev.output
    assert dev.end() == 0
