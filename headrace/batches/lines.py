"""The lines of a batch's input, one request each: split from bytes as they come, and checked. Pure.

A line is `{"custom_id": …, "method": "POST", "url": …, "body": {…}}`: `BatchRequestInput` in OpenAI's description. Its
URL is the endpoint of its batch. Lines are numbered from 1, blank ones included, as in an editor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from headrace.batches.endpoints import DEFAULT_ENDPOINT, ENDPOINTS, Terms
from headrace.errors import InvalidRequestError, invalid_parameter, missing_parameter, shorten
from headrace.formats.json_document import parse_json

LONGEST_CUSTOM_ID = 512
"""Characters of a line's `custom_id`, at most."""
LARGEST_LINE = 20 * 1024 * 1024
"""In bytes: as large as the largest body that a request of its own may have by default."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FIELDS = frozenset({"custom_id", "method", "url", "body"})


class RawLine(NamedTuple):
    """A line that is not blank, where it ends in the input, and its number. `text` is None if it is too large."""

    number: int
    end: int
    text: bytes | None


class LineReader:
    """Splits pieces of an input into lines; holds no more than a line and a piece."""

    def __init__(self, *, offset: int = 0, number: int = 1, largest: int = LARGEST_LINE) -> None:
        """Start at a line's first byte, `offset`, and its number. Larger lines than `largest` bytes are skipped."""
        self._offset = offset
        self._number = number
        self._largest = largest
        self._held: list[bytes] = []
        self._size = 0

    @property
    def held(self) -> int:
        """How many bytes it holds of a line whose end has not come."""
        return self._size if self._size <= self._largest else 0

    def feed(self, piece: bytes) -> Iterator[RawLine]:
        """Yield the lines that end in this piece, in order. All of them have to be taken before the next piece."""
        at = 0
        while (end := piece.find(b"\n", at)) >= 0:
            yield from self._take(piece[at:end], 1)
            at = end + 1
        self._hold(piece[at:] if at else piece)

    def close(self) -> Iterator[RawLine]:
        """Yield what stands after the last line end."""
        if self._size:
            yield from self._take(b"", 0)

    def _hold(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= self._largest:
            self._held.append(part)
        else:
            self._held.clear()

    def _take(self, last: bytes, line_end: int) -> Iterator[RawLine]:
        size = self._size + len(last)
        text = b"".join((*self._held, last)) if self._held else last
        self._held.clear()
        self._size = 0
        number, start = self._number, self._offset
        self._number += 1
        self._offset += size + line_end
        if size > self._largest:
            yield RawLine(number, self._offset, None)
            return
        if start == 0:
            text = text.removeprefix(_BYTE_ORDER_MARK)
        if text and not text.isspace():
            yield RawLine(number, self._offset, text)


class Line(NamedTuple):
    """A checked line: the name that its client gave it, its request as it came, and the request's checked model."""

    custom_id: str
    body: dict[str, Any]
    terms: Terms


def parse_line(text: bytes | None, *, endpoint: str = DEFAULT_ENDPOINT) -> Line:
    """Check a line of a batch with this endpoint. Whether the model exists is not checked here.

    Raises:
        InvalidRequestError: It is not valid; `param` is the path of the field, from the line.
    """
    if text is None:
        raise InvalidRequestError(f"This line is longer than {LARGEST_LINE} bytes.", code="line_too_large")
    try:
        line = parse_json(text)
    except InvalidRequestError as error:
        if error.code != "invalid_json":
            raise
        raise InvalidRequestError("This line is not parseable as valid JSON.", code="invalid_json_line") from None
    if not isinstance(line, dict):
        raise InvalidRequestError("This line is not a JSON object.", code="invalid_json_line")
    body = _check_envelope(line, endpoint)
    try:
        terms = ENDPOINTS[endpoint].check(body)
    except InvalidRequestError as problem:
        problem.param = "body" if problem.param is None else f"body.{problem.param}"
        raise
    return Line(line["custom_id"], body, terms)


def _check_envelope(line: dict[str, Any], endpoint: str) -> dict[str, Any]:
    for name in ("custom_id", "method", "url", "body"):
        if line.get(name) is None:
            raise missing_parameter(name)
    custom_id, body = line["custom_id"], line["body"]
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= LONGEST_CUSTOM_ID or "\0" in custom_id:
        raise invalid_parameter(
            "custom_id",
            f"expected a string of 1 to {LONGEST_CUSTOM_ID} characters, none of them U+0000",
            code="invalid_custom_id",
        )
    if line["method"] != "POST":
        raise invalid_parameter("method", "it must be 'POST'", code="invalid_method")
    if line["url"] != endpoint:
        raise invalid_parameter("url", f"it must be the batch's endpoint, '{endpoint}'", code="mismatched_url")
    if not isinstance(body, dict):
        raise InvalidRequestError("Invalid type for 'body': expected an object.", param="body", code="invalid_type")
    if len(line) > len(_FIELDS):
        unknown = shorten(next(name for name in line if name not in _FIELDS))
        raise InvalidRequestError(f"Unknown parameter: '{unknown}'.", param=unknown, code="unknown_parameter")
    return body


class LineProblem(NamedTuple):
    """What is wrong with a line, or with the whole input, which has none."""

    line: int | None
    code: str
    message: str
    param: str | None

    @classmethod
    def of(cls, line: int | None, error: InvalidRequestError) -> LineProblem:
        """Return what an error says of a line."""
        return cls(line, error.code or "invalid_request", error.message, error.param)

    def render(self) -> dict[str, Any]:
        """Return OpenAI's `BatchError`."""
        return {"code": self.code, "message": self.message, "param": self.param, "line": self.line}


class CustomIds:
    """Finds custom ids that come twice. It keeps a number for each, not the id: a hundred thousand are a few MB."""

    def __init__(self) -> None:
        """Know none yet."""
        self._seen: set[int] = set()

    def check(self, custom_id: str) -> None:
        """Take note of an id.

        Raises:
            InvalidRequestError: It came before.
        """
        key = hash(custom_id)  # of 64 bits, seeded anew in every process
        if key in self._seen:
            raise InvalidRequestError(
                f"Duplicate 'custom_id': '{shorten(custom_id)}' is that of an earlier line.",
                param="custom_id",
                code="duplicate_custom_id",
            )
        self._seen.add(key)
