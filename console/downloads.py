"""Files of the API, passed on to the browser as they come."""

from __future__ import annotations

import contextlib

from fastapi import Request
from starlette.responses import Response

from console.client import Api, Parameters
from console.streams import PassedOn

CSV = "text/csv; charset=utf-8"

# Headers of the browser's request for a part of a file, and headers of the API's answer that the browser gets.
_ASKED = ("range", "if-range", "if-none-match")
_ANSWERED = ("content-length", "content-range", "content-disposition", "accept-ranges", "etag")


async def download(
    request: Request,
    api: Api,
    path: str,
    *,
    params: Parameters | None = None,
    filename: str | None = None,
    media_type: str = "application/octet-stream",
) -> Response:
    """Return what is at a path of the API as a file, or the part of it that the browser asks for.

    It is named as the API names it, or `filename`. A browser saves it and never shows it, as a model's text may be
    HTML. Raises as `Api.get` does.
    """
    async with contextlib.AsyncExitStack() as stack:
        asked = {name: request.headers[name] for name in _ASKED if name in request.headers}
        answer = await stack.enter_async_context(
            api.stream(path, params=params, headers={"accept-encoding": "identity", **asked})
        )
        headers = {name: answer.headers[name] for name in _ANSWERED if name in answer.headers}
        if "content-encoding" in answer.headers:  # a proxy before the API compresses: it is decoded here
            headers.pop("content-length", None)
        if filename is not None:
            headers |= attachment(filename)
        headers.setdefault("content-disposition", "attachment")
        return PassedOn(
            answer.aiter_bytes(),
            stack.pop_all(),
            status_code=answer.status_code,
            headers=headers,
            media_type=media_type,
        )


def attachment(filename: str) -> dict[str, str]:
    """Return the header that makes a browser save an answer as a file. The name is plain ASCII."""
    return {"content-disposition": f'attachment; filename="{filename}"'}
