"""OpenAI's chat completion request, checked.

Names, ranges and enumerations are those of `CreateChatCompletionRequest` in OpenAI's OpenAPI description. Two rules
hold throughout:

* What is newer than this file passes: every object keeps fields it does not know, for the provider to judge. So do a
  `Word`, for which servers have values of their own, and parts and tools of other types.
* `null` means "not given" for every optional parameter. OpenAI's description says so of most of them and clients in
  typed languages send it for all.

Parsing is on the path of every request, so what a constraint can say is said by a constraint: pydantic then checks it
without calling back into Python.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headrace.formats.chat.base import DEPRECATED, INT64, TOOLS, Open, Word
from headrace.formats.chat.messages import MOST_MESSAGES, Message
from headrace.formats.chat.offered import FunctionDefinition, Named, Tool, ToolChoice
from headrace.formats.chat.options import (
    AudioOutput,
    Moderation,
    Prediction,
    PromptCacheOptions,
    ResponseFormat,
    StreamOptions,
    WebSearchOptions,
)
from headrace.formats.chat.slices import validate_in_slices
from headrace.formats.chat.validation import InvalidFieldError, parse_body
from headrace.ids import AGENT_PREFIX

EXTENSIONS = frozenset({"background", "webhook", "timeout", "fallbacks", "strict_params"})
"""The parameters that are Headrace's and not OpenAI's: removed before a provider sees the request."""

MOST_TOKENS = 1_000_000_000
"""Tokens that a request may ask for: more than any model writes."""
MOST_BIASES = 4_096
"""Tokens with a bias."""
LONGEST_STOP = 4_096
"""Characters of one stop sequence."""

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
"""OpenAI's metadata: at most 16 pairs, keys of at most 64 characters, values of at most 512."""

Webhook = Annotated[str, Field(max_length=2048, pattern=r"^(?i:https?)://[^\s\x00/?#]+[^\s\x00]*$")]
"""The URL that gets a webhook when a job ends."""

_Stop = Annotated[str, Field(max_length=LONGEST_STOP)]

Timeout = Annotated[float, Field(gt=0, le=604_800)]
"""A job's deadline in seconds from its submission: a week at most."""

ModelName = Annotated[str, Field(min_length=1, max_length=256)]
"""The name of a model. OpenAI sets no limit; ours keeps it fit for an index and a log line."""


class ChatRequest(Open):
    """The body of `POST /chat/completions`: OpenAI's, and Headrace's `EXTENSIONS`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "demo", "messages": [{"role": "user", "content": "What is a headrace?"}]},
                {
                    "model": "demo",
                    "messages": [{"role": "user", "content": "What is a headrace?"}],
                    "stream": True,
                    "stream_options": {"include_usage": True},
                },
                {
                    "model": "demo",
                    "messages": [{"role": "user", "content": "What is a headrace?"}],
                    "background": True,
                    "webhook": "https://example.com/hooks/headrace",
                    "metadata": {"customer": "42"},
                },
            ]
        }
    )

    model: ModelName
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(min_length=1, max_length=4, fail_fast=True)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = DEPRECATED
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[int, Field(ge=-100, le=100)]], Field(max_length=MOST_BIASES)] | None = (
        None
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    seed: Annotated[int, Field(ge=-INT64, le=INT64 - 1)] | None = DEPRECATED

    tools: Annotated[list[Tool], TOOLS] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[FunctionDefinition], Field(min_length=1, max_length=128, fail_fast=True)] | None = (
        DEPRECATED
    )
    function_call: Literal["none", "auto"] | Named | None = DEPRECATED

    response_format: ResponseFormat | None = None
    reasoning_effort: Word | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    modalities: Annotated[list[Word], Field(max_length=8, fail_fast=True)] | None = None
    audio: AudioOutput | None = None
    prediction: Prediction | None = None
    web_search_options: WebSearchOptions | None = None
    moderation: Moderation | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    user: str | None = DEPRECATED
    safety_identifier: Annotated[str, Field(max_length=128)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = DEPRECATED
    prompt_cache_options: PromptCacheOptions | None = None

    background: bool | None = Field(default=None, description="Answer 202 with a job at once; the job runs on.")
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
        if self.stream_options is not None and not self.stream:
            raise InvalidFieldError("stream_options", "only allowed when 'stream' is true.")
        if self.model.startswith(AGENT_PREFIX):
            return self  # the agent may add the other parameter, and the request that comes of it is checked
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidFieldError("top_logprobs", "only allowed when 'logprobs' is true.")
        calls = self.tool_choice is not None and self.tool_choice not in ("none", "auto")
        if calls and not self.tools:
            raise InvalidFieldError("tool_choice", "only allowed when 'tools' are specified.")
        if self.modalities is not None and "audio" in self.modalities and self.audio is None:
            raise InvalidFieldError("audio", "required when 'modalities' has 'audio'.", "missing_required_parameter")
        return self


class JobSubmission(BaseModel):
    """The body of `POST /jobs`: a chat request, and what concerns the job alone."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        serialize_by_alias=True,
        json_schema_extra={
            "examples": [
                {
                    "request": {"model": "demo", "messages": [{"role": "user", "content": "What is a headrace?"}]},
                    "priority": "flex",
                    "metadata": {"customer": "42"},
                    "webhook": "https://example.com/hooks/headrace",
                    "timeout": 3600,
                }
            ]
        },
    )

    request: ChatRequest
    priority: Literal["priority", "default", "flex"] | None = None
    metadata: Metadata | None = None
    webhook: Webhook | None = None
    timeout: Timeout | None = None


_Model = TypeVar("_Model", bound=BaseModel)


class _Messages(BaseModel):
    """Some messages of a long request."""

    messages: list[Message]


def parse_chat_request(body: bytes) -> ChatRequest:
    """Return the body of a chat completion request. Raises InvalidRequestError naming the parameter that is wrong."""
    return parse_body(ChatRequest, body)


def check_request(model: type[_Model], document: Any, *, within: str | None = None) -> _Model:
    """Return parsed JSON as a `model`, whose field `within`, or all of which, is a chat request.

    The messages of a long request are checked in slices, so that no call takes more than some milliseconds. The
    returned model has the first slice alone; code that needs all messages reads the document.

    Raises:
        InvalidRequestError: The request is not valid; the error names the parameter.
    """
    return validate_in_slices(model, document, "messages", _Messages, most=MOST_MESSAGES, within=within)
