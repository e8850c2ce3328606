"""A receiver of webhooks that keeps what it is told, and refuses some of it the first time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.receiver import Message

_EVERY = 5
_REFUSALS = (500, 503, 429, 301)


@dataclass(slots=True)
class Hooks:
    """What came; `taken` are the ids that were answered well."""

    url: str
    messages: list[Message] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)

    def take(self, message: Message) -> int:
        """Keep a message and return the status to answer it with: every fifth is refused when it first comes."""
        self.messages.append(message)
        number = int(message.id[-6:], 16)
        if number % _EVERY == 0 and message.id not in self.refused:
            self.refused.add(message.id)
            return _REFUSALS[number % len(_REFUSALS)]
        self.taken.add(message.id)
        return 200


@contextlib.contextmanager
def running_hooks() -> Iterator[Hooks]:
    """Listen on a free port while within."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.send_response(hooks.take(Message(self.path, headers, body.decode())))
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # connections that come at once

    with Server(("127.0.0.1", 0), Handler) as server:
        hooks = Hooks(f"http://127.0.0.1:{server.server_port}/hook")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hooks
        finally:
            server.shutdown()
            thread.join()
