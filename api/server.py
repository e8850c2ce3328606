"""The HTTP server: uvicorn, with connections that have limits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

import uvicorn
from fastapi import FastAPI

from api.http.connection import IDLE_SECONDS, RESERVED_DESCRIPTORS, Connection
from api.http.middleware import RequestScope
from headrace.runtime.process import raise_descriptor_limit
from headrace.runtime.quiet_server import QuietServer
from headrace.settings import Settings
from headrace.telemetry.health import HEALTH

# Seconds before the end of `drain_seconds` at which waiting clients get an error, and at which the server cancels the
# requests that still have no answer. Between the two, workers end the jobs of these clients.
_LAST_SECONDS = 3.0
_CUT_SECONDS = 0.5


class Server(QuietServer):
    """The server of one process."""

    ready = "ready: this API serves %s"

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        """Configure uvicorn. `run` serves."""
        super().__init__(
            uvicorn.Config(
                RequestScope(app),
                loop="uvloop",
                http=Connection,
                ws="none",
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=IDLE_SECONDS,
                backlog=65_535,  # the kernel allows fewer; a full one costs new connections seconds, as after a restart
                timeout_graceful_shutdown=int(settings.drain_seconds),
            )
        )
        self._app = app
        self._settings = settings

    def tick(self) -> None:
        """Check the timeouts of all connections."""
        now = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.check(now)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Disconnect readers, give other requests `drain_seconds` to finish, and end."""
        HEALTH.draining = True
        hub = self._app.state.hub
        hub.end_watching()
        # Both happen before uvicorn closes what the requests still use.
        loop, grace = asyncio.get_running_loop(), int(self._settings.drain_seconds)
        loop.call_later(max(0.0, grace - _LAST_SECONDS), hub.end_waiting)
        loop.call_later(max(0.0, grace - _CUT_SECONDS), self._cut)
        await super().shutdown(sockets)

    def _cut(self) -> None:
        for request in self.server_state.tasks:
            request.cancel()


def serve(app: FastAPI, settings: Settings, listener: socket.socket) -> None:
    """Serve the application on a listening socket until the process gets a signal to end."""
    raise_descriptor_limit(settings.max_connections + RESERVED_DESCRIPTORS)
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when it has shut down
        Server(app, settings).run(sockets=[listener])


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a line of uvicorn's says what `Connection` and `RequestScope` do not log, at INFO.

    uvicorn logs mistakes of clients as warnings, and requests that are cancelled at the end with a traceback.
    """
    is_cancelled = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return record.levelno != logging.WARNING and not is_cancelled
