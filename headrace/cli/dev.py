"""`headrace dev`: runs the whole service on this machine. Each part is a child process, restarted when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NoReturn

import click
from pydantic import SecretStr
from redis.exceptions import RedisError
from rich.console import Console
from rich.text import Text

from headrace import __version__
from headrace.catalogue.demo import DEMO, DEMO_MODELS
from headrace.catalogue.file import CatalogueFile
from headrace.catalogue.load import configuration_file
from headrace.catalogue.models import Catalogue
from headrace.cli.parts import listen, listen_for_browsers, plain_errors
from headrace.dev.embedded import check_urls, secret_key_file
from headrace.dev.errors import EmbeddedStoreError, data_dir_errors
from headrace.dev.postgres import EmbeddedPostgres
from headrace.dev.processes import StartError, SupervisedProcess
from headrace.dev.store import EmbeddedStore
from headrace.dev.valkey import EmbeddedValkey
from headrace.keys.queries import create_first_key
from headrace.settings import Settings
from headrace.stores.migrate import migrate
from headrace.stores.redis_url import connect
from headrace.telemetry.redaction import redact
from headrace.telemetry.server import listen_on as listen_for_scrapes

# Seconds that the API gets to be ready, and seconds between two questions.
_READY_SECONDS = 60.0
_POLL_SECONDS = 0.1
# Seconds between two starts of a store, at least.
_STORE_REST_SECONDS = 0.5
# Seconds that a part gets beyond its drain time before it is killed.
_AFTER_DRAIN_SECONDS = 5.0
_CHEAP_MODELS = ("gpt-4o-mini", "claude-haiku-4-5", "gemini-2.5-flash")
# Models that the banner names at most.
_MOST_SHOWN = 60
_COLOURS = {"api": "cyan", "worker": "green", "batches": "blue", "scheduler": "magenta", "console": "yellow"}
# The parts that have a metrics port.
_MEASURED = ("api", "worker", "batches", "scheduler")
# The tiers `flex` and `batch` have a worker of their own, so that they do not delay jobs that clients wait for.
_COMMANDS = {
    "worker": ["worker", "--tier", "priority", "--tier", "default"],
    "batches": ["worker", "--tier", "flex", "--tier", "batch"],
}


class Service:
    """Stores, API, worker and scheduler, from their start to their ordered stop. It runs once, in the main thread."""

    def __init__(self, settings: Settings, console: Console, *, web: bool = False) -> None:
        """Take the settings, and the terminal for messages. The parts write to standard error.

        With `web`, the web console runs too.
        """
        self.settings = settings
        self.first_key: str | None = None
        self.catalogue = Catalogue()
        self._console = console
        self._coloured = Console(stderr=True).color_system is not None
        self._stores: list[EmbeddedStore] = []
        self._parts: list[SupervisedProcess] = []
        self._web = web
        self._listener: socket.socket | None = None
        self._web_listener: socket.socket | None = None
        self._scraped: dict[str, socket.socket] = {}
        """The listening socket of each part's metrics port."""
        self._task: asyncio.Task[None] | None = None
        self._ready = False
        self._stopping = False

    @property
    def address(self) -> tuple[str, int]:
        """The host and port of the API for clients on this machine."""
        assert self._listener is not None
        return _address(self._listener)

    @property
    def base_url(self) -> str:
        """The `base_url` of an OpenAI client."""
        assert self._listener is not None
        return f"{_url(self._listener)}/api/v1"

    @property
    def console_url(self) -> str | None:
        """The address of the web console for browsers on this machine; None if it does not run."""
        return None if self._web_listener is None else _url(self._web_listener)

    @property
    def metrics_ports(self) -> dict[str, int]:
        """The metrics port of each part; none if they are off."""
        return {name: one.getsockname()[1] for name, one in self._scraped.items()}

    def say(self, text: str, style: str = "") -> None:
        """Print a line."""
        self._console.print(Text(text, style), soft_wrap=True)

    def run(self, main: Callable[[Service], Awaitable[None]]) -> None:
        """Start everything, run `main` until it ends or Ctrl-C, SIGTERM or SIGHUP comes, and stop everything.

        Raises:
            click.ClickException: Something could not start; the message is for the operator.
        """
        for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signal_number) is not signal.SIG_IGN:  # `nohup` ignores SIGHUP
                signal.signal(signal_number, self._on_signal)
        with contextlib.ExitStack() as stack, plain_errors():
            self.catalogue = CatalogueFile(self.settings.config, demo=self.settings.demo).current
            check_urls(self.settings)
            self._listener = stack.enter_context(listen(self.settings))
            if self._web:
                free = "console_port" not in self.settings.model_fields_set
                self._web_listener = stack.enter_context(listen_for_browsers(self.settings, anywhere=free))
            self._scraped = {name: stack.enter_context(one) for name, one in _metrics_ports(self.settings).items()}
            try:
                self._start_stores(stack)
                asyncio.run(self._supervise(main))
            except (KeyboardInterrupt, asyncio.CancelledError):
                pass
            except StartError as error:
                raise click.ClickException(str(error)) from error
            finally:
                self._stopping = True

    def _on_signal(self, *_: object) -> None:
        if self._task is not None and not self._task.done():
            self._task.get_loop().call_soon_threadsafe(self._interrupt)
        elif not self._stopping:
            raise KeyboardInterrupt

    def _interrupt(self) -> None:
        if self._stopping:
            for part in self._parts:
                part.kill()
            return
        self._stopping = True
        self.say("Stopping. Running requests may finish; Ctrl-C again stops at once, and loses no accepted job.")
        assert self._task is not None
        self._task.cancel()

    def _start_stores(self, stack: contextlib.ExitStack) -> None:
        home = self.settings.data_dir
        keeps_key = not self.settings.database_url
        if keeps_key:
            self._stores.append(EmbeddedPostgres(home / "postgres"))
        if not self.settings.redis_url:
            self._stores.append(EmbeddedValkey(home / "valkey"))
        for store in self._stores:
            self.say(f"Starting {store.name} in {store.data_dir}", "dim")
            stack.enter_context(store)
            field = store.variable.lower()
            self.settings = self.settings.model_copy(update={field: store.url})
        if keeps_key:  # the store that runs keeps a second `headrace dev` from the directory
            self.settings = _with_secret_key(self.settings)
        try:
            asyncio.run(_ping(self.settings.redis_url))
        except RedisError as error:
            raise click.ClickException(f"Redis at REDIS_URL: {redact(str(error))}") from error

    async def _supervise(self, main: Callable[[Service], Awaitable[None]]) -> None:
        self._task = asyncio.current_task()
        # They run in threads, as each may run an event loop of its own.
        await asyncio.to_thread(migrate, self.settings.database_url)
        self.first_key = await asyncio.to_thread(create_first_key, self.settings)
        self._parts = [self._part(name) for name in _COLOURS if name != "console" or self._web]
        try:
            async with asyncio.TaskGroup() as group:
                keepers = [group.create_task(part.keep_running(lambda: self._ready)) for part in self._parts]
                keepers += [group.create_task(self._keep_running(store)) for store in self._stores]
                await self._wait_until_ready()
                await main(self)
                for keeper in keepers:
                    keeper.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._stopping = True
            await self._stop_parts()

    def _part(self, name: str) -> SupervisedProcess:
        assert self._listener is not None
        listener = {"api": self._listener, "console": self._web_listener}.get(name)
        # -P: the working directory may have a folder named `api` or `worker` that is not ours.
        command = [sys.executable, "-P", "-m", "headrace", *_COMMANDS.get(name, [name])]
        environment, passed = _environment(self.settings), []
        if listener is not None:
            command += ["--fd", str(listener.fileno())]
            passed.append(listener.fileno())
        if name == "console":
            environment["HEADRACE_CONSOLE_API_URL"] = _url(self._listener)
        if name == "api" and self.console_url is not None:
            environment.setdefault("HEADRACE_CONSOLE_URL", self.console_url)
        if (scraped := self._scraped.get(name)) is not None:
            command += ["--metrics-fd", str(scraped.fileno())]
            passed.append(scraped.fileno())
            environment["HEADRACE_METRICS_PORT"] = str(scraped.getsockname()[1])
        label = f"{name:<9} "
        command += ["--label", click.style(label, fg=_COLOURS[name]) if self._coloured else label]
        return SupervisedProcess(
            name,
            command,
            environment=environment,
            say=lambda text: self.say(text, "bold yellow"),
            pass_fds=passed,
        )

    async def _keep_running(self, store: EmbeddedStore) -> NoReturn:
        while True:
            await store.ended()
            self.say(f"{store.name} ended; starting it again.", "bold yellow")
            with contextlib.suppress(EmbeddedStoreError):  # the next try says it again
                store.start()
            await asyncio.sleep(_STORE_REST_SECONDS)

    async def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while await asyncio.to_thread(_status, self.address, "/readyz") != http.HTTPStatus.OK:
            if time.monotonic() > deadline:
                raise StartError(f"The API did not say that it is ready in {_READY_SECONDS:.0f} s.")
            await asyncio.sleep(_POLL_SECONDS)
        self._ready = True

    async def _stop_parts(self) -> None:
        assert self._listener is not None
        self._listener.close()
        patience = self.settings.drain_seconds + _AFTER_DRAIN_SECONDS
        api, *others = self._parts
        # The API stops first: its open answers need the worker to finish.
        await api.stop(patience)
        await asyncio.gather(*(part.stop(patience) for part in others))


