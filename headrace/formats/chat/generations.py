"""Generations of providers' models, which take different parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Any

_CLAUDE = re.compile(r"claude-(?:[a-z]+-)*(?P<major>\d{1,2})(?:[-.](?P<minor>\d{1,2})(?!\d))?")
_REASONS = re.compile(r"(?:^|[/._-])(?:o\d|gpt-(?:[5-9]|\d\d)(?!.*chat)|codex|grok-(?:[3-9]|code))")
_GEMINI_VERSION = re.compile(r"gemini-(?P<major>\d{1,2})(?:\.(?P<minor>\d{1,2}))?")
_CLAUDE_FAMILY = re.compile(r"claude-(?:[\d.]+-)*(?P<family>[a-z]+)")
_TEMPERATURE_OR_TOP_P_SINCE = (4, 0)
_ADAPTIVE_SINCE = (4, 6)
_NO_SAMPLING_SINCE = (4, 7)
_XHIGH_SINCE = (4, 7)
_THINKS_BY_DEFAULT_SINCE = (5, 0)
# The first versions that think whatever a request says, that think between calls at least, and that force no tool.
_ALWAYS_THINKS_SINCE = {"fable": (0, 0), "mythos": (0, 0), "opus": (5, 5)}
_THINKS_BETWEEN_SINCE = {"sonnet": (5, 5)}
_FORCES_NO_TOOL_SINCE = {"fable": (5, 1), "opus": (5, 5), "sonnet": (5, 5)}
# Tokens of the smallest budget that Anthropic lets a model think within.
_LEAST_BUDGET = 1024

GEMINI_THINKS_SINCE = (2, 5)
"""The first of Google's models that think, within a budget of tokens."""
GEMINI_LEVELS_SINCE = (3, 0)
"""The first of Google's models whose thinking has levels."""

EFFORTS = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max"})
"""OpenAI's words for an effort. Others are for a chat server to judge."""

DEFAULTS: Mapping[str, Any] = {"temperature": 1, "top_p": 1}
"""What Anthropic takes for a parameter that is left out."""


class Thinking(Enum):
    """How a model of Anthropic's is asked to think."""

    ADAPTIVE = auto()
    """As much as it takes, within an effort."""
    EFFORT = auto()
    """An effort alone: there is no thinking where a tool is forced."""
    BUDGET = auto()
    """A number of tokens."""


def _version(pattern: re.Pattern[str], model: str, unknown: tuple[int, int]) -> tuple[int, int]:
    match = pattern.search(model)
    return unknown if match is None else (int(match["major"]), int(match["minor"] or 0))


def _claude_version(model: str) -> tuple[int, int]:
    return _version(_CLAUDE, model, _ADAPTIVE_SINCE)


def _is_since(firsts: Mapping[str, tuple[int, int]], model: str) -> bool:
    """Return whether a model of Anthropic's is at least the first version that a table has for its family."""
    match = _CLAUDE_FAMILY.search(model)
    first = None if match is None else firsts.get(match["family"])
    return first is not None and _claude_version(model) >= first


