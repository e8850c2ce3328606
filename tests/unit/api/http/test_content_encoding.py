"""Compressed request bodies."""

from __future__ import annotations

import gzip
import sys
import zlib

import pytest

from api.http.content_encoding import content_decoder
from headrace.errors import InvalidRequestError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = b'{"model": "demo"}' * 1000


def _skippable(note: bytes) -> bytes:
    """Return a zstd frame that holds no data: RFC 8878, section 3.1.2."""
    return b"\x50\x2a\x4d\x18" + len(note).to_bytes(4, "little") + note


def _larger_window() -> bytes:
    """Return a zstd frame that needs a window of 16 MB. A frame of known length needs no more than that."""
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 24})
    return compressor.compress(b"hello") + compressor.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("gzip", gzip.compress(TEXT[:99]) + gzip.compress(b"") + gzip.compress(TEXT[99:])),
        ("Deflate ", zlib.compress(TEXT)),
        ("zstd", zstd.compress(TEXT)),
        ("zstd", zstd.compress(TEXT[:99]) + _skippable(b"a note") + zstd.compress(TEXT[99:])),
    ],
    ids=["gzip", "members", "deflate", "zstd", "frames"],
)
def test_a_compressed_body_is_decompressed_piece_by_piece(encoding: str, body: bytes) -> None:
    decoder = content_decoder(encoding)
    assert decoder is not None
    assert b"".join(decoder.decode(body[at : at + 7], 10**6) for at in range(0, len(body), 7)) == TEXT
    decoder.finish()


@pytest.mark.parametrize(
    ("encoding", "bomb"),
    [
        ("gzip", gzip.compress(bytes(10**7))),
        ("gzip", gzip.compress(bytes(999)) * 3),
        ("zstd", zstd.compress(bytes(10**7))),
        ("zstd", zstd.compress(bytes(999)) * 3),
    ],
    ids=["gzip", "members", "zstd", "frames"],
)
def test_no_more_is_decompressed_than_was_asked_for(encoding: str, bomb: bytes) -> None:
    decoder = content_decoder(encoding)
    assert decoder is not None
    assert len(decoder.decode(bomb, 1000)) == 1000


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", TEXT),
        ("gzip", gzip.compress(TEXT)[:-5]),
        ("gzip", gzip.compress(TEXT) + b"more"),
        ("gzip", gzip.compress(TEXT) + gzip.compress(TEXT)[:-5]),
        ("gzip", gzip.compress(b"") * 1001),
        ("deflate", zlib.compress(TEXT) + zlib.compress(TEXT)),
        ("zstd", TEXT),
        ("zstd", zstd.compress(TEXT)[:-5]),
        ("zstd", zstd.compress(TEXT) + b"more"),
        ("zstd", _skippable(b"") * 1001),
        ("zstd", _larger_window()),
    ],
    ids=[
        "plain",
        "cut off",
        "more after it",
        "a member cut off",
        "too many members",
        "two streams of zlib",
        "no zstd",
        "zstd cut off",
        "more after a frame",
        "too many frames",
        "a window of 16 MB",
    ],
)
def test_a_body_that_is_broken_is_refused(encoding: str, body: bytes) -> None:
    decoder = content_decoder(encoding)
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