def _metrics_ports(settings: Settings) -> dict[str, socket.socket]:
    """Return a listening socket for each part: on free ports, or from HEADRACE_METRICS_PORT on; none if it is 0."""
    first, free = settings.metrics_port, "metrics_port" not in settings.model_fields_set
    if not first and not free:
        return {}
    ports = [0] * len(_MEASURED) if free else range(first, first + len(_MEASURED))
    return {name: listen_for_scrapes(settings, port) for name, port in zip(_MEASURED, ports, strict=True)}


def _address(listener: socket.socket) -> tuple[str, int]:
    """Return the host and port of a listening socket for clients on this machine."""
    host, port = listener.getsockname()[:2]
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port


def _url(listener: socket.socket) -> str:
    host, port = _address(listener)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


async def _ping(url: str) -> None:
    async with connect(url, socket_connect_timeout=5, socket_timeout=5) as client:
        await client.ping()


def _with_secret_key(settings: Settings) -> Settings:
    """Return the settings with a secret key: the environment's, or one that is kept beside the embedded Postgres."""
    if settings.secret_key is not None:
        return settings
    path = secret_key_file(settings.data_dir)
    with data_dir_errors(settings.data_dir):
        if not path.exists() or not path.stat().st_size:  # empty: the disk was full when an earlier release wrote it
            _write_whole(path, secrets.token_urlsafe(32))
        return settings.model_copy(update={"secret_key": SecretStr(path.read_text())})


