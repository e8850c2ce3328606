"""The parts of the service, one command each: what containers run, and what `headrace dev` starts as children.

The API and the worker are named by import string, as `headrace` imports neither side.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import click

from headrace.catalogue import ConfigurationError, load_catalogue
from headrace.embedded import EmbeddedStoreError, locate
from headrace.settings import Settings
from headrace.telemetry import configure_logging, redact

_BACKLOG = 2048


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what an operator can put right (a URL, a port, a file) into one line without a traceback."""
    from sqlalchemy.exc import ArgumentError, OperationalError

    from headrace.schema import SchemaError

    try:
        yield
    except (EmbeddedStoreError, ConfigurationError, SchemaError) as error:
        raise click.ClickException(str(error)) from error
    except ArgumentError as error:
        raise click.ClickException("DATABASE_URL is no URL like postgresql://user:password@host/name.") from error
    except OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise click.ClickException(f"Postgres at DATABASE_URL: {redact(reason)}") from error


def listen(settings: Settings) -> socket.socket:
    """Return the socket that the API listens on.

    Raises:
        click.ClickException: The address is taken, or not this machine's.
    """
    host, port = settings.host, settings.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise click.ClickException(
            f"Cannot listen on {host} port {port}: {error.strerror or error}. Set HEADRACE_HOST or HEADRACE_PORT."
        ) from error


def _located(settings: Settings) -> Settings:
    """Return the settings with the stores that a part runs on, whose schema is not older than this release."""
    from headrace.schema import check_schema

    located = locate(settings)
    check_schema(located.database_url)
    return located


def resolve(path: str) -> Callable[..., Any]:
    """Return what `module:attribute` names."""
    module, attribute = path.split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function


@click.command()
@click.option("--fd", type=int, hidden=True, help="A listening socket, inherited from `headrace dev`.")
@click.pass_obj
def api(settings: Settings, fd: int | None) -> None:
    """Serve the HTTP API."""
    configure_logging(settings.log_level)
    with plain_errors():
        load_catalogue(settings.config)  # a wrong file is told here in a line, there in a traceback
        located = _located(settings)
        app = resolve("api.app:create_app")(located)
        listener = listen(settings) if fd is None else socket.socket(fileno=fd)
        resolve("api.server:serve")(app, located, listener)


@click.command()
@click.option(
    "--tier",
    "tiers",
    type=click.Choice(["priority", "default", "flex", "batch"]),
    multiple=True,
    help="Serve this one alone (repeatable). `--tier flex --tier batch` is a worker for what nobody waits for.",
)
@click.pass_obj
def worker(settings: Settings, tiers: tuple[str, ...]) -> None:
    """Run jobs. Start as many as you like."""
    from headrace.queue import TIERS

    configure_logging(settings.log_level)
    with plain_errors():
        load_catalogue(settings.config)
        located = _located(settings)
        resolve("worker.main:main")(located, [tier for tier in TIERS if tier in (tiers or TIERS)])


@click.command()
@click.pass_obj
def scheduler(settings: Settings) -> None:
    """Find lost jobs and wake them, expire late ones, run batches. One is enough; several do no harm."""
    configure_logging(settings.log_level)
    with plain_errors():
        load_catalogue(settings.config)
        located = _located(settings)
        resolve("worker.sweeper:main")(located)


@click.command()
@click.pass_obj
def migrate(settings: Settings) -> None:
    """Bring the database's schema up to date."""
    from headrace.database import migrate

    configure_logging(settings.log_level)
    with plain_errors():
        migrate(locate(settings, redis=False).database_url)
