"""OpenAI's chat completion request, checked.

Names, ranges and enumerations are those of `CreateChatCompletionRequest` in OpenAI's OpenAPI description. Two rules
hold throughout:

* What is newer than this file passes: every object keeps fields it does not know, for the provider to judge.
* `null` means "not given" for every optional parameter. OpenAI's description says so of most of them and clients in
  typed languages send it for all.

Parsing is on the path of every request, so what a constraint can say is said by a constraint: pydantic then checks it
without calling back into Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headrace.chat.validation import InvalidFieldError, invalid_request, parse_body, validate
from headrace.errors import InvalidRequestError
from headrace.ids import AGENT_PREFIX

__all__ = [
    "EXTENSIONS",
    "ChatRequest",
    "JobSubmission",
    "Metadata",
    "Webhook",
    "check_request",
    "invalid_request",
    "parse_chat_request",
]

EXTENSIONS = frozenset({"background", "webhook", "timeout", "fallbacks", "strict_params"})
"""The parameters that are Headrace's and not OpenAI's: removed before a provider sees the request."""

MOST_MESSAGES = 10_000
MOST_PARTS = 4_096
"""Parts of one message's content: more than any provider takes images."""
MOST_TOOLS = 512
"""Tools of a request, calls of one message, and its blocks of thought."""
MOST_TOKENS = 1_000_000_000
"""Of an answer: no model writes as many."""
MOST_BIASES = 4_096
LONGEST_STOP = 4_096

_INT64 = 2**63

# `Field(deprecated=True)` would warn wherever we read the parameter; the warning is for the reader of the schema.
_DEPRECATED: Any = Field(default=None, json_schema_extra={"deprecated": True})


class _Open(BaseModel):
    """An object of the request: its types are JSON's, never converted, and unknown fields stay in it."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, serialize_by_alias=True)


# Lists stop at their first bad item: a body of a million bad items is refused as quickly as any other.
_TOOLS = Field(max_length=MOST_TOOLS, fail_fast=True)
_PARTS = Field(min_length=1, max_length=MOST_PARTS, fail_fast=True)

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
"""OpenAI's metadata: at most 16 pairs, keys of at most 64 characters, values of at most 512."""

Webhook = Annotated[str, Field(max_length=2048, pattern=r"^(?i:https?)://[^\s\x00/?#]+[^\s\x00]*$")]
"""The URL that is told when a job ends."""

_Stop = Annotated[str, Field(max_length=LONGEST_STOP)]

Timeout = Annotated[float, Field(gt=0, le=604_800)]
"""A job's deadline in seconds from its submission: a week at most."""

ModelName = Annotated[str, Field(min_length=1, max_length=256)]
"""The name of a model. OpenAI sets no limit; ours keeps it fit for an index and a log line."""

FunctionName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_-]+$")]
"""The name of a function or a schema."""

# ---------------------------------------------------------------------------------------------------------------------
# Content parts


class PromptCacheBreakpoint(_Open):
    """The end of a prefix of the prompt that is worth caching."""

    mode: Literal["explicit"]


class _Part(_Open):
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None


class TextPart(_Part):
    """Text."""

    type: Literal["text"]
    text: str


class ImageURL(_Open):
    """Where an image is, and in what detail to look at it."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Part):
    """An image, by its URL or inside a `data:` URL."""

    type: Literal["image_url"]
    image_url: ImageURL


class InputAudio(_Open):
    """The data of a recording."""

    data: str
    format: Literal["wav", "mp3"]


class AudioPart(_Part):
    """A recording, in base64."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class File(_Open):
    """The id of an uploaded file, or its name and data."""

    filename: str | None = None
    file_data: str | None = None
    file_id: str | None = None


class FilePart(_Part):
    """A file, uploaded before or in base64."""

    type: Literal["file"]
    file: File


class RefusalPart(_Open):
    """What the model said to refuse an earlier request."""

    type: Literal["refusal"]
    refusal: str


_Text = str | Annotated[list[TextPart], _PARTS]
_UserPart = Annotated[TextPart | ImagePart | AudioPart | FilePart, Field(discriminator="type")]
_AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]

# ---------------------------------------------------------------------------------------------------------------------
# Messages


class DeveloperMessage(_Open):
    """Instructions to the model, whatever the user says; what newer models call a system message."""

    role: Literal["developer"]
    content: _Text
    name: str | None = None


class SystemMessage(_Open):
    """Instructions to the model, whatever the user says."""

    role: Literal["system"]
    content: _Text
    name: str | None = None


