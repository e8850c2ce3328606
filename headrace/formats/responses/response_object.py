"""The response object, as the OpenAPI document shows it. `response` makes it.

OpenAI's description has an object for each kind of item, tool and event. Here these are objects with a `type`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from headrace.formats.responses.response import ResponseStatus


class _Documented(BaseModel):
    model_config = ConfigDict(extra="allow")


class ResponseFailure(_Documented):
    """Why a response failed, as one of OpenAI's codes."""

    code: str
    message: str


class IncompleteDetails(_Documented):
    """Why the model was cut off."""

    reason: str | None


class ResponseConversation(_Documented):
    """The conversation that a response continues."""

    id: str


class InputTokensDetails(_Documented):
    """Details of the input tokens."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(_Documented):
    """Details of the output tokens."""

    reasoning_tokens: int


class ResponseUsage(_Documented):
    """Tokens that a response took."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Typed(_Documented):
    """An item or a tool, whose other fields depend on its `type`."""

    type: str


class ResponseObject(_Documented):
    """A response. Times are in Unix seconds."""

    id: str
    object: Literal["response"]
    created_at: int
    status: ResponseStatus
    background: bool
    completed_at: int | None
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | list[dict[str, Any]] | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[Typed] = Field(description="Messages, calls of tools, and reasoning")
    parallel_tool_calls: bool
    previous_response_id: str | None
    conversation: ResponseConversation | None
    prompt_cache_key: str | None
    prompt_cache_retention: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[Typed]
    top_logprobs: int
    top_p: float
    truncation: str
    presence_penalty: float
    frequency_penalty: float
    usage: ResponseUsage | None
    metadata: dict[str, str]
