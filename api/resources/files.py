"""Files in OpenAI's shape: uploaded for batches, and written by batches."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from api.http.authentication import Authenticated, authenticate
from api.http.errors import render_json
from api.http.idempotency import replay_headers
from api.http.pages import STORABLE_TEXT, Order, Page, after_id, check_after, render_page
from api.http.request import ApiRequest
from api.http.upload import store_upload
from headrace.errors import ConflictError, InvalidRequestError
from headrace.files import queries
from headrace.files.file_object import FileObject, get_file, no_such_file, render_file
from headrace.ids import is_id

router = APIRouter(prefix="/files", tags=["Files"])

_RANGE = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)", re.IGNORECASE)
# The most digits of a position in a file.
_DIGITS = 18


class FileList(Page[FileObject]):
    """A page of files."""


class DeletedFile(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


@router.post("", summary="Upload a file", responses={200: {"model": FileObject}})
async def create_file(request: ApiRequest, principal: Authenticated) -> Response:
    """Store a file for a batch. It may have up to `HEADRACE_MAX_FILE_BYTES`."""
    file_id, repeated = await store_upload(request, principal)
    file = await get_file(request.state["database"], file_id, principal.account_id)
    return render_json(render_file(file), replay_headers(repeated))


@router.get("", summary="List files", responses={200: {"model": FileList}})
async def list_files(
    request: ApiRequest,
    principal: Authenticated,
    purpose: Annotated[str | None, Query(max_length=64, pattern=STORABLE_TEXT)] = None,
    after: Annotated[str | None, after_id("file-")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
) -> Response:
    """List the account's files, newest first."""
    check_after(after, "file")
    rows = await queries.list_files(
        request.state["database"],
        principal.account_id,
        purpose=purpose,
        after=after,
        limit=limit + 1,
        descending=order == "desc",
    )
    return render_page([render_file(row) for row in rows], limit=limit)


@router.get("/{file_id}", summary="Get a file", responses={200: {"model": FileObject}})
async def get_file_object(request: ApiRequest, principal: Authenticated, file_id: str) -> Response:
    """Return a file's properties."""
    return render_json(render_file(await get_file(request.state["database"], file_id, principal.account_id)))


@router.get(
    "/{file_id}/content",
    summary="Download a file",
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "The file"},
        206: {"content": {"application/octet-stream": {}}, "description": "With `Range`: that part of the file"},
        304: {"description": "`If-None-Match` has the file's `ETag`"},
        416: {"description": "`Range` begins after the file's end"},
    },
)
async def get_content(request: ApiRequest, principal: Authenticated, file_id: str) -> Response:
    """Return the content of a file, or with `Range: bytes=…` a part."""
    row = await get_file(request.state["database"], file_id, principal.account_id)
    tag = f'"{file_id}"'  # a file never changes
    headers = {"accept-ranges": "bytes", "etag": tag, "content-disposition": _disposition(row.filename)}
    if _has_tag(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers={"etag": tag})
    # With another validator the client has parts of another file: RFC 9110, section 13.1.5.
    same = request.headers.get("if-range", tag).strip() == tag
    span = _range(request.headers.get("range", ""), row.bytes) if same else None
    if span is None:
        return _content(request, file_id, 0, row.bytes, 200, headers)
    start, end = span
    if start >= end:
        error = InvalidRequestError(f"The file has {row.bytes} bytes.", param="Range", code="invalid_range", status=416)
        error.headers = {"content-range": f"bytes */{row.bytes}"}
        raise error
    headers["content-range"] = f"bytes {start}-{end - 1}/{row.bytes}"
    return _content(request, file_id, start, end, 206, headers)


def _content(
    request: ApiRequest, file_id: str, start: int, end: int, status: int, headers: dict[str, str]
) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        async for piece in queries.read_file(request.state["database"], file_id, start=start, end=end):
            yield piece
            await authenticate(request)  # a download ends when its key becomes invalid

    headers["content-length"] = str(end - start)
    return StreamingResponse(pieces(), status, headers, "application/octet-stream")


def _has_tag(header: str, tag: str) -> bool:
    """Return whether a list of entity tags contains a tag, by weak comparison: RFC 9110, section 13.1.2."""
    tags = [given.strip().removeprefix("W/") for given in header.split(",")]
    return tag in tags or tags == ["*"]


def _range(header: str, size: int) -> tuple[int, int] | None:
    """Return the start and end of a range, or None to answer with the whole file, as for an unsupported range."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        length = _position(last)
        return max(0, size - length), size if length else 0
    if last and _position(last) < _position(first):
        return None
    return _position(first), min(size, _position(last) + 1) if last else size


def _position(digits: str) -> int:
    """Return a position in a file. A position far behind every file's end loses its last digits."""
    return int(digits.lstrip("0")[:_DIGITS] or "0")


def _disposition(filename: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", filename)
    disposition = f'attachment; filename="{plain}"'
    return disposition if plain == filename else f"{disposition}; filename*=UTF-8''{quote(filename, safe='')}"


@router.delete("/{file_id}", summary="Delete a file", responses={200: {"model": DeletedFile}})
async def delete_file(request: ApiRequest, principal: Authenticated, file_id: str) -> Response:
    """Delete a file, unless a batch that has not ended reads it."""
    found, batch_id = False, None
    if is_id(file_id, "file"):
        found, batch_id = await queries.delete_file(request.state["database"], file_id, principal.account_id)
    if not found:
        raise no_such_file(file_id)
    if batch_id is not None:
        raise ConflictError(f"The file is the input of '{batch_id}', which has not ended: cancel that first.")
    return render_json({"id": file_id, "object": "file", "deleted": True})
