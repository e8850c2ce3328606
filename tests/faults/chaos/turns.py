"""What a provider is asked and what a response says, as *pieces*: the same in every format.

A piece is `("system" | "user" | "assistant", text)`, `("call", id, name, arguments)` or `("output", id, text)`.
Texts of one role that follow each other are one piece, because some formats join them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tests.fakes.provider import Call

Json = dict[str, Any]
Piece = tuple[str, ...]

_SPOKEN = frozenset({"system", "user", "assistant"})
_ROLES = {"developer": "system", "model": "assistant"}


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Return pieces in their one form: texts of one role joined, and their white space made equal."""
    result: list[Piece] = []
    for kind, group in itertools.groupby(pieces, key=lambda piece: piece[0]):
        found = list(group)
        if kind in _SPOKEN:
            words = " ".join(text for _, text in found).split()
            found = [(kind, " ".join(words))] if words else []
        result += found
    return result


def without_ids(pieces: Iterable[Piece]) -> list[Piece]:
    """Return pieces without the ids of calls, which Gemini's format does not have."""
    return [(piece[0], "", *piece[2:]) if piece[0] in {"call", "output"} else piece for piece in pieces]


def pieces_of_items(items: str | Sequence[Mapping[str, Any]]) -> list[Piece]:
    """Return the pieces of a request's `input`, or of a response's `output`, without reasoning."""
    if isinstance(items, str):
        return [("user", items)]
    pieces: list[Piece] = []
    for item in items:
        match item.get("type", "message"):
            case "message":
                content = item["content"]
                texts = [content] if isinstance(content, str) else _texts(content)
                pieces += [(_role(item["role"]), text) for text in texts]
            case "function_call":
                pieces.append(("call", item["call_id"], item["name"], _canonical(json.loads(item["arguments"]))))
            case "function_call_output":
                pieces.append(("output", item["call_id"], item["output"]))
    return pieces


def text_of(response: Mapping[str, Any]) -> str:
    """Return all that the output of a response says: text, thoughts, and what tools are called with."""
    return " ".join(said for item in response["output"] for said in said_by(item))


def said_by(item: Mapping[str, Any]) -> list[str]:
    """Return each text of an item."""
    if "arguments" in item:
        return [item["arguments"]]
    return [part["text"] for part in (*item.get("summary", ()), *(item.get("content") or ())) if "text" in part]


def pieces_of_call(call: Call) -> list[Piece]:
    """Return what a provider was asked."""
    body = call.body
    if call.kind == "responses":
        instructions: list[Piece] = [("system", body["instructions"])] if body.get("instructions") else []
        return [*instructions, *pieces_of_items(body["input"])]
    if call.kind == "gemini":
        system = (body.get("systemInstruction") or body.get("system_instruction") or {}).get("parts") or ()
        return [*(("system", part["text"]) for part in system), *_of_contents(body["contents"])]
    said = body.get("system") or ()
    system_pieces: list[Piece] = [("system", text) for text in ([said] if isinstance(said, str) else _texts(said))]
    return [*system_pieces, *(piece for message in body["messages"] for piece in _of_message(message))]


def _of_message(message: Json) -> Iterator[Piece]:
    """Yield the pieces of a message of OpenAI's or Anthropic's."""
    role, content = _role(message["role"]), message.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content or ()
    if role == "tool":
        yield "output", message["tool_call_id"], "".join(_texts(blocks))
        return
    for block in blocks:
        match block["type"]:
            case "text":
                yield role, block["text"]
            case "tool_use":
                yield "call", block["id"], block["name"], _canonical(block["input"])
            case "tool_result":
                said = block["content"]
                yield "output", block["tool_use_id"], said if isinstance(said, str) else "".join(_texts(said))
    for tool in message.get("tool_calls") or ():
        function = tool["function"]
        yield "call", tool["id"], function["name"], _canonical(json.loads(function["arguments"]))


def _of_contents(contents: Iterable[Json]) -> Iterator[Piece]:
    """Yield the pieces of Gemini's contents."""
    for content in contents:
        for part in content["parts"]:
            if "functionCall" in part:
                yield "call", "", part["functionCall"]["name"], _canonical(part["functionCall"]["args"])
            elif "functionResponse" in part:
                answered = part["functionResponse"]["response"]
                yield "output", "", str(next(iter(answered.values()), ""))
            elif "text" in part and not part.get("thought"):
                yield _role(content.get("role", "user")), part["text"]


def _role(role: str) -> str:
    return _ROLES.get(role, role)


def _texts(parts: Iterable[Mapping[str, Any]]) -> list[str]:
    return [part["text"] for part in parts if "text" in part]


def _canonical(arguments: Any) -> str:
    return json.dumps(arguments, sort_keys=True)
