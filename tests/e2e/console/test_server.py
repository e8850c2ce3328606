"""The console's HTTP server before hostile clients."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import pytest


async def send_fields(writer: asyncio.StreamWriter) -> None:
    """Send 15 MB of fields."""
    for _ in range(256):
        writer.write(b"a: b\r\n" * 10_000)
        await writer.drain()


async def test_a_request_whose_head_does_not_end_is_cut_off(console: str) -> None:
    url = httpx.URL(console)
    _, writer = await asyncio.open_connection(url.host, url.port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nhost: console\r\n")
        with pytest.raises(ConnectionError):
            await send_fields(writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    async with httpx.AsyncClient(base_url=console) as client:
        assert (await client.get("/sign-in")).status_code == 200
