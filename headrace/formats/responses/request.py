"""The body of `POST /responses`, checked."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from headrace.formats.chat.base import Open
from headrace.formats.chat.options import StreamOptions
from headrace.formats.chat.request import Metadata, ModelName, Timeout, Webhook
from headrace.formats.chat.validation import validate


class ResponseRequest(Open):
    """The body of `POST /responses`: OpenAI's, and Headrace's extensions."""

    model: ModelName
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    background: bool | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    service_tier: str | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    webhook: Webhook | None = Field(default=None, description="An http or https URL, called when the job has ended.")
    timeout: Timeout | None = Field(default=None, description="The job's deadline, in seconds; a week at most.")
    fallbacks: list[ModelName] | None = Field(default=None, description="Models to try, in order.")
    strict_params: bool | None = None


def check_response_request(document: Any) -> ResponseRequest:
    """Return a checked request.

    Raises:
        InvalidRequestError: The request is not valid; the error names the parameter.
    """
    return validate(ResponseRequest, document)
