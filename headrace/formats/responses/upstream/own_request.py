"""A client's own request to the Responses API, made fit for a provider that speaks it too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from headrace.formats.chat.generations import responses_reason
from headrace.formats.chat.request import EXTENSIONS
from headrace.formats.responses.context import CONTEXT_ITEMS, OUR_KEYS
from headrace.formats.responses.options import ENCRYPTED
from headrace.formats.responses.paired import unpaired
from headrace.formats.responses.sealed import open_sealed
from headrace.ids import job_id_of_item

Json = dict[str, Any]

# What the provider does not see: Headrace's extensions, and the context, which `input` has.
_LEFT_OUT = EXTENSIONS | OUR_KEYS | {"previous_response_id", "conversation"}
# Items whose ids say nothing to a provider. Answers keep theirs, which some servers require.
_UNNAMED = frozenset({
    "message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output",
})  # fmt: skip


def render_own_request(document: Mapping[str, Any], *, model: str, stream: bool) -> bytes:
    """Return the body: the request as it came, but for the model, and for what Headrace does itself.

    The provider stores nothing. So that a model can think on in the next turn, it is asked for its encrypted thoughts.
    """
    body = own_body(document, model=model) | {"store": False, "stream": stream}
    if not stream:
        body.pop("stream_options", None)
    reasoning = body.get("reasoning") or {}
    if responses_reason(model, {"reasoning_effort": reasoning.get("effort")}):
        include = body.get("include") or []
        body["include"] = include if ENCRYPTED in include else [*include, ENCRYPTED]
    return orjson.dumps(body)


def own_body(document: Mapping[str, Any], *, model: str) -> Json:
    """Return the request as it came, but for the model and for what is Headrace's."""
    body = {name: value for name, value in document.items() if name not in _LEFT_OUT} | {"model": model}
    if isinstance(items := body.get("input"), list):
        unread = unpaired(items, first_own=document.get(CONTEXT_ITEMS) or 0)
        given = (item for index, item in enumerate(items) if index not in unread)
        body["input"] = [own for item in given if (own := _own_item(item)) is not None]
    return body


def _own_item(item: Json) -> Json | None:
    """Return an item of the input without what is Headrace's; None for thoughts that the provider cannot read."""
    kind = item.get("type") or "message"
    if kind == "reasoning":
        return _own_thought(item)
    if kind not in _UNNAMED:
        return item
    left_out = {"extra_content"} if item.get("role") == "assistant" else {"extra_content", "id"}
    return {name: value for name, value in item.items() if name not in left_out}


def _own_thought(item: Json) -> Json | None:
    """Return a reasoning item under no id of Headrace's: encrypted thoughts fit the id that they came with alone.

    A provider that stores nothing does not know thoughts by an id. Without their text there is nothing to send.
    """
    sealed = item.get("encrypted_content")
    if sealed and open_sealed(sealed) is not None:
        return None  # another provider's
    if sealed and job_id_of_item(item.get("id") or "") is not None:
        return {name: value for name, value in item.items() if name != "id"}
    return item if sealed or item.get("content") else None
