"""A request to an agent, in any format, as one to the agent's model.

Agents are described in chat's terms: a persona, example messages and defaults of parameters. In a request of the
Responses API the persona goes before the instructions, and the examples become items of the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from headrace.agents.persona import persona, resolve_chat
from headrace.errors import invalid_parameter
from headrace.formats.chat.support import Format
from headrace.formats.responses.context import CONTEXT_ITEMS, whole_item
from headrace.formats.responses.options import LOGPROBS
from headrace.formats.responses.upstream.render import render_request

# Defaults that have the same name in the Responses API, and those that it has in another place.
_SAME = frozenset({"presence_penalty", "frequency_penalty", "thinking", "fallbacks", "strict_params"})
_RENDERED = frozenset({
    "temperature", "top_p", "logprobs", "top_logprobs", "max_completion_tokens", "max_tokens", "reasoning_effort",
    "response_format", "verbosity", "tools", "tool_choice", "parallel_tool_calls", "web_search_options", "moderation",
    "service_tier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
})  # fmt: skip
# Parameters with several fields. A field of the call replaces the agent's default of that field.
_COMPOSED = ("text", "reasoning")
# Roles of messages that instruct the model. Those at the beginning stay before the agent's examples.
_INSTRUCTING = frozenset({"system", "developer"})


def resolve(agent: Mapping[str, Any], request: Mapping[str, Any], form: Format) -> dict[str, Any]:
    """Return a request to an agent as one to its model. `agent` is an AgentDefinition's JSON.

    A request of the Responses API may have been expanded by its context.

    Raises:
        InvalidRequestError: The agent has a default that the request's format does not have.
    """
    return _resolve_response(agent, request) if form == "responses" else resolve_chat(agent, request)


def _resolve_response(agent: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in request.items() if value is not None}
    defaults = _defaults(agent)
    if "tools" in given:
        defaults = {
            name: value for name, value in defaults.items() if name not in ("tool_choice", "parallel_tool_calls")
        }
    composed = {name: defaults.get(name, {}) | given.get(name, {}) for name in _COMPOSED if name in defaults}
    instructions = [text for text in (persona(agent), given.get("instructions")) if text]
    if instructions:
        composed["instructions"] = "\n\n".join(instructions)
    return {**defaults, **given, **composed, "model": agent["model"], **_input(agent, request)}


def _defaults(agent: Mapping[str, Any]) -> dict[str, Any]:
    """Return the agent's defaults under the names that the Responses API has for them."""
    parameters = {name: value for name, value in (agent.get("parameters") or {}).items() if value is not None}
    for name in parameters.keys() - _SAME - _RENDERED:
        raise invalid_parameter("model", f"the agent sets '{name}', which the Responses API does not have", code=None)
    same = {name: value for name, value in parameters.items() if name in _SAME}
    rendered = _render(agent, parameters)
    del rendered["model"], rendered["input"], rendered["store"]
    if rendered.pop("include", None) and parameters.get("logprobs"):
        rendered["include"] = [LOGPROBS]
    else:
        rendered.pop("top_logprobs", None)
    return rendered | same


def _input(agent: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input with the agent's examples before it, unless its context has them; they become part of that."""
    own, context = request.get("input"), request.get(CONTEXT_ITEMS, 0)
    items = [{"role": "user", "content": own}] if isinstance(own, str) else list(own or ())
    examples = [whole_item(item) for item in _render(agent, {})["input"]] if agent.get("messages") else []
    if not examples or _contains(items[:context], examples):
        return {"input": items}
    first = next((at for at, item in enumerate(items) if item.get("role") not in _INSTRUCTING), len(items))
    counted = {CONTEXT_ITEMS: context + len(examples)} if first < context else {}
    return {"input": [*items[:first], *examples, *items[first:]], **counted}


def _contains(items: Sequence[Mapping[str, Any]], examples: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the examples stand among the items, one after another; there they have ids."""
    count = len(examples)
    return any(
        all(
            item == {**example, "id": item["id"]}
            for item, example in zip(items[at : at + count], examples, strict=True)
        )
        for at in range(len(items) - count + 1)
    )


def _render(agent: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    chat = {"messages": agent.get("messages") or (), **parameters}
    body: dict[str, Any] = orjson.loads(render_request(chat, model=agent["model"], stream=False, output_limit=None))
    return body
