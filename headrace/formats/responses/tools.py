"""The tools that a Responses request offers, and which of them it asks for.

Functions are flat here, unlike those of a chat request. Tools of a type that is not known here are hosted: the provider
runs them, and checks what the request says of them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from headrace.formats.chat.base import TOOLS, Open
from headrace.formats.chat.offered import TextFormat

_Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[a-zA-Z0-9_-]+$")]
_Type = Annotated[str, Field(min_length=1, max_length=64)]


class FunctionTool(Open):
    """A tool that takes JSON; `parameters` is a JSON Schema."""

    type: Literal["function"]
    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: dict[str, Any] | None = None
    defer_loading: bool | None = None
    allowed_callers: Annotated[list[str], TOOLS] | None = None


class GrammarFormat(Open):
    """Text that follows a grammar, in Lark's notation or as a regular expression."""

    type: Literal["grammar"]
    definition: str
    syntax: Literal["lark", "regex"]


class CustomTool(Open):
    """A tool that takes text."""

    type: Literal["custom"]
    name: _Name
    description: str | None = None
    format: Annotated[TextFormat | GrammarFormat, Field(discriminator="type")] | None = None
    defer_loading: bool | None = None
    allowed_callers: Annotated[list[str], TOOLS] | None = None


class NamespaceTool(Open):
    """Tools of the client's under one name."""

    type: Literal["namespace"]
    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    tools: Annotated[
        list[Annotated[FunctionTool | CustomTool, Field(discriminator="type")]],
        Field(min_length=1, max_length=512, fail_fast=True),
    ]


class HostedTool(Open):
    """A tool that the provider runs."""

    type: _Type


def _tag(tool: Any) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else None
    return kind if isinstance(kind, str) and kind in ("function", "custom", "namespace") else "hosted"


Tool = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[NamespaceTool, Tag("namespace")]
    | Annotated[HostedTool, Tag("hosted")],
    Discriminator(_tag),
]


class NamedChoice(Open):
    """Call this function, or this custom tool."""

    type: Literal["function", "custom"]
    name: str
    namespace: str | None = None


class AllowedToolsChoice(Open):
    """Call only these of the tools, or one of them in any case."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], TOOLS]


class HostedChoice(Open):
    """Call this tool of the provider's."""

    type: _Type


def _choice_tag(choice: Any) -> str:
    if not isinstance(choice, dict):
        return "word"
    kind = choice.get("type")
    if kind in ("function", "custom"):
        return "named"
    return "allowed_tools" if kind == "allowed_tools" else "hosted"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")]
    | Annotated[NamedChoice, Tag("named")]
    | Annotated[AllowedToolsChoice, Tag("allowed_tools")]
    | Annotated[HostedChoice, Tag("hosted")],
    Discriminator(_choice_tag),
]
