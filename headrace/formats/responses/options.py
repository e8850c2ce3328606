"""The parameters of a Responses request that are objects of their own, other than its items and tools."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from headrace.formats.chat.base import Open
from headrace.formats.chat.offered import FunctionName
from headrace.formats.chat.options import JSONObjectResponseFormat, TextResponseFormat

_Summary = Literal["auto", "concise", "detailed"]
_Id = Annotated[str, Field(min_length=1, max_length=256)]

LOGPROBS = "message.output_text.logprobs"
"""The value of `include` that asks for log probabilities."""
ENCRYPTED = "reasoning.encrypted_content"
"""The value of `include` that asks for thoughts which the next request can send back."""

Include = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class ReasoningOptions(Open):
    """How much the model thinks, and what its client gets to read of it."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: _Summary | None = None
    generate_summary: _Summary | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


class JSONSchemaFormat(Open):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextOptions(Open):
    """The form of the answer's text, and its length."""

    format: (
        Annotated[TextResponseFormat | JSONObjectResponseFormat | JSONSchemaFormat, Field(discriminator="type")] | None
    ) = None
    verbosity: Literal["low", "medium", "high"] | None = None


class StreamOptions(Open):
    """What a stream shall contain."""

    include_obfuscation: bool | None = None


class Conversation(Open):
    """The conversation that the response belongs to."""

    id: _Id


ConversationParam = _Id | Conversation


class ContextManagement(Open):
    """When the provider shall make the conversation shorter."""

    type: Annotated[str, Field(min_length=1, max_length=64)]
    compact_threshold: Annotated[int, Field(ge=1000, le=1_000_000_000)] | None = None


class Prompt(Open):
    """A prompt that is stored at the provider, with values for its variables."""

    id: _Id
    version: str | None = None
    variables: dict[str, Any] | None = None
