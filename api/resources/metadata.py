"""The metadata that clients give their resources."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from headrace.formats.chat.request import Metadata


class MetadataUpdate(BaseModel):
    """The new metadata of a resource, which replace all earlier ones; `null` removes them."""

    model_config = ConfigDict(
        strict=True, extra="forbid", json_schema_extra={"examples": [{"metadata": {"customer": "42"}}]}
    )

    metadata: Metadata | None
