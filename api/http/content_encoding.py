"""Request bodies that a client compressed: `Content-Encoding`, RFC 9110, section 8.4."""

from __future__ import annotations

from headrace.decompression import ENCODINGS, CompressionError, Decompressor
from headrace.errors import InvalidRequestError, shorten


class Decoder:
    """Decompresses one request body, piece by piece."""

    def __init__(self, encoding: str) -> None:
        """Begin a body that is compressed as `encoding`, one of ENCODINGS."""
        self._encoding = encoding
        self._body = Decompressor(encoding)

    def decode(self, piece: bytes, most: int) -> bytes:
        """Return what a piece holds, cut off after `most` bytes, which are at least one.

        Raises:
            InvalidRequestError: The piece is not compressed as the encoding says, or the body has too many members.
        """
        try:
            return self._body.decode(piece, most)
        except CompressionError:
            raise self._broken() from None

    def finish(self) -> None:
        """Check that the body is whole.

        Raises:
            InvalidRequestError: The body ends within a member.
        """
        if not self._body.finished:
            raise self._broken()

    def _broken(self) -> InvalidRequestError:
        return InvalidRequestError(
            f"The request body is not complete and valid '{self._encoding}', the encoding in its Content-Encoding.",
            param="Content-Encoding",
            code="invalid_content_encoding",
        )


def content_decoder(encoding: str) -> Decoder | None:
    """Return the decoder of a body with this `Content-Encoding`, or None if the body is not compressed.

    Raises:
        InvalidRequestError: Headrace does not know the encoding: 415.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in ENCODINGS:
        error = InvalidRequestError(
            f"Unsupported Content-Encoding '{shorten(encoding)}': "
            "send no compression, or one of gzip, deflate and zstd.",
            param="Content-Encoding",
            code="unsupported_content_encoding",
            status=415,
        )
        error.headers = {"accept-encoding": "gzip, deflate, zstd"}
        raise error
    return Decoder(encoding)
