"""The list of batches, and making one: a file is uploaded or chosen, then the batch is created."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from console.client import Api, ApiError, ApiUnavailableError
from console.forms import read_form
from console.render import page, redirect
from console.security import Reading, Writing

router = APIRouter()

FINAL = frozenset({"completed", "failed", "expired", "cancelled"})
"""The states that a batch stays in."""
ENDPOINTS = ("/v1/chat/completions", "/v1/responses")

_PAGE = 25
# The newest uploaded files that a new batch may be made of.
_MOST_FILES = 100
# Seconds between two refreshes of the list, while a batch of it runs and else.
_BUSY_SECONDS, _IDLE_SECONDS = 2, 10
# Headers of an upload that the API gets as the browser sent them.
_UPLOAD_HEADERS = ("content-type", "content-length")


@dataclass(slots=True)
class Draft:
    """What the form of a new batch says."""

    input_file_id: str = ""
    endpoint: str = ENDPOINTS[0]
    completion_window: str = "24h"
    metadata: str = ""
    """Lines of `key=value`."""
    webhook: str = ""
    request_key: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    """The idempotency key: a form that is sent twice makes one batch."""

    @classmethod
    def of(cls, form: Mapping[str, Any]) -> Draft:
        """Read a form."""
        names = ("input_file_id", "endpoint", "completion_window", "metadata", "webhook", "request_key")
        return cls(**{name: str(form[name]).strip() for name in names if form.get(name)})

    def request(self) -> dict[str, Any]:
        """Return the body of `POST /batches`.

        Raises:
            ValueError: A line of the metadata is not `key=value`.
        """
        metadata = {}
        for line in filter(None, map(str.strip, self.metadata.splitlines())):
            key, equals, value = line.partition("=")
            if not equals or not key.strip():
                raise ValueError(f"Metadata is one key=value in a line. This line is not: {line[:80]}")
            metadata[key.strip()] = value.strip()
        optional = {"metadata": metadata, "webhook": self.webhook}
        return {
            "input_file_id": self.input_file_id,
            "endpoint": self.endpoint,
            "completion_window": self.completion_window,
            **{name: value for name, value in optional.items() if value},
        }


@router.get("/batches")
async def show_batches(request: Request, api: Reading) -> Response:
    """List the batches, newest first, of all or of one value of a metadata key."""
    query = request.query_params
    key, value = query.get("key", "").strip(), query.get("value", "").strip()
    only = {f"metadata[{key}]": value} if key and value else {}
    batches = await api.get("/batches", limit=_PAGE, after=query.get("after"), **only)
    busy = any(batch["status"] not in FINAL for batch in batches["data"])
    return page(
        request,
        "batches.html",
        batches=batches,
        key=key,
        value=value,
        only=only,
        seconds=_BUSY_SECONDS if busy else _IDLE_SECONDS,
    )


@router.get("/batches/new")
async def show_form(request: Request, api: Reading) -> Response:
    """Show the form of a new batch."""
    return await _form(request, api, Draft())


@router.post("/batches/files")
async def upload(request: Request, api: Writing) -> Response:
    """Pass an upload on to the API while the browser sends it, and return the file, or the error, as JSON.

    The body is the form that `POST /files` takes. It is never held: each piece is sent on before the next is read.
    """
    headers = {name: request.headers[name] for name in _UPLOAD_HEADERS if name in request.headers}
    try:
        return JSONResponse(await api.forward("/files", request.stream(), headers))
    except ClientDisconnect:  # cancelled; the API drops what it has
        return Response(status_code=499)
    except ApiUnavailableError:
        return JSONResponse({"error": "The API is unavailable. Try again in a moment."}, 503)
    except ApiError as error:
        if error.status == 401:
            raise
        return JSONResponse({"error": error.message}, error.status)


@router.post("/batches")
async def create(request: Request, api: Writing) -> Response:
    """Create a batch of an uploaded file, and show it. What is wrong is said in the form, which keeps its values."""
    draft = Draft.of(dict(await read_form(request)))
    if not draft.input_file_id:
        return await _form(request, api, draft, "Choose a file to upload, or one that is uploaded already.", 422)
    try:
        batch = await api.post("/batches", draft.request(), **{"idempotency-key": draft.request_key})
    except ValueError as error:
        return await _form(request, api, draft, str(error), 422)
    except ApiUnavailableError:
        return await _form(request, api, draft, "The API is unavailable. Try again in a moment.", 503)
    except ApiError as error:
        if error.status == 401:
            raise
        return await _form(request, api, draft, error.message, error.status)
    return redirect(f"/batches/{batch['id']}")


async def _form(request: Request, api: Api, draft: Draft, error: str | None = None, status: int = 200) -> Response:
    try:
        files = (await api.get("/files", purpose="batch", limit=_MOST_FILES))["data"]
    except ApiUnavailableError:
        if error is None:
            raise
        files = [{"id": draft.input_file_id, "filename": draft.input_file_id, "bytes": None, "created_at": None}]
    draft.request_key = Draft().request_key
    return page(request, "batch_new.html", status=status, draft=draft, files=files, endpoints=ENDPOINTS, error=error)
