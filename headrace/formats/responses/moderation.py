"""What moderation found: a chat completion has a list of results for each side, a response has one result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def moderation_of_response(said: Any) -> Any:
    """Return a chat completion's moderation as a response has it; of several results a flagged one."""
    return _each_side(said, _one_result)


def moderation_of_chat(said: Any) -> Any:
    """Return a response's moderation as a chat completion has it."""
    return _each_side(said, _list_of_results)


def _each_side(said: Any, render: Callable[[dict[str, Any]], Any]) -> Any:
    if not isinstance(said, dict):
        return said
    return {side: render(found) if isinstance(found, dict) else found for side, found in said.items()}


def _one_result(found: dict[str, Any]) -> Any:
    results = found.get("results")
    if found.get("type") != "moderation_results" or not isinstance(results, list) or not results:
        return found
    return next((result for result in results if isinstance(result, dict) and result.get("flagged")), results[0])


def _list_of_results(found: dict[str, Any]) -> Any:
    if found.get("type") != "moderation_result":
        return found
    return {"type": "moderation_results", "model": found.get("model"), "results": [found]}