def _write_whole(path: Path, text: str) -> None:
    """Write a file that only its owner may read; after a crash it has all of the text, or is as it was."""
    unfinished = path.with_suffix(".new")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _environment(settings: Settings) -> dict[str, str]:
    """Return this process's environment with the settings that were decided here."""
    decided = {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "HEADRACE_DATA_DIR": str(settings.data_dir),
        "HEADRACE_LOG_LEVEL": settings.log_level,
        "HEADRACE_LOG_FORMAT": settings.log_format,
        "PYTHONUNBUFFERED": "1",
    }
    if settings.secret_key is not None:
        decided["HEADRACE_SECRET_KEY"] = settings.secret_key.get_secret_value()
    inherited = dict(os.environ)
    if settings.bootstrap_key is None:
        inherited.pop("HEADRACE_BOOTSTRAP_KEY", None)
    return inherited | decided


def _status(address: tuple[str, int], path: str) -> int | None:
    """Return the status of a GET, or None without an answer. A proxy in the environment is not used."""
    connection = http.client.HTTPConnection(*address, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def curl_line(base_url: str, key: str, model: str) -> str:
    """Return a shell command that streams a completion."""
    body = f'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    return (
        f"curl -N {base_url}/chat/completions \\\n"
        f"  -H {shlex.quote(f'Authorization: Bearer {key}')} -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(body)}"
    )


def cheap_model(catalogue: Catalogue) -> str | None:
    """Return a model for a trial: a cheap one of a provider, else any of a provider, else `demo`."""
    names = catalogue.names()
    own = [name for name in names if name not in DEMO_MODELS]
    return next((name for name in (*_CHEAP_MODELS, *own, DEMO) if name in names), None)


def _listed(names: Sequence[str]) -> str:
    shown, more = names[:_MOST_SHOWN], len(names) - _MOST_SHOWN
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "") or "none: the configuration has no models"


def _source(settings: Settings) -> str:
    file = configuration_file(settings.config)
    return "built in, as there is no headrace.toml here" if file is None else str(file.absolute())


async def _announce(service: Service) -> None:
    service.say(f"\nHeadrace {__version__} is ready.", "bold green")
    service.say(f"  base URL   {service.base_url}")
    if service.console_url is not None:
        service.say(f"  console    {service.console_url}")
    service.say(f"  config     {_source(service.settings)}")
    service.say(f"  models     {_listed(service.catalogue.entries())}")
    if service.first_key is not None:
        service.say(f"  API key    {service.first_key}   (not shown again; `headrace keys create` makes more)")
    else:
        service.say("  API key    as created before; `headrace keys create` makes another")
    if service.metrics_ports:
        listed = ", ".join(f"{name} {port}" for name, port in service.metrics_ports.items())
        service.say(f"  metrics    {listed}   (ports of {service.settings.metrics_host}, each with /metrics)")
    service.say("\nTry it:\n", "bold")
    model = cheap_model(service.catalogue) or "MODEL"
    service.say(curl_line(service.base_url, service.first_key or "YOUR_KEY", model))
    service.say("\nCtrl-C stops it.\n", "dim")
    await asyncio.Event().wait()


@click.command()
@click.option("--console/--no-console", "web", default=True, help="Whether the web console runs too.")
@click.pass_obj
def dev(settings: Settings, *, web: bool) -> None:
    """Run the whole service on this machine: stores, API, worker, scheduler and web console.

    It starts Postgres and Valkey unless DATABASE_URL and REDIS_URL name others. The API listens on HEADRACE_HOST
    (default 127.0.0.1) and HEADRACE_PORT (default 8700; 0 takes any free port). HEADRACE_DATA_DIR keeps the data.
    The console listens on HEADRACE_CONSOLE_PORT (default 8701). Models and providers come from HEADRACE_CONFIG, else
    from headrace.toml in the working directory.
    """
    Service(settings, Console(), web=web).run(_announce)