class UserMessage(_Open):
    """What the user says, shows or sends."""

    role: Literal["user"]
    content: str | Annotated[list[_UserPart], _PARTS]
    name: str | None = None


class FunctionCall(_Open):
    """The function that the model called."""

    name: str
    arguments: str


class FunctionToolCall(_Open):
    """A call of a function tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class CustomCall(_Open):
    """The custom tool that the model called."""

    name: str
    input: str


class CustomToolCall(_Open):
    """A call of a custom tool."""

    id: str
    type: Literal["custom"]
    custom: CustomCall


_ToolCall = Annotated[FunctionToolCall | CustomToolCall, Field(discriminator="type")]


class AudioReference(_Open):
    """A spoken answer that the model gave before."""

    id: str


class ThinkingBlock(_Open):
    """What a model of Anthropic's thought, signed by it; sent back as it came."""

    type: Literal["thinking", "redacted_thinking"]


class AssistantMessage(_Open):
    """What the model said before."""

    role: Literal["assistant"]
    content: str | Annotated[list[_AssistantPart], _PARTS] | None = None
    refusal: str | None = None
    name: str | None = None
    audio: AudioReference | None = None
    tool_calls: Annotated[list[_ToolCall], _TOOLS] | None = None
    function_call: FunctionCall | None = None
    thinking_blocks: Annotated[list[ThinkingBlock], _TOOLS] | None = None

    @model_validator(mode="after")
    def _require_content(self) -> Self:
        if self.content is None and not (self.tool_calls or self.function_call or self.audio or self.refusal):
            raise InvalidFieldError(
                "content",
                "required in an assistant message without tool_calls, function_call, audio or refusal.",
                "missing_required_parameter",
            )
        return self


class ToolMessage(_Open):
    """What a tool answered."""

    role: Literal["tool"]
    content: _Text
    tool_call_id: str


class FunctionMessage(_Open):
    """What a function answered. Deprecated by OpenAI in favour of `tool`."""

    role: Literal["function"]
    content: str | None
    name: str


Message = Annotated[
    DeveloperMessage | SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage,
    Field(discriminator="role"),
]

# ---------------------------------------------------------------------------------------------------------------------
# Tools


class FunctionDefinition(_Open):
    """A function that the model may call; `parameters` is a JSON Schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(_Open):
    """A tool that takes JSON."""

    type: Literal["function"]
    function: FunctionDefinition


class TextFormat(_Open):
    """Any text."""

    type: Literal["text"]


class Grammar(_Open):
    """A grammar, in Lark's notation or as a regular expression."""

    definition: str
    syntax: Literal["lark", "regex"]


class GrammarFormat(_Open):
    """Text that follows a grammar."""

    type: Literal["grammar"]
    grammar: Grammar


class CustomDefinition(_Open):
    """A tool of the client's own, and the grammar of its input."""

    name: str
    description: str | None = None
    format: Annotated[TextFormat | GrammarFormat, Field(discriminator="type")] | None = None


class CustomTool(_Open):
    """A tool that takes text."""

    type: Literal["custom"]
    custom: CustomDefinition


Tool = Annotated[FunctionTool | CustomTool, Field(discriminator="type")]


class Named(_Open):
    """A function or a tool, by its name."""

    name: str


class NamedFunctionChoice(_Open):
    """Call this function."""

    type: Literal["function"]
    function: Named


class NamedCustomChoice(_Open):
    """Call this custom tool."""

    type: Literal["custom"]
    custom: Named


class AllowedTools(_Open):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], _TOOLS]


class AllowedToolsChoice(_Open):
    """Call only these of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = (
    Literal["none", "auto", "required"]
    | Annotated[NamedFunctionChoice | NamedCustomChoice | AllowedToolsChoice, Field(discriminator="type")]
)

# ---------------------------------------------------------------------------------------------------------------------
# Other parameters


class TextResponseFormat(_Open):
    """Text, the default."""

    type: Literal["text"]


class JSONObjectResponseFormat(_Open):
    """Any JSON object."""

    type: Literal["json_object"]


class JSONSchema(_Open):
    """A JSON Schema and its name."""

    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class JSONSchemaResponseFormat(_Open):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JSONSchema


ResponseFormat = Annotated[
    TextResponseFormat | JSONObjectResponseFormat | JSONSchemaResponseFormat, Field(discriminator="type")
]


class CustomVoice(_Open):
    """A voice of the client's own."""

    model_config = ConfigDict(extra="forbid")

    id: str


class AudioOutput(_Open):
    """How the model shall sound."""

    voice: str | CustomVoice
    format: Literal["wav", "aac", "mp3", "flac", "opus", "pcm16"]


