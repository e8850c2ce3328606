"""The result of a batch's line in its output file: `BatchRequestOutput` in OpenAI's description. Pure.

A line with an answer goes to the output file, and every other to the error file. There it has the error that the
provider or Headrace answered with, or the reason why it did not run.
"""

from __future__ import annotations

from typing import Any

import orjson

from headrace.errors import JobCancelledError
from headrace.ids import batch_line_id
from headrace.stores.connections import Row

_EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
CANCELLED = {"code": "batch_cancelled", "message": "This request was not executed: its batch was cancelled."}
CANCELLED_ERROR = JobCancelledError(CANCELLED["message"], code=CANCELLED["code"]).stored()
"""The error in the row of a line that is cancelled with its batch, as JSON."""
_DELETED = {"code": "job_deleted", "message": "The job of this request was deleted, and its answer with it."}


def is_answer(row: Row) -> bool:
    """Return whether a line goes to the output file, and not to the error file."""
    return row.state == "completed" and row.response is not None


def render_line(row: Row) -> bytes:
    """Return a line that has ended, as JSON on one line, without the line's end."""
    if is_answer(row):
        return _render(
            row.id,
            row.custom_id,
            b'{"status_code":200,"request_id":"%b","body":%b}' % (row.id.encode(), row.response.encode()),
            b"null",
        )
    if row.state == "completed":
        return _render(row.id, row.custom_id, b"null", orjson.dumps(_DELETED))
    error = orjson.loads(row.error)
    if row.state == "expired" and row.whole_window:
        return _render(row.id, row.custom_id, b"null", orjson.dumps(_EXPIRED))
    if row.state == "cancelled" and row.whole_cancelled:
        return _render(row.id, row.custom_id, b"null", orjson.dumps(CANCELLED))
    if row.state in {"expired", "cancelled"}:
        return _render(row.id, row.custom_id, b"null", orjson.dumps(_reason(error)))
    body = {"error": {name: error.get(name) for name in ("message", "type", "param", "code")}}
    response = {"status_code": error.get("status") or 500, "request_id": row.id, "body": body}
    return _render(row.id, row.custom_id, orjson.dumps(response), b"null")


def render_unrun(job_id: str, custom_id: str, *, cancelled: bool) -> bytes:
    """Return a line that never became a job. `job_id` is a new id, from which the line's id is made."""
    return _render(job_id, custom_id, b"null", orjson.dumps(CANCELLED if cancelled else _EXPIRED))


def _reason(error: dict[str, Any]) -> dict[str, Any]:
    return {"code": error.get("code"), "message": error.get("message")}


def _render(job_id: str, custom_id: str, response: bytes, error: bytes) -> bytes:
    return b'{"id":"%b","custom_id":%b,"response":%b,"error":%b}' % (
        batch_line_id(job_id).encode(),
        orjson.dumps(custom_id),
        response,
        error,
    )
