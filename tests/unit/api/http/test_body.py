"""The bodies of requests, within their limit."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.datastructures import State

from api.http.body import read_body
from api.http.request import ApiRequest
from headrace.errors import PayloadTooLargeError
from headrace.settings import Settings

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LIMIT = 10_000
# Streams that hold nothing and do not end: blocks of gzip (RFC 1951, section 3.2.4), a frame to skip (RFC 8878, 3.1.2).
NO_GZIP = [gzip.compress(b"")[:10], *[b"\x00\x00\x00\xff\xff" * 1000] * 10]
NO_ZSTD = [b"\x50\x2a\x4d\x18\xff\xff\xff\xff", *[bytes(1000)] * 20]


def request_of(pieces: list[bytes], *, encoding: str) -> tuple[ApiRequest, Iterator[bytes]]:
    left = iter(pieces)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": next(left), "more_body": True}

    state = State({"settings": Settings(max_body_bytes=LIMIT)})
    headers = [(b"content-encoding", encoding.encode())]
    return ApiRequest({"type": "http", "headers": headers, "state": state}, receive), left


@pytest.mark.parametrize(
    ("encoding", "pieces"),
    [
        ("gzip", [gzip.compress(bytes(LIMIT + 1)), b"more"]),
        ("zstd", [zstd.compress(bytes(LIMIT + 1)), b"more"]),
        ("gzip", NO_GZIP),
        ("zstd", NO_ZSTD),
    ],
    ids=["gzip", "zstd", "nothing in gzip", "nothing in zstd"],
)
async def test_a_compressed_body_is_read_no_further_than_its_limit(encoding: str, pieces: list[bytes]) -> None:
    request, left = request_of(pieces, encoding=encoding)
    with pytest.raises(PayloadTooLargeError):
        await read_body(request)
    assert list(left)