class Prediction(_Open):
    """Text that most of the answer is expected to repeat."""

    type: Literal["content"]
    content: _Text


class StreamOptions(_Open):
    """What a stream shall contain."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Location(_Open):
    """Roughly where the user is."""

    country: str | None = None
    region: str | None = None
    city: str | None = None
    timezone: str | None = None


class UserLocation(_Open):
    """Where the user is."""

    type: Literal["approximate"]
    approximate: Location


class WebSearchOptions(_Open):
    """How the model shall search the web."""

    user_location: UserLocation | None = None
    search_context_size: Literal["low", "medium", "high"] | None = None


class PromptCacheOptions(_Open):
    """How OpenAI shall cache the prompt."""

    ttl: Literal["30m"] | None = None
    mode: Literal["implicit", "explicit"] | None = None


class ModerationConfig(_Open):
    """What moderation does with what it finds."""

    mode: Literal["score", "block"]


class ModerationPolicy(_Open):
    """What moderation does about the prompt, and about the answer."""

    input: ModerationConfig | None = None
    output: ModerationConfig | None = None


class Moderation(_Open):
    """How OpenAI shall moderate the prompt and the answer."""

    model: str
    policy: ModerationPolicy | None = None


# ---------------------------------------------------------------------------------------------------------------------
# The request


class ChatRequest(_Open):
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
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = _DEPRECATED
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[int, Field(ge=-100, le=100)]], Field(max_length=MOST_BIASES)] | None = (
        None
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    seed: Annotated[int, Field(ge=-_INT64, le=_INT64 - 1)] | None = _DEPRECATED

    tools: Annotated[list[Tool], _TOOLS] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[FunctionDefinition], Field(min_length=1, max_length=128, fail_fast=True)] | None = (
        _DEPRECATED
    )
    function_call: Literal["none", "auto"] | Named | None = _DEPRECATED

    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Field(max_length=8, fail_fast=True)] | None = None
    audio: AudioOutput | None = None
    prediction: Prediction | None = None
    web_search_options: WebSearchOptions | None = None
    moderation: Moderation | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    user: str | None = _DEPRECATED
    safety_identifier: Annotated[str, Field(max_length=64)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = _DEPRECATED
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
            return self  # the agent may have the other parameter: what it makes of the request is checked
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

# Messages, parts and calls that are checked in one call: some milliseconds.
_SLICE = 500
_MESSAGE_PATH = re.compile(r"messages\[(\d+)\]")


class _Messages(BaseModel):
    """Some messages of a long request."""

    messages: list[Message]


def parse_chat_request(body: bytes) -> ChatRequest:
    """Return the body of a chat completion request. Raises InvalidRequestError naming the parameter that is wrong."""
    return parse_body(ChatRequest, body)


def check_request(model: type[_Model], document: Any, *, within: str | None = None) -> _Model:
    """Return parsed JSON as a `model`, whose field `within`, or all of which, is a chat request.

    The messages of a long request are checked in slices, so that no call takes more than some milliseconds. What is
    returned has the first slice alone: those who read more of the messages read the document.

    Raises:
        InvalidRequestError: It is not valid; the error names the parameter that is wrong.
    """
    chat = document.get(within) if within is not None and isinstance(document, dict) else document
    if not isinstance(chat, dict) or not isinstance(chat.get("messages"), list):
        return validate(model, document)
    messages = chat["messages"]
    ends = list(_slices(messages))
    if len(ends) < 2 or len(messages) > MOST_MESSAGES:
        return validate(model, document)
    first = {**chat, "messages": messages[: ends[0]]}
    checked = validate(model, first if within is None else {**document, within: first})
    for start, end in pairwise(ends):
        _check_messages(messages[start:end], start, within)
    return checked


def _slices(messages: list[Any]) -> Iterator[int]:
    """Yield where each slice of messages ends."""
    weight = 0
    for index, message in enumerate(messages):
        weight += 1
        if isinstance(message, dict):
            weight += sum(len(value) for value in message.values() if isinstance(value, list))
        if weight >= _SLICE:
            yield index + 1
            weight = 0
    if weight:
        yield len(messages)


def _check_messages(messages: list[Any], start: int, within: str | None) -> None:
    try:
        validate(_Messages, {"messages": messages})
    except InvalidRequestError as error:
        prefix = "" if within is None else f"{within}."

        def moved(text: str) -> str:
            return _MESSAGE_PATH.sub(lambda match: f"{prefix}messages[{int(match[1]) + start}]", text, count=1)

        param = None if error.param is None else moved(error.param)
        raise InvalidRequestError(moved(error.message), param=param, code=error.code) from None
