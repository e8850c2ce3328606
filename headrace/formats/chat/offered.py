"""The tools that a chat request offers, and which of them it asks for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from headrace.formats.chat.base import TOOLS, Open, Word, by_type

FunctionName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_-]+$")]
"""The name of a function or a schema."""


class FunctionDefinition(Open):
    """A function that the model may call; `parameters` is a JSON Schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Open):
    """A tool that takes JSON."""

    type: Literal["function"]
    function: FunctionDefinition


class TextFormat(Open):
    """Any text."""

    type: Literal["text"]


class Grammar(Open):
    """A grammar, in Lark's notation or as a regular expression."""

    definition: str
    syntax: Literal["lark", "regex"]


class GrammarFormat(Open):
    """Text that follows a grammar."""

    type: Literal["grammar"]
    grammar: Grammar


class CustomDefinition(Open):
    """A tool of the client's own, and the grammar of its input."""

    name: str
    description: str | None = None
    format: Annotated[TextFormat | GrammarFormat, Field(discriminator="type")] | None = None


class CustomTool(Open):
    """A tool that takes text."""

    type: Literal["custom"]
    custom: CustomDefinition


class OtherTool(Open):
    """A tool that only some servers have and run, such as Groq's `browser_search`."""

    type: Word


Tool = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[OtherTool, Tag("other")],
    by_type("function", "custom"),
]


class Named(Open):
    """A function or a tool, by its name."""

    name: str


class NamedFunctionChoice(Open):
    """Call this function."""

    type: Literal["function"]
    function: Named


class NamedCustomChoice(Open):
    """Call this custom tool."""

    type: Literal["custom"]
    custom: Named


class AllowedTools(Open):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], TOOLS]


class AllowedToolsChoice(Open):
    """Call only these of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Word | Annotated[NamedFunctionChoice | NamedCustomChoice | AllowedToolsChoice, Field(discriminator="type")]