def claude_sampling(model: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `temperature`, `top_p` and `top_k` that a model of Anthropic's takes with a request.

    Claude 4 takes a temperature or a `top_p`, not both. Many clients send both, one of them at its default.
    """
    version, thinking = _claude_version(model), claude_thinking(model, request)
    thinks = claude_always_thinks(model) or thinking not in (None, Thinking.EFFORT)
    if thinks or version >= _NO_SAMPLING_SINCE:
        return {}
    sampling = {name: request[name] for name in ("temperature", "top_p", "top_k") if request.get(name) is not None}
    if "temperature" in sampling:
        sampling["temperature"] = min(sampling["temperature"], 1)
    if {"temperature", "top_p"} <= sampling.keys() and version >= _TEMPERATURE_OR_TOP_P_SINCE:
        only_top_p = sampling["temperature"] == 1 and sampling["top_p"] != 1
        del sampling["temperature" if only_top_p else "top_p"]
    return sampling


def forces_tool(request: Mapping[str, Any]) -> bool:
    """Return whether the model has to call a tool."""
    choice = request.get("tool_choice")
    if isinstance(choice, Mapping) and choice["type"] == "allowed_tools":
        choice = choice["allowed_tools"]["mode"]
    return bool(request.get("tools")) and choice not in (None, "auto", "none")


def claude_forces_tools(model: str) -> bool:
    """Return whether a model of Anthropic's can be made to call a tool."""
    return not _is_since(_FORCES_NO_TOOL_SINCE, model)


def claude_thinking(model: str, request: Mapping[str, Any]) -> Thinking | None:
    """Return how a model of Anthropic's is to think about a request; None where it is not asked to, or cannot."""
    own = request.get("thinking")
    if isinstance(own, Mapping):
        return {"enabled": Thinking.BUDGET, "adaptive": Thinking.ADAPTIVE}.get(str(own.get("type")))
    effort = request.get("reasoning_effort")
    if effort == "none" or effort not in EFFORTS:
        return None
    forced = forces_tool(request)
    if _claude_version(model) >= _ADAPTIVE_SINCE:
        return Thinking.EFFORT if forced else Thinking.ADAPTIVE
    most = request.get("max_completion_tokens") or request.get("max_tokens")
    too_few = most is not None and most <= _LEAST_BUDGET
    return None if forced or too_few or _lost_its_thoughts(request["messages"]) else Thinking.BUDGET


def claude_always_thinks(model: str) -> bool:
    """Return whether no request keeps a model of Anthropic's from thinking."""
    return _is_since(_ALWAYS_THINKS_SINCE, model)


def claude_unthinking(model: str) -> dict[str, Any]:
    """Return what tells a model of Anthropic's not to think, or to think least: nothing where it does not by itself."""
    if claude_always_thinks(model):
        return {"output_config": {"effort": "low"}}
    if _is_since(_THINKS_BETWEEN_SINCE, model):
        return {"thinking": {"type": "between_tools"}}
    return {"thinking": {"type": "disabled"}} if _claude_version(model) >= _THINKS_BY_DEFAULT_SINCE else {}


def claude_effort(model: str, effort: str) -> str:
    """Return the effort that a model of Anthropic's has for OpenAI's."""
    if effort == "xhigh" and _claude_version(model) < _XHIGH_SINCE:
        return "high"
    return "low" if effort == "minimal" else effort


def _lost_its_thoughts(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether tools have answered a call whose thoughts are gone: the model may not think on from there."""
    for message in reversed(messages):
        if message["role"] == "assistant":
            return bool(message.get("tool_calls")) and not message.get("thinking_blocks")
        if message["role"] == "user":
            return False
    return False


def gemini_version(model: str) -> tuple[int, int]:
    """Return the generation of a model of Google's; one that we cannot tell is taken for 2.5."""
    return _version(_GEMINI_VERSION, model, (2, 5))


def gemini_penalises(model: str) -> bool:
    """Return whether a model of Google's takes `presence_penalty` and `frequency_penalty`, or has no version."""
    return _version(_GEMINI_VERSION, model, (0, 0)) < (2, 5)


def gemini_budget_range(model: str) -> tuple[int, int]:
    """Return the least and the most tokens of thought that a Gemini 2.5 takes."""
    return (128, 32768) if "-pro" in model else (0, 24576)


def gemini_least_level(model: str) -> str:
    """Return the least level of thought that a model of Google's has since Gemini 3: Flash models nearly none."""
    return "minimal" if "flash" in model else "low"


def gemini_always_thinks(model: str) -> bool:
    """Return whether no request keeps a model of Google's from thinking."""
    version = gemini_version(model)
    if version >= GEMINI_LEVELS_SINCE:
        return gemini_least_level(model) != "minimal"
    return version >= GEMINI_THINKS_SINCE and gemini_budget_range(model)[0] > 0


def gemini_mixes(model: str) -> bool:
    """Return whether a model of Google's takes tools and a JSON format in one request, or has no version."""
    return _version(_GEMINI_VERSION, model, (3, 0)) >= (3, 0)


def responses_reason(model: str, request: Mapping[str, Any]) -> bool:
    """Return whether a model of the Responses API reasons: the others refuse to be asked for encrypted reasoning."""
    return request.get("reasoning_effort") not in (None, "none") or _REASONS.search(model) is not None
