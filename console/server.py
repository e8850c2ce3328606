"""The console's HTTP server."""

from __future__ import annotations

import contextlib
import socket

import uvicorn
from fastapi import FastAPI

from headrace.runtime.quiet_server import QuietServer

# Seconds that open pages get to finish when the process is asked to end.
_GRACE_SECONDS = 2


class Server(QuietServer):
    """The server of one process."""

    ready = "ready: the console is on %s"


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve the console on a listening socket until the process gets a signal to end."""
    config = uvicorn.Config(
        app,
        http="h11",  # httptools would read a request's head of any size into memory
        lifespan="on",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when it has shut down
        Server(config).run(sockets=[listener])
