"""One command for each process of the service. Containers run them, and `headrace dev` starts them as children.

A command imports its process when it runs, so that no process loads the code of another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Iterator

import click

from headrace.catalogue.load import ConfigurationError, load_catalogue
from headrace.cli import SettingProblem
from headrace.dev.embedded import locate
from headrace.dev.errors import EmbeddedStoreError
from headrace.settings import SettingError, Settings
from headrace.telemetry.health import HEALTH
from headrace.telemetry.logs import configure_logging
from headrace.telemetry.metrics import Part
from headrace.telemetry.redaction import redact
from headrace.telemetry.server import listen as listen_for_scrapes
from headrace.telemetry.server import serving
from headrace.telemetry.tracing import tracing

log = logging.getLogger(__name__)

# Seconds between two tries to reach Postgres.
_AGAIN_SECONDS = 1.0
# Connections that may wait for the API to accept them.
_BACKLOG = 65_535  # the kernel allows fewer: `net.core.somaxconn`, by default 4096
# Postgres's codes for a role without a privilege and for a read-only database.
_OPERATORS_STATES = {"42501", "25006"}


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turn errors that an operator can correct (a URL, a port, a file) into one line without a traceback."""
    import psycopg
    from sqlalchemy.exc import DBAPIError, OperationalError

    from headrace.stores.failures import is_foreign_schema
    from headrace.stores.schema import SchemaError

    try:
        yield
    except (ConfigurationError, SettingError) as error:
        raise SettingProblem(str(error)) from error
    except (EmbeddedStoreError, SchemaError) as error:
        raise click.ClickException(str(error)) from error
    except (DBAPIError, psycopg.OperationalError) as error:
        if isinstance(error, DBAPIError) and is_foreign_schema(error):
            raise click.ClickException(
                "The database's schema is not that of this release: run `headrace migrate` first."
            ) from error
        cause = error.orig if isinstance(error, DBAPIError) else error
        # An operator can also give a role its privilege, and open a read-only database for writing.
        of_server = isinstance(error, psycopg.OperationalError | OperationalError)
        if not of_server and getattr(cause, "sqlstate", None) not in _OPERATORS_STATES:
            raise
        reason = str(cause).strip().splitlines()[0]
        if "DATABASE_URL" not in reason:
            reason = f"Postgres at DATABASE_URL: {reason}"
        raise click.ClickException(redact(reason)) from error


@contextlib.contextmanager
def _started(settings: Settings, part: Part, metrics_fd: int | None) -> Iterator[Settings]:
    """Give the settings that a part runs with, once Postgres answers. The metrics port is open meanwhile and after."""
    with plain_errors():
        load_catalogue(settings.config)  # an invalid file is one line here, and would be a traceback later
        located = locate(settings)
        with serving(part, listen_for_scrapes(located, fd=metrics_fd)):
            ready = _ready(located, part)
            with tracing(part):
                yield ready


def _ready(settings: Settings, part: str) -> Settings:
    """Return the settings with their database's namespace, after checks of the database's sessions and its schema.

    Raises:
        SettingError: `DATABASE_URL` is not valid.
        SessionsNotKeptError: The database is behind a pooler that does not keep sessions.
        SchemaError: The database's schema is older than this release needs.
    """
    import psycopg

    from headrace.stores.sessions import SessionsNotKeptError, check_sessions

    try:
        asyncio.run(check_sessions(settings.database_url, part))
    except SessionsNotKeptError:
        raise
    except psycopg.OperationalError:
        if settings.redis_namespace is not None:
            return settings  # the process waits for Postgres by itself
    return _in_namespace(settings)


def _in_namespace(settings: Settings) -> Settings:
    """Return the settings with their database's namespace in Redis, once Postgres answers: every process needs it.

    Raises:
        SchemaError: The database's schema is older than this release needs.
    """
    import psycopg

    from headrace.stores.deployment import with_namespace
    from headrace.stores.schema import check_schema

    warned = False
    with _signals_end_process():
        while True:
            HEALTH.tick()  # the event loop, which tells later that the process is alive, does not run yet
            try:
                check_schema(settings.database_url)
                return with_namespace(settings)
            except psycopg.OperationalError as error:
                if not warned:
                    reason = redact(str(error).strip().splitlines()[0])
                    log.warning("waiting for Postgres, which has the namespace in Redis: %s", reason)
                warned = True
                time.sleep(_AGAIN_SECONDS)


