"""Reading forms within bounds, and the error for a field that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from console.render import size

_MIB = 1024 * 1024
# Decoding a form that is not in parts takes up to 75 bytes of memory for each of its own, and 0.1 s a MiB. Pages with
# long texts send theirs in parts, which need no decoding.
URLENCODED_BYTES = 4 * _MIB


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of a form is read. No form has files: an upload passes through the console unread."""

    fields: int
    size: int
    """Bytes of the whole body."""


ANYONE = Bounds(fields=8, size=64 * 1024)
"""For a form that anyone may send, without a session."""
SIGNED_IN = Bounds(fields=100, size=21 * _MIB)
"""For a session: the 20 MiB that the API takes, and the parts' own lines."""


class FieldError(ValueError):
    """A field of a form cannot be read. Pages show it at its field, as they show an `ApiError`."""

    def __init__(self, param: str, message: str = "This is not a number.") -> None:
        """Take the field's name, and what the page says there."""
        super().__init__(message)
        self.param = param
        self.message = message


async def read_form(request: Request, bounds: Bounds = SIGNED_IN) -> FormData:
    """Return the form of a request. Its first reader reads it, and sets the bounds.

    Raises:
        HTTPException: The form is too large, has a file, or cannot be read.
    """
    if not hasattr(request.state, "form"):
        request.state.form = await _read(request, bounds)
    form: FormData = request.state.form
    return form


async def _read(request: Request, bounds: Bounds) -> FormData:
    in_parts = request.headers.get("content-type", "").lower().startswith("multipart/")
    most = bounds.size if in_parts else min(bounds.size, URLENCODED_BYTES)
    bounded = Request(request.scope, _bounded(request.receive, most))
    return await bounded.form(max_files=0, max_fields=bounds.fields, max_part_size=most)


def _bounded(receive: Receive, most: int) -> Receive:
    """Return what receives a body of at most so many bytes, and refuses the rest of a larger one."""
    received = 0

    async def receive_bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most:
            raise HTTPException(413, f"The form has more than {size(most)}.")
        return message

    return receive_bounded
