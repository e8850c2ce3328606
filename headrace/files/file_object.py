"""The file object, as every path shows it: `OpenAIFile` in OpenAI's description."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from headrace.errors import NotFoundError, shorten
from headrace.files.queries import find_file
from headrace.ids import is_id
from headrace.stores.connections import Row
from headrace.stores.database import Database


class FileObject(BaseModel):
    """A file. Times are in Unix seconds."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "file-019aaf5ee3a04b3fb0a1c65d8c2a9be1",
                "object": "file",
                "bytes": 120000,
                "created_at": 1763856000,
                "expires_at": None,
                "filename": "questions.jsonl",
                "purpose": "batch",
                "status": "processed",
                "status_details": None,
            }
        }
    )

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = Field(json_schema_extra={"deprecated": True})
    status_details: None = Field(json_schema_extra={"deprecated": True})


def render_file(row: Row) -> dict[str, Any]:
    """Return the file object of a row."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }


async def get_file(database: Database, file_id: str, account_id: str, *, param: str = "file_id") -> Row:
    """Return an account's file.

    Raises:
        NotFoundError: The account has no such file. The error is the same where another account has it.
    """
    row = await find_file(database, file_id, account_id) if is_id(file_id, "file") else None
    if row is None:
        raise no_such_file(file_id, param=param)
    return row


def no_such_file(file_id: str, *, param: str = "file_id") -> NotFoundError:
    """Return the error for an id without a file of the account."""
    return NotFoundError(f"No such File object: {shorten(file_id)}", param=param)
