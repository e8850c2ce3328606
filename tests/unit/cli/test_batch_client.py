"""How `headrace batch` reads an event stream."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from headrace.cli.batch_client import ServerError, event_lines
from headrace.cli.server import connected

PROGRESS = {"object": "batch.progress", "status": "in_progress"}
REFUSAL = {"error": {"message": "Incorrect API key provided."}}


def test_lines_end_at_a_line_feed_alone() -> None:
    text = "id: 1\ndata: one\u2028two\x85three\x1cfour\n\n"
    pieces = (bytes([byte]) for byte in text.encode())
    assert list(event_lines(httpx.Response(200, content=pieces))) == text.split("\n")[:-1]


@contextmanager
def answering(*answers: tuple[int, str]) -> Iterator[tuple[str, list[Mapping[str, str]]]]:
    """Give these statuses and bodies one after the other while within; yields the URL and the requests' headers."""
    left, asked = iter(answers), list[Mapping[str, str]]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append({name.lower(): value for name, value in self.headers.items()})
            status, body = next(left)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_an_error_ends_the_progress_and_the_server_is_asked_why() -> None:
    told = f"event: batch.progress\nid: known\ndata: {json.dumps(PROGRESS)}\n\n"
    refused = f"event: error\ndata: {json.dumps(REFUSAL)}\n\n"
    with (
        answering((200, told + refused), (401, json.dumps(REFUSAL))) as (url, asked),
        connected(url, "hr_key") as client,
    ):
        progress = client.watch("batch_1")
        assert next(progress) == PROGRESS
        with pytest.raises(ServerError, match="The server answered 401: Incorrect API key provided"):
            next(progress)
    assert [headers.get("last-event-id") for headers in asked] == [None, "known"]
