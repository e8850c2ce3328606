"""The chat request that a response's request means."""

from __future__ import annotations

from typing import Any

from headrace.formats.translation import Translation


def translate(document: dict[str, Any]) -> Translation:
    """Return the chat request that a checked request means."""
    said = document.get("input")
    messages: list[dict[str, Any]] = []
    if document.get("instructions"):
        messages.append({"role": "system", "content": document["instructions"]})
    if isinstance(said, str):
        messages.append({"role": "user", "content": said})
    else:
        messages += [{"role": item["role"], "content": item["content"]} for item in said or ()]
    chat = {"model": document["model"], "messages": messages}
    chat |= {name: document[name] for name in ("stream", "temperature", "top_p") if document.get(name) is not None}
    return Translation(chat, names={"messages": "input"})
