"""The metrics port: `/metrics`, `/livez` and `/readyz` of one process, from memory and without a key.

It is a thread of its own, so it answers although the event loop is busy or stuck, which `/livez` then shows.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import selectors
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from headrace.settings import SettingError, Settings
from headrace.telemetry.exposition import MEDIA_TYPE, render_metrics
from headrace.telemetry.health import HEALTH
from headrace.telemetry.metrics import Part

log = logging.getLogger(__name__)

# Seconds that a client may take to send its request or to read its answer.
_CLIENT_SECONDS = 5.0
# Connections that may wait for the thread.
_BACKLOG = 16


def listen(settings: Settings, *, fd: int | None = None) -> socket.socket | None:
    """Return the listening socket of the metrics port, or None if the port is off. `fd` is one that is inherited.

    Raises:
        SettingError: The address is in use, or does not belong to this machine.
    """
    if not settings.metrics_port:
        return None
    return listen_on(settings, settings.metrics_port) if fd is None else socket.socket(fileno=fd)


def listen_on(settings: Settings, port: int) -> socket.socket:
    """Return a socket that listens on a port of HEADRACE_METRICS_HOST; 0 takes any free one.

    Raises:
        SettingError: The address is in use, or does not belong to this machine.
    """
    host = settings.metrics_host
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise SettingError(
            f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}. "
            "Set HEADRACE_METRICS_HOST or HEADRACE_METRICS_PORT."
        ) from error


@contextlib.contextmanager
def serving(part: Part, listener: socket.socket | None) -> Iterator[None]:
    """Serve the metrics port inside the context; without a listener do nothing. The context closes the listener."""
    if listener is None:
        yield
        return
    server = _Server(listener, functools.partial(_Handler, part=part))
    ending, end = socket.socketpair()
    HEALTH.tick()
    thread = threading.Thread(target=server.serve_until, args=(ending,), name="metrics", daemon=True)
    thread.start()
    host, port, *_ = listener.getsockname()
    log.info("metrics are on http://%s:%d/metrics", f"[{host}]" if ":" in host else host, port)
    try:
        yield
    finally:
        end.close()
        thread.join()
        ending.close()
        server.server_close()


class _Server(ThreadingMixIn, TCPServer):
    """A thread for each connection to a socket that listens already."""

    daemon_threads = True
    block_on_close = False
    timeout = 0  # `serve_until` waits, and `handle_request` does not

    def __init__(self, listener: socket.socket, handler: functools.partial[_Handler]) -> None:
        super().__init__(listener.getsockname(), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener

    def serve_until(self, ending: socket.socket) -> None:
        """Serve until `ending` is readable. The standard library's `serve_forever` would wake twice a second."""
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            selector.register(ending, selectors.EVENT_READ)
            while all(key.fileobj is not ending for key, _ in selector.select()):
                self.handle_request()

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002  (socketserver's signature)
        """Log a request that failed, as one that its client cut off."""
        log.debug("a request to the metrics port failed")


class _Handler(BaseHTTPRequestHandler):
    timeout = _CLIENT_SECONDS
    server_version = "headrace"
    sys_version = ""

    def __init__(self, *args: Any, part: Part) -> None:
        self._part = part
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answer one request."""
        match self.path.partition("?")[0]:
            case "/metrics":
                self._answer(HTTPStatus.OK, render_metrics(self._part), MEDIA_TYPE)
            case "/livez":
                self._answer_health(healthy=HEALTH.alive)
            case "/readyz":
                self._answer_health(healthy=HEALTH.ready)
            case _:
                self._answer(HTTPStatus.NOT_FOUND, b"/metrics, /livez, /readyz\n", "text/plain")

    do_HEAD = do_GET  # noqa: N815  (http.server's name)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (http.server's name)
        """Log nothing: a scrape comes every few seconds."""

    def _answer_health(self, *, healthy: bool) -> None:
        body = json.dumps(HEALTH.describe(self._part)).encode()
        self._answer(HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE, body, "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
