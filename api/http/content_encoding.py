"""Request bodies that a client compressed: `Content-Encoding`, RFC 9110, section 8.4."""

from __future__ import annotations

import zlib

from headrace.errors import InvalidRequestError

# zlib's `wbits`, with which it reads either format's head and checksum: https://zlib.net/manual.html#Advanced
_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class Decoder:
    """Decompresses one body, piece by piece."""

    def __init__(self, encoding: str) -> None:
        """Begin a body that is compressed as `encoding`, one of `gzip`, `x-gzip` and `deflate`."""
        self._encoding = encoding
        self._decompress = zlib.decompressobj(_WINDOWS[encoding])

    def decode(self, piece: bytes, most: int) -> bytes:
        """Return what a piece holds, cut off after `most` bytes, which are at least one.

        Raises:
            InvalidRequestError: It is not compressed so, or there is more behind the end.
        """
        try:
            decoded = self._decompress.decompress(piece, most)
        except zlib.error:
            raise self._broken() from None
        if self._decompress.unused_data:
            raise self._broken()
        return decoded

    def finish(self) -> None:
        """Check that the body was whole.

        Raises:
            InvalidRequestError: It was broken off.
        """
        if not self._decompress.eof:
            raise self._broken()

    def _broken(self) -> InvalidRequestError:
        return InvalidRequestError(
            f"The request body is not whole and valid '{self._encoding}', which its Content-Encoding says it is.",
            param="Content-Encoding",
            code="invalid_content_encoding",
        )


def content_decoder(encoding: str) -> Decoder | None:
    """Return what decompresses a body with this `Content-Encoding`; None if it is not compressed.

    Raises:
        InvalidRequestError: Headrace does not know it: 415.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in _WINDOWS:
        error = InvalidRequestError(
            f"Unsupported Content-Encoding '{encoding[:100]}': send the body as it is, or compressed with gzip.",
            param="Content-Encoding",
            code="unsupported_content_encoding",
            status=415,
        )
        error.headers = {"accept-encoding": "gzip, deflate"}
        raise error
    return Decoder(encoding)
