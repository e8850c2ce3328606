"""The server of a command that is a client of Headrace: its options and its connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from headrace.cli.batch_client import BatchClient

Command = TypeVar("Command", bound=Callable[..., Any])


def server_options(command: Command) -> Command:
    """Add `--url` and `--key` to a command."""
    command = click.option(
        "--url",
        envvar="HEADRACE_URL",
        show_envvar=True,
        default="http://127.0.0.1:8700",
        show_default=True,
        help="The server.",
    )(command)
    return click.option("--key", envvar="HEADRACE_API_KEY", show_envvar=True, required=True, help="Your API key.")(
        command
    )


@contextmanager
def connected(url: str, key: str) -> Iterator[BatchClient]:
    """Yield a client of the server, and close it afterwards."""
    client = BatchClient(url, key, say=say)
    try:
        yield client
    finally:
        client.close()


def say(text: str) -> None:
    """Print a line to standard error."""
    click.echo(text, err=True)
