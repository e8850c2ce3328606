"""Uploads: `multipart/form-data` (RFC 7578), written to storage as it arrives, with one chunk in memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import unquote

import orjson
import python_multipart
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header

from api.http.authentication import authenticate
from api.http.body import declared_size, next_message
from api.http.idempotency import has_key, resource_id
from api.http.request import ApiRequest
from headrace.errors import InvalidRequestError, PayloadTooLargeError, invalid_parameter, missing_parameter, shorten
from headrace.files.queries import FileWriter
from headrace.files.quota import check_file_quota
from headrace.keys.principal import Principal

LARGEST_FORM = 64 * 1024
"""The most bytes of a form without its file: boundaries, headers, names, fields."""
LONGEST_FIELD = 1024
"""The most bytes of a field other than the file."""
# Characters of a file's name that are kept.
_LONGEST_FILENAME = 512
# A file name as RFC 8187 encodes it. RFC 7578 forbids that, but clients in C#, Java and Go send it with the plain one.
_EXTENDED = re.compile(r""";\s*filename\*\s*=\s*"?utf-8'[^']*'([^";\s]+)""", re.IGNORECASE)
# Seconds for which a file may be kept.
_SECONDS = range(3600, 2_592_000 + 1)

FORM: dict[str, Any] = {
    "type": "object",
    "required": ["purpose", "file"],
    "properties": {
        "purpose": {"type": "string", "enum": ["batch"]},
        "file": {"type": "string", "format": "binary", "description": "Requests, one per line"},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": _SECONDS[0], "maximum": _SECONDS[-1]},
    },
}
"""The schema of the form, for the OpenAPI document."""


@dataclass(slots=True)
class _Form:
    """The parts of a form as the parser finds them. `pieces` of the file stay until they are written to storage."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    pieces: list[bytes] = field(default_factory=list)
    ended: bool = False
    files: int = 0
    file_bytes: int = 0
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _headers: dict[str, str] = field(default_factory=dict)
    _name: str = ""
    _text: bytearray | None = None

    def callbacks(self) -> python_multipart.multipart.MultipartCallbacks:
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_part,
            "on_part_data": self._take,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _end_header(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value.decode("utf-8", "replace")
        self._header.clear()
        self._value.clear()

    def _begin_part(self) -> None:
        # The parser of options reads latin-1; names may be in UTF-8 (RFC 7578, section 5.1).
        header = self._headers.get("content-disposition", "").encode().decode("latin-1")
        _, options = parse_options_header(header)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._text = None
        if self._name == "file":
            self.files += 1
            self.filename = _extended_filename(header) or options.get(b"filename", b"").decode("utf-8", "replace")
        else:
            self._text = bytearray()

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._text is None:
            self.pieces.append(data[start:end])
            self.file_bytes += end - start
            return
        self._text.extend(data[start:end])
        if len(self._text) > LONGEST_FIELD:
            raise invalid_parameter(self._name[:64], f"it is longer than {LONGEST_FIELD} bytes", code=None)

    def _end_part(self) -> None:
        if self._text is not None:
            self.fields[self._name[:64]] = self._text.decode("utf-8", "replace")

    def _end(self) -> None:
        self.ended = True


async def store_upload(request: ApiRequest, principal: Principal) -> tuple[str, bool]:
    """Write the file of a form to storage. A refused or interrupted upload leaves nothing.

    Returns the file's id, and whether an earlier request with the same Idempotency-Key uploaded it. The key is claimed
    when all bytes are written and before the file is visible. If this process dies in between, the repeated request
    finds the bytes by its key and makes the file visible. Without a key the scheduler deletes the bytes later.

    Raises:
        ConflictError: The Idempotency-Key came with another file.
        InvalidRequestError: The body is not such a form, lacks a field, or ended early.
        QuotaExceededError: The account has the most files, or bytes of files, that it may have.
        PayloadTooLargeError: The file is larger than `HEADRACE_MAX_FILE_BYTES`. The rest is not read.
    """
    database = request.state["database"]
    limit = request.state["settings"].max_file_bytes
    too_large = PayloadTooLargeError(f"The file is larger than {limit} bytes.", param="file")
    declared = declared_size(request)
    if declared > limit + LARGEST_FORM:
        raise too_large
    form = _Form()
    parser = _parser(request, form)
    check_quota = partial(check_file_quota, database, principal.account_id, request.state["settings"], param="file")
    await check_quota(files=1, size=max(0, declared - LARGEST_FORM))
    writer = FileWriter(database, account_id=principal.account_id, purpose="batch")
    digest, keyed = hashlib.sha256(), has_key(request)
    claimed = False
    try:
        async for piece in _pieces(request, parser, form):
            await writer.write(piece)
            if keyed:
                digest.update(piece)
            if writer.size > limit:
                raise too_large
        _check(form)
        filename = (form.filename or "file")[:_LONGEST_FILENAME]
        seconds = _seconds(form.fields)
        await writer.flush()
        await check_quota()  # counts simultaneous uploads too
        await authenticate(request)  # an upload may outlast its key
        digest.update(orjson.dumps([form.fields, filename]))
        asked = orjson.dumps(digest.hexdigest())
        file_id, repeated = await resource_id(request, principal, writer.file_id, asked)
        claimed = not repeated  # from here on the file belongs to the key's next request
        await writer.close(filename=filename, seconds=seconds, file_id=file_id)
    finally:
        if not claimed:
            await writer.discard()
    return file_id, repeated


async def _pieces(request: ApiRequest, parser: python_multipart.MultipartParser, form: _Form) -> AsyncIterator[bytes]:
    """Yield the pieces of the form's file as they arrive. At the end `form` has the fields.

    Raises:
        InvalidRequestError: The body is not such a form, or ended early.
    """
    received, more = 0, True
    while more:
        message = await next_message(request)
        arrived: bytes = message.get("body", b"")
        received += len(arrived)
        try:
            parser.write(arrived)
        except MultipartParseError as error:
            raise InvalidRequestError(
                f"The form is not valid multipart/form-data: {error}", code="invalid_form"
            ) from None
        if received - form.file_bytes > LARGEST_FORM:
            raise InvalidRequestError(
                f"The form has more than {LARGEST_FORM} bytes beside its file.", code="invalid_form"
            )
        for piece in form.pieces:
            yield piece
        form.pieces.clear()
        more = message.get("more_body", False)
    if not form.ended:
        raise InvalidRequestError("The form ended early: its last boundary is missing.")


def _extended_filename(disposition: str) -> str | None:
    found = _EXTENDED.search(disposition)
    return None if found is None else unquote(found[1])


def _parser(request: ApiRequest, form: _Form) -> python_multipart.MultipartParser:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequestError(
            "A file is uploaded as multipart/form-data, with the fields 'purpose' and 'file'.", code="invalid_form"
        )
    return python_multipart.MultipartParser(boundary, form.callbacks())


def _check(form: _Form) -> None:
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise missing_parameter("purpose")
    if purpose != "batch":
        raise invalid_parameter("purpose", f"'{shorten(purpose)}'. The only purpose that files have here is 'batch'")
    if form.files == 0:
        raise missing_parameter("file")
    if form.files > 1:
        raise invalid_parameter("file", "the form has more than one", code="missing_required_parameter")
    if "\0" in (form.filename or ""):
        raise invalid_parameter("file", "its name has the character U+0000", code=None)


def _seconds(fields: dict[str, str]) -> int | None:
    """Return the seconds for which the file is kept, or None if it is kept until a client deletes it."""
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise invalid_parameter("expires_after[anchor]", "it must be 'created_at'")
    if seconds is None or not seconds.isdecimal() or int(seconds) not in _SECONDS:
        raise invalid_parameter("expires_after[seconds]", f"it must be a number from {_SECONDS[0]} to {_SECONDS[-1]}")
    return int(seconds)
