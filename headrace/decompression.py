"""Bodies that are compressed, piece by piece: `Content-Encoding`, RFC 9110, section 8.4."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Protocol

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MOST_MEMBERS = 1000
"""Gzip members or zstd frames of one body. Each costs some microseconds, even if it holds nothing."""
_WINDOW_LOG = 23
"""The binary logarithm of zstd's largest window, 8 MB: what RFC 9659 allows for `Content-Encoding`."""


class _Member(Protocol):
    """One gzip member, zlib stream or zstd frame, as zlib and zstd decompress it."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _gzip() -> _Member:
    return zlib.decompressobj(31)  # `wbits` of gzip's head and checksum: https://zlib.net/manual.html#Advanced


def _deflate() -> _Member:
    return zlib.decompressobj(15)  # `wbits` of zlib's


def _zstd() -> _Member:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})


_MEMBERS: Mapping[str, Callable[[], _Member]] = {"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate, "zstd": _zstd}
ENCODINGS = frozenset(_MEMBERS)
"""The encodings that can be decompressed."""


class CompressionError(ValueError):
    """A body is not compressed as its encoding says, or has too many members."""


class Decompressor:
    """Decompresses one body. Members of gzip and frames of zstd may follow one another."""

    def __init__(self, encoding: str) -> None:
        """Begin a body that is compressed as `encoding`, one of ENCODINGS."""
        self._begin = _MEMBERS[encoding]
        self._most_members = 1 if encoding == "deflate" else _MOST_MEMBERS
        self._member = self._begin()
        self._members = 1

    @property
    def finished(self) -> bool:
        """Whether the body does not end within a member."""
        return self._member.eof

    def decode(self, piece: bytes, most: int) -> bytes:
        """Return what a piece holds, cut off after `most` bytes, which are at least one.

        Raises:
            CompressionError: The piece is not compressed as the encoding says, or the body has too many members.
        """
        decoded: list[bytes] = []
        try:
            while piece and most > 0:
                if self._member.eof:
                    self._next_member()
                decoded.append(self._member.decompress(piece, most))
                most -= len(decoded[-1])
                piece = self._member.unused_data
        except (zlib.error, zstd.ZstdError) as error:
            raise CompressionError(str(error)) from None
        return b"".join(decoded)

    def _next_member(self) -> None:
        if self._members == self._most_members:
            raise CompressionError("too many members")
        self._member = self._begin()
        self._members += 1
