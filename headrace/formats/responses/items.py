"""The items of a Responses request's `input`, and the parts of their content.

Names and bounds are those of `InputItem` in OpenAI's OpenAPI description, and of `ItemParam` in Open Responses'.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from headrace.formats.chat.base import MOST_PARTS, Open
from headrace.formats.chat.parts import AudioPart, PromptCacheBreakpoint, RefusalPart
from headrace.formats.chat.validation import InvalidFieldError

LONGEST_CALL_ID = 256
"""Characters. OpenAI sets 64 for some items; the ids that other providers give their calls are longer."""

ItemId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\x20-\x7e]+$")]
CallId = Annotated[str, Field(min_length=1, max_length=LONGEST_CALL_ID)]
Status = Literal["in_progress", "completed", "incomplete"]

_PARTS = Field(max_length=MOST_PARTS, fail_fast=True)


# ---------------------------------------------------------------------------------------------------------------------
# Parts


class _Part(Open):
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None


class InputText(_Part):
    """Text for the model."""

    type: Literal["input_text"]
    text: str


class InputImage(_Part):
    """An image, by its URL, inside a `data:` URL, or uploaded before."""

    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["low", "high", "auto", "original"] | None = None

    @model_validator(mode="after")
    def _require_image(self) -> Self:
        if self.image_url is None and self.file_id is None:
            raise InvalidFieldError("image_url", "required without 'file_id'.", "missing_required_parameter")
        return self


class InputFile(_Part):
    """A file, in base64, by its URL, or uploaded before."""

    type: Literal["input_file"]
    filename: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    file_id: str | None = None
    detail: Literal["auto", "low", "high"] | None = None

    @model_validator(mode="after")
    def _require_file(self) -> Self:
        if self.file_data is None and self.file_url is None and self.file_id is None:
            raise InvalidFieldError(
                "file_data", "required without 'file_url' and 'file_id'.", "missing_required_parameter"
            )
        return self


class InputVideo(_Part):
    """A video, which tools may answer with. It is Open Responses' own."""

    type: Literal["input_video"]
    video_url: str


class OutputText(Open):
    """Text of the model's."""

    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[dict[str, Any]], _PARTS] | None = None
    logprobs: list[dict[str, Any]] | None = None


class SummaryText(Open):
    """A part of a summary of what the model thought."""

    type: Literal["summary_text"]
    text: str


class ReasoningText(Open):
    """A part of what the model thought."""

    type: Literal["reasoning_text"]
    text: str


InputPart = Annotated[InputText | InputImage | InputFile | AudioPart, Field(discriminator="type")]
OutputPart = Annotated[OutputText | RefusalPart | InputText, Field(discriminator="type")]
"""A part of what the model said. Some clients send its text as `input_text`."""

ToolOutputPart = Annotated[InputText | OutputText | InputImage | InputFile | InputVideo, Field(discriminator="type")]
ThoughtPart = Annotated[ReasoningText | SummaryText, Field(discriminator="type")]


# ---------------------------------------------------------------------------------------------------------------------
# Items


class _Item(Open):
    id: ItemId | None = None


class InputMessage(_Item):
    """What the user says, or instructions to the model. `type` may be left out."""

    type: Literal["message"] | None = None
    role: Literal["user", "system", "developer"]
    content: str | Annotated[list[InputPart], _PARTS]
    status: Status | None = None


class OutputMessage(_Item):
    """What the model said before. `type` may be left out."""

    type: Literal["message"] | None = None
    role: Literal["assistant"]
    content: str | Annotated[list[OutputPart], _PARTS]
    phase: Literal["commentary", "final_answer"] | None = None
    status: Status | None = None


class FunctionCall(_Item):
    """The model's call of a function."""

    type: Literal["function_call"]
    call_id: CallId
    name: str
    namespace: str | None = None
    arguments: str
    status: Status | None = None
    extra_content: dict[str, Any] | None = None


class FunctionCallOutput(_Item):
    """What a function answered."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: str | Annotated[list[ToolOutputPart], _PARTS]
    status: Status | None = None


class CustomToolCall(_Item):
    """The model's call of a tool that takes text."""

    type: Literal["custom_tool_call"]
    call_id: CallId
    name: str
    namespace: str | None = None
    input: str
    status: Status | None = None
    extra_content: dict[str, Any] | None = None


class CustomToolCallOutput(_Item):
    """What such a tool answered."""

    type: Literal["custom_tool_call_output"]
    call_id: CallId
    output: str | Annotated[list[ToolOutputPart], _PARTS]
    status: Status | None = None


class Reasoning(_Item):
    """What the model thought before it went on."""

    type: Literal["reasoning"]
    summary: Annotated[list[SummaryText], _PARTS] | None = None
    content: Annotated[list[ThoughtPart], _PARTS] | None = None
    encrypted_content: str | None = None
    status: Status | None = None


class ItemReference(Open):
    """An item of an earlier response, by its id. `type` may be left out."""

    type: Literal["item_reference"] | None = None
    id: ItemId


class Compaction(_Item):
    """A conversation that a provider has made shorter, which it alone can read."""

    type: Literal["compaction"]
    encrypted_content: str


HostedType = Literal[
    "additional_tools",
    "apply_patch_call",
    "apply_patch_call_output",
    "code_interpreter_call",
    "compaction_trigger",
    "computer_call",
    "computer_call_output",
    "file_search_call",
    "image_generation_call",
    "local_shell_call",
    "local_shell_call_output",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "mcp_list_tools",
    "program",
    "program_output",
    "shell_call",
    "shell_call_output",
    "tool_search_call",
    "tool_search_output",
    "web_search_call",
]


class HostedItem(_Item):
    """A call of a tool that the provider runs, or what it answered. The provider checks the rest of it."""

    type: HostedType
    call_id: CallId | None = None
    status: str | None = None


HOSTED = frozenset(HostedType.__args__)  # type: ignore[attr-defined]  # a Literal has its values there


def type_(item: Any) -> Any:
    """Return the tag of an item: its type. Without one it is a message, or a reference if it has an id and no role."""
    if not isinstance(item, dict):
        return "message"
    kind = item.get("type")
    if kind is None:
        return "item_reference" if "role" not in item and "id" in item else "message"
    if not isinstance(kind, str):
        return None
    return "hosted" if kind in HOSTED else kind


Item = Annotated[
    Annotated[Annotated[InputMessage | OutputMessage, Field(discriminator="role")], Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")]
    | Annotated[CustomToolCall, Tag("custom_tool_call")]
    | Annotated[CustomToolCallOutput, Tag("custom_tool_call_output")]
    | Annotated[Reasoning, Tag("reasoning")]
    | Annotated[ItemReference, Tag("item_reference")]
    | Annotated[Compaction, Tag("compaction")]
    | Annotated[HostedItem, Tag("hosted")],
    Discriminator(type_),
]
