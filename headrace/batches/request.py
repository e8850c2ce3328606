"""The body of `POST /batches`: `CreateBatchRequest` in OpenAI's description, and Headrace's own."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from headrace.batches.endpoints import DEFAULT_ENDPOINT, ENDPOINTS
from headrace.formats.chat.request import Metadata, Webhook
from headrace.formats.chat.validation import InvalidFieldError, parse_body

MOST_INLINE = 10_000
"""Requests of a batch that the body itself may have."""
_WINDOW = re.compile(r"([1-9][0-9]{0,4})([mhd])")
# Seconds of each unit of a window.
_UNITS = {"m": 60, "h": 3600, "d": 86_400}
# Seconds of the longest window.
_LONGEST_WINDOW = 7 * 86_400


class FileExpiration(BaseModel):
    """How long the batch's output files are kept."""

    model_config = ConfigDict(strict=True, extra="forbid")

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class BatchRequest(BaseModel):
    """What a client asks for: a file of requests, or the requests themselves, to be run within a window."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "input_file_id": "file-019aaf5ee3a04b3fb0a1c65d8c2a9be2",
                    "endpoint": "/v1/chat/completions",
                    "completion_window": "24h",
                    "metadata": {"customer": "42"},
                },
                {
                    "requests": [
                        {
                            "custom_id": "first",
                            "body": {"model": "demo", "messages": [{"role": "user", "content": "Name a river."}]},
                        }
                    ],
                    "completion_window": "1h",
                },
            ]
        },
    )

    input_file_id: Annotated[str, Field(max_length=256)] | None = None
    requests: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_INLINE, fail_fast=True)] | None = (
        Field(default=None, description="The lines themselves; `method` and `url` may be left out.")
    )
    endpoint: str = Field(
        default=DEFAULT_ENDPOINT, description="Of every line", json_schema_extra={"enum": [*ENDPOINTS]}
    )
    completion_window: Annotated[str, Field(max_length=8)] = Field(
        default="24h", description="`24h`, or any number of minutes, hours or days up to 7 days: `30m`, `6h`, `2d`."
    )
    metadata: Metadata | None = None
    output_expires_after: FileExpiration | None = None
    webhook: Webhook | None = Field(default=None, description="An http or https URL, called when the batch has ended.")

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str) -> str:
        if endpoint not in ENDPOINTS:
            raise ValueError(f"expected {' or '.join(repr(path) for path in ENDPOINTS)}.")
        return endpoint

    @field_validator("completion_window")
    @classmethod
    def _check_window(cls, window: str) -> str:
        match = _WINDOW.fullmatch(window)
        if match is None or int(match[1]) * _UNITS[match[2]] > _LONGEST_WINDOW:
            raise ValueError("expected a number of minutes, hours or days up to 7 days, such as '24h'.")
        return window

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        if self.input_file_id is None and self.requests is None:
            raise InvalidFieldError("input_file_id", "give it, or 'requests'.", "missing_required_parameter")
        if self.input_file_id is not None and self.requests is not None:
            raise InvalidFieldError("requests", "only allowed without 'input_file_id'.")
        return self

    @property
    def window_seconds(self) -> int:
        """The window, in seconds."""
        return int(self.completion_window[:-1]) * _UNITS[self.completion_window[-1]]


def parse_batch_request(body: bytes) -> BatchRequest:
    """Return the body of a request for a batch. Raises InvalidRequestError naming the parameter that is wrong."""
    return parse_body(BatchRequest, body)
