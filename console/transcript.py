"""Requests and answers as turns of blocks, which the pages show: the same for chat and for Responses.

What a format has that is not known here is shown as its JSON, so nothing of a job is hidden.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]

# Images that the page shows: those that came with the request. The browser fetches nothing from elsewhere.
_SHOWN_IMAGES = tuple(f"data:image/{kind};base64," for kind in ("png", "jpeg", "gif", "webp"))
# Characters of a URL or of encoded data that the page shows.
_LONGEST_SOURCE = 200
# What the page says for a finish reason that is not the usual end.
_CUTS = {
    "length": "It was cut off: the limit of tokens was reached.",
    "content_filter": "The provider withheld the rest.",
}


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a turn."""

    kind: str
    """text, reasoning, refusal, call, result, image or other: how it looks."""
    text: str
    title: str = ""
    image: str = ""
    """The image as a data URL, where the page can show it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said."""

    role: str
    blocks: list[Block] = field(default_factory=list)
    note: str = ""
    """Why it ended, where that is not the usual reason."""


def turns_of_messages(messages: Iterable[Json]) -> list[Turn]:
    """Return the messages of a chat request, as `GET /chat/completions/{id}/messages` lists them."""
    return [Turn(str(message.get("role", "")), _message(message)) for message in messages]


def turns_of_items(items: Iterable[Json]) -> list[Turn]:
    """Return the items of a response's input or output. Those of one side in succession are one turn."""
    turns: list[Turn] = []
    for item in items:
        role = _role(item)
        if not turns or turns[-1].role != role:
            turns.append(Turn(role))
        turns[-1].blocks.extend(_item(item))
    return turns


def turns_of_answer(job: Json) -> list[Turn]:
    """Return the result of a completed job: a turn for each choice of a chat completion, or the items of a response."""
    result = job["result"]
    if result is None:
        return []
    if job["format"] == "responses":
        turns = turns_of_items(result["output"])
        details = result.get("incomplete_details") or {}
        return [*turns, Turn("assistant", note=f"It was cut off: {details['reason']}.")] if details else turns
    return [_choice(choice, len(result["choices"]) > 1) for choice in result["choices"]]


def _choice(choice: Json, numbered: bool) -> Turn:
    role = f"assistant, choice {choice['index'] + 1}" if numbered else "assistant"
    return Turn(role, _message(choice["message"]), _CUTS.get(choice.get("finish_reason") or "", ""))


def _message(message: Json) -> list[Block]:
    blocks = []
    if thought := message.get("reasoning_content"):
        blocks.append(Block("reasoning", str(thought), "reasoning"))
    content = message.get("content")
    is_result = message.get("role") in {"tool", "function"}
    if isinstance(content, str) and content:
        name = message.get("tool_call_id") or message.get("name") or ""
        blocks.append(Block("result", content, f"result of {name}") if is_result else Block("text", content))
    parts = content if isinstance(content, list) else message.get("content_parts") or ()
    blocks.extend(_part(part) for part in parts)
    if refusal := message.get("refusal"):
        blocks.append(Block("refusal", str(refusal), "refusal"))
    calls = list(message.get("tool_calls") or ())
    if message.get("function_call"):
        calls.append({"function": message["function_call"]})
    blocks.extend(_call(call) for call in calls)
    if audio := message.get("audio"):
        blocks.append(Block("other", str(audio.get("transcript") or audio.get("id") or ""), "audio"))
    return blocks


def _call(call: Json) -> Block:
    called = call.get("function") or call.get("custom") or {}
    text = called.get("arguments", called.get("input", ""))
    return Block("call", indented(text), f"calls {called.get('name', '')}")


def _part(part: Any) -> Block:
    """Return a content part of either format."""
    if not isinstance(part, dict):
        return Block("other", _compact(part))
    kind = str(part.get("type", ""))
    if kind in {"text", "input_text", "output_text"}:
        return Block("text", str(part.get("text", "")))
    if kind == "refusal":
        return Block("refusal", str(part.get("refusal", "")), "refusal")
    if kind in {"summary_text", "reasoning_text"}:
        return Block("reasoning", str(part.get("text", "")), "reasoning")
    if kind in {"image_url", "input_image"}:
        url = part.get("image_url") or part.get("file_id") or ""
        url = str(url.get("url", "") if isinstance(url, dict) else url)
        return Block("image", _shortened(url), "image", url if url.startswith(_SHOWN_IMAGES) else "")
    return Block("other", _compact(part), kind)


def _role(item: Json) -> str:
    kind = str(item.get("type", "message"))
    if kind == "message":
        return str(item.get("role", "assistant"))
    return "tool" if kind.endswith("_output") else "assistant"


def _item(item: Json) -> list[Block]:
    kind = str(item.get("type", "message"))
    if kind == "message":
        content = item.get("content")
        return [Block("text", content)] if isinstance(content, str) else [_part(part) for part in content or ()]
    if kind in {"function_call", "custom_tool_call"}:
        return [Block("call", indented(item.get("arguments", item.get("input", ""))), f"calls {item.get('name', '')}")]
    if kind in {"function_call_output", "custom_tool_call_output"}:
        output = item.get("output", "")
        title = f"result of {item.get('call_id', '')}"
        return [Block("result", output, title)] if isinstance(output, str) else [_part(part) for part in output]
    if kind == "reasoning":
        parts: Sequence[Any] = [*(item.get("summary") or ()), *(item.get("content") or ())]
        return [_part(part) for part in parts] or [Block("reasoning", "The provider keeps the text.", "reasoning")]
    return [Block("other", _compact(item), kind.replace("_", " "))]


def indented(arguments: Any) -> str:
    """Return the arguments of a call with indents, or as they are where they are no JSON that a page can show."""
    try:
        document = json.loads(arguments) if isinstance(arguments, str) else arguments
        text = json.dumps(document, indent=2, ensure_ascii=False)
        text.encode()  # half of a surrogate pair has no UTF-8
    except (ValueError, RecursionError):
        return str(arguments)
    return text


def _compact(value: Any) -> str:
    """Return JSON with indents, and encoded files in it shortened."""
    return json.dumps(_without_data(value), indent=2, ensure_ascii=False)


def _without_data(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_data(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_data(inner) for inner in value]
    if isinstance(value, str) and len(value) > _LONGEST_SOURCE and " " not in value[:_LONGEST_SOURCE]:
        return _shortened(value)
    return value


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SOURCE else f"{text[:80]}… ({len(text):,} characters)"
