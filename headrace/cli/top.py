"""`headrace top`: the state of a deployment, live in a terminal, as a client of `GET /status`."""

from __future__ import annotations

import contextlib
import json
import select
import sys
import time
from collections.abc import Iterator
from datetime import datetime

import click
from rich.console import Console
from rich.live import Live

from headrace.cli.batch_client import BatchClient, ServerError, UnavailableError
from headrace.cli.printing import json_option
from headrace.cli.server import connected, server_options
from headrace.cli.top_screen import render

# Seconds between two requests, and seconds between two looks at the keyboard and the terminal's size.
_REFRESH_SECONDS = 2.0
_LOOK_SECONDS = 0.25
# Seconds for which a request may take.
_PATIENCE_SECONDS = 10.0
# Columns and lines of a picture that does not go to a terminal.
_PIPED_SIZE = (160, 60)


@click.command()
@server_options
@json_option
def top(url: str, key: str, as_json: bool) -> None:
    """Show queues, workers, providers, batches and the slowest jobs, live.

    The key needs the scope metrics:read, or admin. `q` quits. Without a terminal it prints one picture and ends.
    """
    with connected(url, key) as client:
        try:
            status = client.get_once("/status", timeout=_PATIENCE_SECONDS)
        except UnavailableError as error:
            raise ServerError(f"{url} is unavailable: {error}") from error
        if as_json:
            click.echo(json.dumps(status))
        elif sys.stdout.isatty():
            _Screen(client, status).run()
        else:
            width, height = _PIPED_SIZE
            Console(width=width, highlight=False).print(render(status, width=width, height=height, note=""))


class _Screen:
    """The terminal's picture of the last status that the API answered."""

    def __init__(self, client: BatchClient, status: dict[str, object]) -> None:
        self._client = client
        self._status = status
        self._unavailable_since: datetime | None = None
        self._error = ""
        self._console = Console(highlight=False)

    def run(self) -> None:
        """Draw until the user quits.

        Raises:
            ServerError: The API refuses the key, as one that was revoked meanwhile.
        """
        with (
            contextlib.suppress(KeyboardInterrupt),
            _keys() as pressed,
            Live(console=self._console, screen=True, auto_refresh=False) as live,
        ):
            while True:
                self._draw(live)
                if self._pause(live, pressed):
                    return
                self._ask()

    def _ask(self) -> None:
        try:
            self._status = self._client.get_once("/status", timeout=_PATIENCE_SECONDS)
        except UnavailableError as error:
            self._unavailable_since = self._unavailable_since or datetime.now().astimezone()
            self._error = str(error)
        else:
            self._unavailable_since = None

    def _pause(self, live: Live, pressed: _Pressed) -> bool:
        """Wait until the next request is due, and return whether the user quits meanwhile."""
        until, size = time.monotonic() + _REFRESH_SECONDS, self._console.size
        while (left := until - time.monotonic()) > 0:
            if pressed("q", min(left, _LOOK_SECONDS)):
                return True
            if self._console.size != size:
                size = self._console.size
                self._draw(live)
        return False

    def _draw(self, live: Live) -> None:
        note = ""
        if self._unavailable_since is not None:
            note = f"API unavailable since {self._unavailable_since:%H:%M:%S}, retrying: {self._error}"
        size = self._console.size
        live.update(render(self._status, width=size.width, height=size.height, note=note), refresh=True)


class _Pressed:
    """Tells which keys were pressed; without a keyboard none are."""

    def __init__(self, *, keyboard: bool) -> None:
        self._keyboard = keyboard

    def __call__(self, key: str, seconds: float) -> bool:
        """Wait for at most so many seconds, and return whether a key was pressed."""
        if not self._keyboard:
            time.sleep(seconds)
            return False
        if not select.select([sys.stdin], [], [], seconds)[0]:
            return False
        typed = sys.stdin.read(1)
        if not typed:  # the terminal is closed
            self._keyboard = False
        return typed.lower() == key


@contextlib.contextmanager
def _keys() -> Iterator[_Pressed]:
    """Read single keys without an echo meanwhile, if there is a keyboard."""
    if not sys.stdin.isatty():
        yield _Pressed(keyboard=False)
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield _Pressed(keyboard=True)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
