"""How `headrace batch` reads an event stream."""

from __future__ import annotations

import httpx

from headrace.cli.batch_client import event_lines


def test_lines_end_at_a_line_feed_alone() -> None:
    text = "id: 1\ndata: one\u2028two\x85three\x1cfour\n\n"
    pieces = (bytes([byte]) for byte in text.encode())
    assert list(event_lines(httpx.Response(200, content=pieces))) == text.split("\n")[:-1]
