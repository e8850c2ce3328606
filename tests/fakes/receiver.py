"""A receiver of webhooks: a real HTTP server on loopback that keeps each message and answers as a test says."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar


@dataclass(frozen=True)
class Message:
    """A message; header names are in lower case."""

    path: str
    headers: dict[str, str]
    body: str

    @property
    def id(self) -> str:
        """The webhook-id."""
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """The next answers are the statuses in `answers`, then 200; `location` goes with each redirect."""

    url: str
    messages: list[Message] = field(default_factory=list)
    answers: deque[int] = field(default_factory=deque)
    location: str = ""
    retry_after: str = ""
    """The `Retry-After` of a 429."""

    def take(self, message: Message) -> int:
        """Keep a message, and return the status to answer it with."""
        self.messages.append(message)
        return self.answers.popleft() if self.answers else 200


Kind = TypeVar("Kind", bound=Receiver)


def running_receiver() -> contextlib.AbstractContextManager[Receiver]:
    """Listen on a free port while within."""
    return listening(Receiver)


@contextlib.contextmanager
def listening(kind: Callable[[str], Kind], host: str = "127.0.0.1") -> Iterator[Kind]:
    """Listen on a free port while within, with a receiver that is made of its URL."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds that a sender may be silent, and hold up the end

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = receiver.take(Message(self.path, headers, body.decode()))
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("location", receiver.location)
            if status == 429 and receiver.retry_after:
                self.send_header("retry-after", receiver.retry_after)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # connections that come at once
        daemon_threads = False  # the end waits until every connection is closed

    with Server((host, 0), Handler) as server:
        receiver = kind(f"http://{host}:{server.server_port}/hook")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
