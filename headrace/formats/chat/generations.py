"""Generations of providers' models, which take different parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Any

_CLAUDE = re.compile(r"claude-(?:[a-z]+-)*(?P<major>\d{1,2})(?:[-.](?P<minor>\d{1,2})(?!\d))?")
_REASONS = re.compile(r"(?:^|[/._-])(?:o\d|gpt-(?:[5-9]|\d\d)(?!.*chat)|codex|grok-(?:[3-9]|code))")
_GEMINI_VERSION = re.compile(r"gemini-(?P<major>\d{1,2})(?:\.(?P<minor>\d{1,2}))?")
_ADAPTIVE_SINCE = (4, 6)
_NO_SAMPLING_SINCE = (4, 7)
_LEAST_BUDGET = 1024


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


def claude_samples(model: str) -> bool:
    """Tell whether a model of Anthropic's takes `temperature`, `top_p` and `top_k`."""
    return _version(_CLAUDE, model, _ADAPTIVE_SINCE) < _NO_SAMPLING_SINCE


def claude_thinking(model: str, request: Mapping[str, Any]) -> Thinking | None:
    """Return how a model of Anthropic's is to think about a request; None where it is not asked to, or cannot."""
    own = request.get("thinking")
    if isinstance(own, Mapping):
        return {"enabled": Thinking.BUDGET, "adaptive": Thinking.ADAPTIVE}.get(str(own.get("type")))
    if request.get("reasoning_effort") in (None, "none"):
        return None
    choice = request.get("tool_choice")
    if isinstance(choice, Mapping) and choice["type"] == "allowed_tools":
        choice = choice["allowed_tools"]["mode"]
    forced = bool(request.get("tools")) and choice not in (None, "auto", "none")
    if _version(_CLAUDE, model, _ADAPTIVE_SINCE) >= _ADAPTIVE_SINCE:
        return Thinking.EFFORT if forced else Thinking.ADAPTIVE
    most = request.get("max_completion_tokens") or request.get("max_tokens")
    too_few = most is not None and most <= _LEAST_BUDGET
    return None if forced or too_few or _lost_its_thoughts(request["messages"]) else Thinking.BUDGET


def _lost_its_thoughts(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether tools have answered a call whose thoughts are gone: the model may not think on from there."""
    for message in reversed(messages):
        if message["role"] == "assistant":
            return bool(message.get("tool_calls")) and not message.get("thinking_blocks")
        if message["role"] == "user":
            return False
    return False


def gemini_version(model: str) -> tuple[int, int]:
    """Return the generation of a model of Google's; one that we cannot tell is taken for 2.5."""
    return _version(_GEMINI_VERSION, model, (2, 5))


def responses_reason(model: str, request: Mapping[str, Any]) -> bool:
    """Tell whether a model of the Responses API reasons: the others refuse to be asked for encrypted reasoning."""
    return request.get("reasoning_effort") not in (None, "none") or _REASONS.search(model) is not None
