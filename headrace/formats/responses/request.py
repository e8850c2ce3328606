"""The request of OpenAI's Responses API, checked.

Names, ranges and enumerations are those of `CreateResponse` in OpenAI's OpenAPI description, and of
`CreateResponseBody` in Open Responses'. The rules of `headrace.formats.chat.request` hold here too: unknown fields
stay, and `null` means "not given".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headrace.formats.chat.base import DEPRECATED, INT64, TOOLS, Open
from headrace.formats.chat.messages import MOST_MESSAGES
from headrace.formats.chat.options import Moderation, PromptCacheOptions
from headrace.formats.chat.request import MOST_TOKENS, Metadata, ModelName, Timeout, Webhook
from headrace.formats.chat.slices import validate_in_slices
from headrace.formats.chat.support import LEAST_OUTPUT
from headrace.formats.chat.validation import InvalidFieldError
from headrace.formats.responses.context import OUR_KEYS
from headrace.formats.responses.items import Item
from headrace.formats.responses.options import (
    ContextManagement,
    ConversationParam,
    Include,
    Prompt,
    ReasoningOptions,
    StreamOptions,
    TextOptions,
)
from headrace.formats.responses.tools import Tool, ToolChoice
from headrace.ids import AGENT_PREFIX

MOST_ITEMS = MOST_MESSAGES
"""Items of `input`, of which some may come from earlier responses."""

_Penalty = Annotated[float, Field(ge=-2, le=2)]
_ITEMS = Field(max_length=MOST_ITEMS, fail_fast=True)


class ResponseRequest(Open):
    """The body of `POST /responses`: OpenAI's, and Headrace's extensions."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "demo", "input": "What is a headrace?"},
                {
                    "model": "demo",
                    "instructions": "Answer in one sentence.",
                    "input": [{"role": "user", "content": "What is a headrace?"}],
                    "stream": True,
                },
                {"model": "demo", "input": "What is a headrace?", "background": True, "stream": True},
            ]
        }
    )

    model: ModelName
    input: str | Annotated[list[Item], _ITEMS] | None = None
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    conversation: ConversationParam | None = None
    prompt: Prompt | None = None

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    max_output_tokens: Annotated[int, Field(ge=LEAST_OUTPUT, le=MOST_TOKENS)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    tools: Annotated[list[Tool], TOOLS] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Field(ge=1, le=INT64 - 1)] | None = None

    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: Annotated[list[Include], Field(max_length=64, fail_fast=True)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    context_management: (
        Annotated[list[ContextManagement], Field(min_length=1, max_length=16, fail_fast=True)] | None
    ) = None
    moderation: Moderation | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    user: str | None = DEPRECATED
    safety_identifier: Annotated[str, Field(max_length=128)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = DEPRECATED
    prompt_cache_options: PromptCacheOptions | None = None

    background: bool | None = Field(default=None, description="Answer at once; the response is made meanwhile.")
    webhook: Webhook | None = Field(default=None, description="An http or https URL, called when the job has ended.")
    timeout: Timeout | None = Field(default=None, description="The job's deadline, in seconds; a week at most.")
    fallbacks: Annotated[list[ModelName], Field(max_length=8, fail_fast=True)] | None = Field(
        default=None, description="Models to try, in order, when the first one's providers fail."
    )
    thinking: dict[str, Any] | None = Field(default=None, description="Anthropic's own, for its models.")
    strict_params: bool | None = Field(
        default=None, description="Refuse the request where a parameter would be dropped, with a 400 that names it."
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Check what depends on more than one parameter."""
        for name in OUR_KEYS.intersection(self.model_extra or ()):
            raise InvalidFieldError(name, "there is no such parameter.", "unknown_parameter")
        if self.previous_response_id is not None and self.conversation is not None:
            raise InvalidFieldError(
                "previous_response_id",
                "'previous_response_id' and 'conversation' cannot be used together.",
                "mutually_exclusive_parameters",
            )
        if not self.input and not (self.previous_response_id or self.conversation or self.prompt):
            if self.input is None:
                raise InvalidFieldError(
                    "input",
                    "one of 'input', 'previous_response_id', 'conversation' and 'prompt' is required.",
                    "missing_required_parameter",
                )
            if self.input == [] and not self.instructions:
                raise InvalidFieldError("input", "expected at least one item, or 'instructions'.", "empty_array")
        if self.stream_options is not None and not self.stream:
            raise InvalidFieldError("stream_options", "only allowed when 'stream' is true.")
        if self.model.startswith(AGENT_PREFIX) or self.prompt is not None:
            return self  # either may have tools
        calls = self.tool_choice is not None and self.tool_choice not in ("none", "auto")
        if calls and not self.tools:
            raise InvalidFieldError("tool_choice", "only allowed when 'tools' are specified.")
        return self


class _Input(BaseModel):
    """Some items of a long request."""

    input: list[Item]


def check_response_request(document: Any) -> ResponseRequest:
    """Return parsed JSON as the request of a response.

    The items of a long request are checked in slices, so that no call takes more than some milliseconds. The returned
    model has the first slice alone; code that needs all items reads the document.

    Raises:
        InvalidRequestError: The request is not valid; the error names the parameter.
    """
    return validate_in_slices(ResponseRequest, document, "input", _Input, most=MOST_ITEMS)
