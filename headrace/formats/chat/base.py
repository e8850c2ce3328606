"""The base class of a chat request's objects, and the bounds that several of them share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field

MOST_PARTS = 4_096
"""Parts of one message's content: more than the images that any provider takes."""
MOST_TOOLS = 512
"""Tools of a request, calls of one message, and its blocks of thought."""

INT64 = 2**63
"""The first number beyond a signed integer of 64 bits."""

# `Field(deprecated=True)` would warn wherever Headrace reads the parameter. Only the schema shall say it.
DEPRECATED: Any = Field(default=None, json_schema_extra={"deprecated": True})


class Open(BaseModel):
    """An object of the request: its types are JSON's, never converted, and unknown fields stay in it."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, serialize_by_alias=True)


def by_type(*known: str) -> Discriminator:
    """Return what tells the members of a union by their `type`: the one for types that are not known is `other`."""

    def type_(value: Any) -> str:
        kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        return kind if isinstance(kind, str) and kind in known else "other"

    return Discriminator(type_)


Word = Annotated[str, Field(min_length=1, max_length=64)]
"""A word for which providers have values of their own, so the provider judges it."""

# Lists stop at their first bad item: a body of a million bad items is refused as quickly as any other.
TOOLS = Field(max_length=MOST_TOOLS, fail_fast=True)
PARTS = Field(min_length=1, max_length=MOST_PARTS, fail_fast=True)
