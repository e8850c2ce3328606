"""The tools of a Responses request as those of a chat request, and the names that calls of them come back under.

Every chat model takes functions, and hardly any takes other tools. So a custom tool becomes a function with one string,
`input`, and a tool of a namespace a function whose name has the namespace before it. A name that is too long is cut.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Json = dict[str, Any]

# Characters of a chat tool's name, at most.
_LONGEST_NAME = 64
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
# Hexadecimal digits at the end of a shortened name.
_DIGEST = 12

_ONE_STRING = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
_SYNTAXES = {"lark": "this grammar in Lark's notation", "regex": "this regular expression"}
# What concerns hosted tools alone.
_NOT_CARRIED = ("output_schema", "defer_loading", "allowed_callers")


class Origin(NamedTuple):
    """The tool of the client's that a function of the chat request stands for."""

    name: str
    namespace: str | None
    custom: bool


def flat_name(name: str, namespace: str | None) -> str:
    """Return the name of a tool's function in the chat request, where it can be shorter than in a Responses request.

    It fits OpenAI's pattern if it has a namespace.
    """
    joined = name if namespace is None else f"{namespace}__{name}"
    if _NAME.fullmatch(joined) or (namespace is None and len(name) <= _LONGEST_NAME):
        return joined
    whole = name if namespace is None else f"{namespace}\0{name}"
    digest = hashlib.sha256(whole.encode("utf-8", "replace")).hexdigest()[:_DIGEST]
    return f"{re.sub('[^a-zA-Z0-9_-]', '_', joined)[: _LONGEST_NAME - _DIGEST - 1]}_{digest}"


def origins(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Origin]:
    """Return the tools that a function stands for under another name or in another form, by the functions' names."""
    if not tools:
        return {}
    found = {}
    for _, tool, namespace in _tools_of(tools):
        custom, name = tool.get("type") == "custom", _name_in(tool, namespace)
        if custom or name != tool["name"]:
            found[name] = Origin(tool["name"], None if namespace is None else namespace["name"], custom)
    return found


def render_tools(tools: Sequence[Json]) -> tuple[list[Json], dict[str, str], list[str]]:
    """Return the chat request's tools, the types of those that only the provider can run, and what is left out.

    The types stand under the tools' paths.
    """
    own = {f"tools[{index}]": tool["type"] for index, tool in enumerate(tools) if tool["type"] not in _OURS}
    dropped: list[str] = []
    rendered = []
    introduced = set()
    for path, tool, namespace in _tools_of(tools):
        about = None
        if namespace is not None and namespace["name"] not in introduced:
            introduced.add(namespace["name"])
            about = _introduction(namespace)
        rendered.append(_render_tool(tool, _name_in(tool, namespace), about))
        dropped += [f"{path}.{name}" for name in _NOT_CARRIED if tool.get(name)]
        if _grammar(tool) is not None:
            dropped.append(f"{path}.format")
    return rendered, own, dropped


_OURS = frozenset({"function", "custom", "namespace"})


def _tools_of(tools: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any] | None]]:
    """Yield the client's own tools, each with its path and its namespace."""
    for index, tool in enumerate(tools):
        kind = tool.get("type")
        if kind == "namespace":
            for inner, member in enumerate(tool["tools"]):
                yield f"tools[{index}].tools[{inner}]", member, tool
        elif kind in _OURS:
            yield f"tools[{index}]", tool, None


def _name_in(tool: Mapping[str, Any], namespace: Mapping[str, Any] | None) -> str:
    return flat_name(tool["name"], None if namespace is None else namespace["name"])


def _render_tool(tool: Mapping[str, Any], name: str, about: str | None) -> Json:
    """Return a function; `about` comes before its description."""
    said = [about, tool.get("description")]
    function: Json = {"name": name}
    if tool["type"] == "custom":
        function["parameters"] = _ONE_STRING
        if (grammar := _grammar(tool)) is not None:
            said.append(f"'input' must follow {_SYNTAXES[grammar['syntax']]}:\n{grammar['definition']}")
    else:
        function |= {field: tool[field] for field in ("parameters", "strict") if tool.get(field) is not None}
    if description := "\n\n".join(filter(None, said)):
        function["description"] = description
    return {"type": "function", "function": function}


def _grammar(tool: Mapping[str, Any]) -> Mapping[str, Any] | None:
    form = tool.get("format") if tool["type"] == "custom" else None
    return form if form is not None and form["type"] == "grammar" else None


def _introduction(namespace: Mapping[str, Any]) -> str | None:
    """Return what a namespace says of itself, for the first of its functions: a chat request has no other place."""
    said = namespace.get("description")
    return f"About all functions of '{namespace['name']}': {said}" if said else None


def render_choice(choice: str | Json) -> str | Json | None:
    """Return the chat request's choice among the tools, or None if it is one that only the provider can make."""
    if isinstance(choice, str):
        return choice
    if choice["type"] != "allowed_tools":
        return _render_named(choice)
    named = [_render_named(tool) for tool in choice["tools"]]
    if None in named:
        return None
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice["mode"], "tools": named}}


def _render_named(tool: Mapping[str, Any]) -> Json | None:
    name, namespace = tool.get("name"), tool.get("namespace")
    if tool.get("type") not in ("function", "custom") or not isinstance(name, str):
        return None
    if not isinstance(namespace, str | None):
        return None
    return {"type": "function", "function": {"name": flat_name(name, namespace)}}
