"""The messages of a chat request."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from headrace.formats.chat.base import PARTS, TOOLS, Open, Word
from headrace.formats.chat.parts import AssistantPart, Text, UserPart
from headrace.formats.chat.validation import InvalidFieldError

MOST_MESSAGES = 10_000
"""Messages of one request."""


class DeveloperMessage(Open):
    """Instructions to the model, whatever the user says; what newer models call a system message."""

    role: Literal["developer"]
    content: Text
    name: str | None = None


class SystemMessage(Open):
    """Instructions to the model, whatever the user says."""

    role: Literal["system"]
    content: Text
    name: str | None = None


class UserMessage(Open):
    """What the user says, shows or sends."""

    role: Literal["user"]
    content: str | Annotated[list[UserPart], PARTS]
    name: str | None = None


class FunctionCall(Open):
    """The function that the model called."""

    name: str
    arguments: str


class FunctionToolCall(Open):
    """A call of a function tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class CustomCall(Open):
    """The custom tool that the model called."""

    name: str
    input: str


class CustomToolCall(Open):
    """A call of a custom tool."""

    id: str
    type: Literal["custom"]
    custom: CustomCall


_ToolCall = Annotated[FunctionToolCall | CustomToolCall, Field(discriminator="type")]


class AudioReference(Open):
    """A spoken answer that the model gave before."""

    id: str


class ThinkingBlock(Open):
    """What a model of Anthropic's thought, signed by it; sent back as it came."""

    type: Literal["thinking", "redacted_thinking"]


class ThinkingOrigin(Open):
    """The format that a message's `thinking_blocks` came in, and where they stand; sent back as it came.

    `after` has, for each of the last blocks, the number of characters of content before it. Earlier blocks precede all
    text.
    """

    format: Word | None = None
    after: Annotated[list[int], TOOLS] | None = None


class ReasoningItem(Open):
    """What a model of the Responses API thought, encrypted by its provider; sent back as it came.

    `calls_before` is the number of calls of its message that the model had made before, 0 if left out.
    """

    type: Literal["reasoning"]


class AssistantMessage(Open):
    """What the model said before."""

    role: Literal["assistant"]
    content: str | Annotated[list[AssistantPart], PARTS] | None = None
    refusal: str | None = None
    name: str | None = None
    audio: AudioReference | None = None
    tool_calls: Annotated[list[_ToolCall], TOOLS] | None = None
    function_call: FunctionCall | None = None
    thinking_blocks: Annotated[list[ThinkingBlock], TOOLS] | None = None
    thinking_origin: ThinkingOrigin | None = None
    reasoning_items: Annotated[list[ReasoningItem], TOOLS] | None = None

    @model_validator(mode="after")
    def _require_content(self) -> Self:
        if self.content is None and not (self.tool_calls or self.function_call or self.audio or self.refusal):
            raise InvalidFieldError(
                "content",
                "required in an assistant message without tool_calls, function_call, audio or refusal.",
                "missing_required_parameter",
            )
        return self


class ToolMessage(Open):
    """What a tool answered."""

    role: Literal["tool"]
    content: Text
    tool_call_id: str


class FunctionMessage(Open):
    """What a function answered. Deprecated by OpenAI in favour of `tool`."""

    role: Literal["function"]
    content: str | None
    name: str


Message = Annotated[
    DeveloperMessage | SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage,
    Field(discriminator="role"),
]
