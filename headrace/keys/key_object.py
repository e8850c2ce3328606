"""An API key as every path and command shows it, and what a client may say of one."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from headrace.errors import NotFoundError, shorten
from headrace.formats.chat.validation import InvalidFieldError
from headrace.keys.principal import KeyScope
from headrace.keys.queries import KeyChanges
from headrace.quotas.rules import Limits
from headrace.stores.connections import Row

MOST_OVERLAP_SECONDS = 2_592_000
"""Seconds for which a rotated key may still work: 30 days."""
_DAY_SECONDS = 86_400
# Seconds until a key expires, at most: a hundred years.
_LONGEST_SECONDS = 36_500 * _DAY_SECONDS
# Unix seconds at which the year 9999 ends, and Python's time.
_LATEST = 253_402_300_799

_EXAMPLE: dict[str, Any] = {
    "id": "key_019aaf5ee3a04b3fb0a1c65d8c2a9be1",
    "object": "api_key",
    "name": "ci",
    "account": "acme",
    "hint": "hr_a1b2",
    "scopes": ["usage:read"],
    "read_only": False,
    "limits": {"requests_per_minute": 60, "monthly_budget": "25", "models": ["demo", "gpt-*"]},
    "created_at": 1763856000,
    "expires_at": 1771632000,
    "revoked_at": None,
    "last_used_at": 1763859600,
    "previous_expires_at": None,
    "status": "active",
    "parent_id": None,
}


class ApiKey(BaseModel):
    """An API key, but for the key itself. Times are in Unix seconds."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    id: str
    object: Literal["api_key"]
    name: str
    account: str = Field(description="The account's name")
    hint: str = Field(description="The key's first characters")
    scopes: list[str]
    read_only: bool = Field(description="Whether it may send only requests that change nothing")
    limits: Limits
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None = Field(description="To the minute")
    previous_expires_at: int | None = Field(description="When the key from before its rotation ceases to work")
    status: Literal["active", "expired", "revoked"]
    parent_id: str | None = Field(description="The key that made it over HTTP")


class NewApiKey(ApiKey):
    """An API key that was just created or rotated, with the key, which is shown once."""

    model_config = ConfigDict(json_schema_extra={"example": {**_EXAMPLE, "key": "hr_a1b2…"}})

    key: str


class DeletedApiKey(BaseModel):
    """The answer to a revocation."""

    id: str
    object: Literal["api_key.deleted"]
    deleted: Literal[True]


def render_key(row: Row) -> dict[str, Any]:
    """Return the object of a key's row."""
    return {
        "id": row.id,
        "object": "api_key",
        "name": row.name,
        "account": row.account,
        "hint": row.hint,
        "scopes": row.scopes,
        "read_only": row.read_only,
        "limits": Limits.parse(row.limits).render(),
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
        "last_used_at": row.last_used_at,
        "previous_expires_at": row.previous_expires_at,
        "status": row.status,
        "parent_id": row.parent_id,
    }


def no_such_key(key_id: str) -> NotFoundError:
    """Return the error for an id without a key that the request may see."""
    return NotFoundError(f"No API key found with id '{shorten(key_id)}'.", param="key_id")


def no_such_account(name: str) -> NotFoundError:
    """Return the error for a name without an account."""
    return NotFoundError(f"No account found with name '{shorten(name)}'.", param="account")


def _check_text(text: str) -> str:
    if "\0" in text:
        raise ValueError("it has the character U+0000.")  # Postgres has no place for it
    return text


_Name = Annotated[str, Field(max_length=256), AfterValidator(_check_text)]
_AccountName = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_check_text)]


class KeyUpdate(BaseModel):
    """The changes to a key. A field that is left out stays unchanged, and `null` removes it."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"examples": [{"name": "ci", "limits": {"requests_per_minute": 120}}]},
    )

    name: _Name | None = Field(default=None, description="What it is for")
    scopes: Annotated[list[KeyScope], Field(max_length=16, fail_fast=True)] | None = Field(
        default=None, description="What it may do beyond asking models; none that the one who gives it lacks"
    )
    read_only: bool | None = Field(default=None, description="Allow only requests that change nothing")
    limits: Limits | None = Field(default=None, description="All of its limits")
    expires_at: Annotated[int, Field(le=_LATEST)] | None = Field(default=None, description="Unix seconds")
    expires_in_seconds: Annotated[int, Field(ge=1, le=_LONGEST_SECONDS)] | None = None

    @model_validator(mode="after")
    def _check_expiry(self) -> Self:
        if self.expires_at is None:
            return self
        if self.expires_in_seconds is not None:
            raise InvalidFieldError("expires_in_seconds", "only allowed without 'expires_at'.")
        if self.expires_at <= time.time():
            raise InvalidFieldError("expires_at", "it has passed.")
        return self

    @property
    def changes(self) -> KeyChanges:
        """What it names."""
        given = self.model_fields_set
        changes = KeyChanges()
        if "name" in given:
            changes["name"] = self.name or ""
        if "scopes" in given:
            changes["scopes"] = list(dict.fromkeys(self.scopes or ()))
        if "read_only" in given:
            changes["read_only"] = bool(self.read_only)
        if "limits" in given:
            changes["limits"] = self.limits or Limits()
        if given & {"expires_at", "expires_in_seconds"}:
            at = time.time() + self.expires_in_seconds if self.expires_in_seconds else self.expires_at
            changes["expires_at"] = None if at is None else datetime.fromtimestamp(at, UTC)
        return changes


class KeyRequest(KeyUpdate):
    """The key that a client asks for."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "ci",
                    "scopes": ["usage:read"],
                    "expires_in_seconds": 90 * _DAY_SECONDS,
                    "limits": {"requests_per_minute": 60, "monthly_budget": "25", "models": ["demo", "gpt-*"]},
                }
            ]
        },
    )

    account: _AccountName | None = Field(
        default=None,
        description="For administrators: whose it is, by name; made if it is new",
    )


class KeyRotation(BaseModel):
    """How a key is replaced by a new one."""

    model_config = ConfigDict(strict=True, extra="forbid", json_schema_extra={"examples": [{"overlap_seconds": 3600}]})

    overlap_seconds: Annotated[int, Field(ge=0, le=MOST_OVERLAP_SECONDS)] = Field(
        default=_DAY_SECONDS, description="How long the key from before works beside the new one"
    )
