"""The input of a response: the items of its context, which earlier responses or a conversation hold, and its own.

A stored request has all of them in `input`, each in its whole form and with an id, so that the next response of a chain
reads one row. `context_items` counts those of the context; it never leaves Headrace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.ids import FIRST_INPUT_ITEM, item_id

CONTEXT_ITEMS = "context_items"
"""The key of a stored request that counts the items of its context."""

COMPACTS = "compacts"
"""The key of a stored request that asks for a compaction, see `headrace.formats.responses.compaction`."""

OUR_KEYS = frozenset({CONTEXT_ITEMS, COMPACTS})
"""The keys of a stored request that no client may send and no provider sees."""

# Prefixes of the ids of items, by type.
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
    "compaction": "cmp",
}
# Types of items that have a status.
_WITH_STATUS = frozenset({"message", "function_call", "function_call_output"})


def expand(document: Mapping[str, Any], context: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a checked request whose input begins with its context. Its own items are whole, but may lack ids."""
    own = document.get("input")
    items = [{"role": "user", "content": own}] if isinstance(own, str) else own or ()
    return {**document, "input": [*context, *map(whole_item, items)], CONTEXT_ITEMS: len(context)}


def with_ids(document: dict[str, Any], job_id: str) -> dict[str, Any]:
    """Return an expanded request whose items all have ids; those that lack one get it, made of the job's id.

    Only an agent's examples lack ids in a context. Their numbers follow those of the request's own items.
    """
    first = document[CONTEXT_ITEMS]
    items = list(document["input"])
    for index, item in enumerate(items):
        if not item.get("id"):
            items[index] = named = {"id": "", **item}
            named["id"] = new_id_of(item, job_id, FIRST_INPUT_ITEM + (index - first) % len(items))
    return {**document, "input": items}


def without_context(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return an expanded request as a client could have sent it: with its own items alone."""
    own = {name: value for name, value in document.items() if name not in OUR_KEYS}
    return own | {"input": own_items(document)}


def own_items(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the items of an expanded request that are not its context."""
    items: list[dict[str, Any]] = document["input"]
    return items[document[CONTEXT_ITEMS] :]


def new_id_of(item: Mapping[str, Any], job_id: str, number: int) -> str:
    """Return an id for a whole item, by its type: see `headrace.ids.item_id`."""
    return item_id(_PREFIXES.get(item["type"], "item"), job_id, number)


def refers(document: Mapping[str, Any]) -> bool:
    """Return whether a checked request's input has references to items of earlier responses."""
    own = document.get("input")
    return isinstance(own, list) and "item_reference" in map(kind_of, own)


def kind_of(item: Mapping[str, Any]) -> str:
    """Return the type of a checked item, which messages and references may leave out."""
    kind: str | None = item.get("type")
    return kind or ("message" if "role" in item else "item_reference")


def whole_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item as the API lists it: with its type and status, and the parts of a message's text."""
    kind = kind_of(item)
    whole = {**item, "type": kind}
    if kind in _WITH_STATUS and whole.get("status") is None:
        whole["status"] = "completed"
    if kind == "message" and isinstance(item.get("content"), str):
        whole["content"] = [_text(item["content"], role=item.get("role"))]
    return whole


def _text(text: str, *, role: Any) -> dict[str, Any]:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}
