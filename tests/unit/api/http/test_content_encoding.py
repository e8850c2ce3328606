"""Compressed request bodies."""

from __future__ import annotations

import gzip
import zlib

import pytest

from api.http.content_encoding import content_decoder
from headrace.errors import InvalidRequestError

TEXT = b'{"model": "demo"}' * 1000


@pytest.mark.parametrize(
    ("encoding", "body"), [("gzip", gzip.compress(TEXT)), ("Deflate ", zlib.compress(TEXT))], ids=["gzip", "deflate"]
)
def test_a_compressed_body_is_decompressed_piece_by_piece(encoding: str, body: bytes) -> None:
    decoder = content_decoder(encoding)
    assert decoder is not None
    assert b"".join(decoder.decode(body[at : at + 7], 10**6) for at in range(0, len(body), 7)) == TEXT
    decoder.finish()


def test_no_more_is_decompressed_than_was_asked_for() -> None:
    decoder = content_decoder("gzip")
    assert decoder is not None
    assert len(decoder.decode(gzip.compress(bytes(10**7)), 1000)) == 1000


@pytest.mark.parametrize(
    "body", [TEXT, gzip.compress(TEXT)[:-5], gzip.compress(TEXT) + b"more"], ids=["plain", "cut off", "more after it"]
)
def test_a_body_that_is_broken_is_refused(body: bytes) -> None:
    decoder = content_decoder("gzip")
    assert decoder is not None

    def read() -> None:
        decoder.decode(body, 10**6)
        decoder.finish()

    with pytest.raises(InvalidRequestError) as refused:
        read()
    assert refused.value.status == 400


def test_an_unknown_encoding_is_named() -> None:
    assert content_decoder("identity") is None
    with pytest.raises(InvalidRequestError, match="'br'") as refused:
        content_decoder("br")
    assert refused.value.status == 415
