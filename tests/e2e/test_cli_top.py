"""`headrace top` against the real service, in a real terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

from tests.service import BOOTSTRAP_KEY, ROOT, Service, Stores, free_port, running_service
from tests.waiting import PATIENCE


def read_until(terminal: int, wanted: str) -> str:
    """Return what a program has written to its terminal once `wanted` is in it."""
    text, until = "", time.monotonic() + PATIENCE
    while wanted not in text:
        assert time.monotonic() < until, text
        if select.select([terminal], [], [], 1)[0]:
            text += os.read(terminal, 65_536).decode(errors="replace")
    return text


def test_it_prints_one_status_as_json_and_as_text(service: Service) -> None:
    where = ("--url", service.base_url, "--key", BOOTSTRAP_KEY)
    told = service.command("top", "--json", *where)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["object"] == "status"
    told = service.command("top", *where)
    assert told.returncode == 0, told.stderr
    assert "QUEUE" in told.stdout
    assert "\x1b" not in told.stdout


def test_wrong_keys_and_addresses_are_one_clear_line(service: Service) -> None:
    weak = str(service.create_key("weak")["key"])
    gone = f"http://127.0.0.1:{free_port()}"
    for url, key, wanted in (
        (service.base_url, "hr_wrong", "401"),
        (service.base_url, weak, "metrics:read"),
        (gone, BOOTSTRAP_KEY, "is unavailable"),
    ):
        told = service.command("top", "--url", url, "--key", key)
        assert told.returncode == 1
        assert wanted in told.stderr
        assert "Traceback" not in told.stderr


def start(service: Service) -> tuple[int, subprocess.Popen[bytes]]:
    """Start `headrace top` in a terminal of 80 columns and 24 lines, and return that terminal and the process."""
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", "top", "--url", service.base_url],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "HEADRACE_API_KEY": BOOTSTRAP_KEY},
        cwd=service.directory,
        start_new_session=True,
    )
    os.close(theirs)
    return terminal, process


def test_it_draws_until_q_is_pressed_and_keeps_the_picture_while_the_api_is_unavailable(
    tmp_path: Path, stores: Stores, config: str
) -> None:
    with running_service(tmp_path, stores.fresh(), config, "api") as service:
        terminal, process = start(service)
        try:
            read_until(terminal, "q quits")
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
            read_until(terminal, "q quits")
            service.processes["api"].kill()
            assert "QUEUE" in read_until(terminal, "API unavailable since").rpartition("q quits")[2]
            service.launch("api")
            read_until(terminal, "q quits")
            os.write(terminal, b"q")
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()
            os.close(terminal)