@contextlib.contextmanager
def _signals_end_process() -> Iterator[None]:
    """Let SIGTERM and SIGINT end the process at once and in order, also as a container's first process."""
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(*_: object) -> None:
    raise SystemExit


def listen(settings: Settings) -> socket.socket:
    """Return the socket that the API listens on.

    Raises:
        SettingProblem: The address is in use, or does not belong to this machine.
    """
    return _listen(settings.host, settings.port, "HEADRACE")


def listen_for_browsers(settings: Settings, *, anywhere: bool = False) -> socket.socket:
    """Return the socket that the console listens on. With `anywhere`, a port that is in use makes it take a free one.

    Raises:
        SettingProblem: The address is in use, or does not belong to this machine.
    """
    host, port = settings.console_host, settings.console_port
    if anywhere:
        with contextlib.suppress(SettingProblem):
            return _listen(host, port, "HEADRACE_CONSOLE")
        port = 0
    return _listen(host, port, "HEADRACE_CONSOLE")


def _listen(host: str, port: int, variables: str) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SettingProblem(
            f"Cannot listen on {host} port {port}: {error.strerror or error}. Set {variables}_HOST or {variables}_PORT."
        ) from error


_metrics_fd = click.option(
    "--metrics-fd", type=int, hidden=True, help="The metrics port's listening socket, inherited from `headrace dev`."
)
_label = click.option(
    "--label", default="", hidden=True, help="What each line of the log as text begins with, given by `headrace dev`."
)


@click.command()
@click.option("--fd", type=int, hidden=True, help="A listening socket, inherited from `headrace dev`.")
@_metrics_fd
@_label
@click.pass_obj
def api(settings: Settings, fd: int | None, metrics_fd: int | None, label: str) -> None:
    """Serve the HTTP API."""
    configure_logging(settings, part="api", label=label)
    with _started(settings, "api", metrics_fd) as ready:
        from api.app import create_app
        from api.server import serve

        app = create_app(ready)
        serve(app, ready, listen(settings) if fd is None else socket.socket(fileno=fd))


@click.command()
@click.option(
    "--tier",
    "tiers",
    type=click.Choice(["priority", "default", "flex", "batch"]),
    multiple=True,
    help="Serve this tier only (repeatable): `--tier flex --tier batch` makes a worker for background jobs.",
)
@_metrics_fd
@_label
@click.pass_obj
def worker(settings: Settings, tiers: tuple[str, ...], metrics_fd: int | None, label: str) -> None:
    """Run jobs. Any number of workers may run."""
    from headrace.queue import TIERS

    configure_logging(settings, part="worker", label=label)
    with _started(settings, "worker", metrics_fd) as ready:
        from worker.main import main

        main(ready, [tier for tier in TIERS if tier in (tiers or TIERS)])


@click.command()
@_metrics_fd
@_label
@click.pass_obj
def scheduler(settings: Settings, metrics_fd: int | None, label: str) -> None:
    """Rescue lost jobs, expire late jobs, run batches, send webhooks. One scheduler acts; others stand by."""
    configure_logging(settings, part="scheduler", label=label)
    with _started(settings, "scheduler", metrics_fd) as ready:
        from scheduler.main import main

        main(ready)


@click.command()
@click.option("--fd", type=int, hidden=True, help="A listening socket, inherited from `headrace dev`.")
@_label
@click.pass_obj
def console(settings: Settings, fd: int | None, label: str) -> None:
    """Serve the web console, a client of the HTTP API."""
    configure_logging(settings, part="console", label=label)
    with plain_errors():
        from console.app import create_app
        from console.server import serve

        listener = listen_for_browsers(settings) if fd is None else socket.socket(fileno=fd)
        api_url = settings.console_api_url or f"http://127.0.0.1:{settings.port}"
        serve(create_app(api_url, settings.public_url), listener)


@click.command()
@click.pass_obj
def migrate(settings: Settings) -> None:
    """Bring the database's schema up to date."""
    from headrace.stores.migrate import migrate
    from headrace.stores.sessions import check_sessions

    configure_logging(settings, part="migrate")
    with plain_errors():
        database_url = locate(settings, redis=False).database_url
        asyncio.run(check_sessions(database_url, "cli"))
        migrate(database_url)
