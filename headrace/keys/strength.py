"""Compares what two keys may do, by their scopes, models, limits and expiry, and whether they only read. Pure.

A key that manages keys can give them no more than it has itself. So a key that is created, changed or rotated never may
do more than the key that did it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.quotas.rules import Limits

# Where budget alerts go, and whether jobs wait for their rate: neither lets a key do more.
_HARMLESS = frozenset({"alert_webhook", "wait"})
_BOUNDS = tuple(name for name in Limits.model_fields if name not in _HARMLESS | {"models"})


@dataclass(frozen=True, slots=True)
class Strength:
    """What a key may do. `expires_at` is in Unix seconds; None is never."""

    scopes: Collection[str]
    limits: Limits
    expires_at: float | None
    read_only: bool = False

    def beyond(self, other: Strength) -> str | None:
        """Return the field by which this strength exceeds the other, or None if it does not."""
        if "admin" not in other.scopes and not set(self.scopes) <= set(other.scopes):
            return "scopes"
        if other.read_only and not self.read_only:
            return "read_only"
        for name in _BOUNDS:
            if _exceeds(getattr(self.limits, name), getattr(other.limits, name)):
                return f"limits.{name}"
        if not _covers(other.limits.models, self.limits.models):
            return "limits.models"
        return "expires_at" if _exceeds(self.expires_at, other.expires_at) else None


def inherit(limits: Limits, maker: Limits) -> Limits:
    """Return the limits of a new key: those that were asked for, and its creator's where a limit was left out."""
    inherited = {name: getattr(maker, name) for name in (*_BOUNDS, "models") if getattr(limits, name) is None}
    return limits.model_copy(update=inherited)


def _exceeds(value: Any, bound: Any) -> bool:
    return bound is not None and (value is None or value > bound)


def _covers(allowed: Sequence[str] | None, asked: Sequence[str] | None) -> bool:
    """Return whether each pattern matches only names that one of the allowed patterns matches."""
    if allowed is None:
        return True
    return asked is not None and all(
        one in allowed or any(_within(one, glob) for glob in allowed) for one in dict.fromkeys(asked)
    )


def _parts(pattern: str) -> Iterator[str]:
    """Yield the parts of a pattern of fnmatch: characters, `*`, `?` and sets such as `[a-z]`."""
    at, before = 0, ""
    while at < len(pattern):
        # A `]` that comes first is a member of its set; a `[` without an end is a character.
        first = at + 2 if pattern[at + 1 : at + 2] == "!" else at + 1
        end = pattern.find("]", first + 1) if pattern[at] == "[" else -1
        part = pattern[at] if end < 0 else pattern[at : end + 1]
        if not part == before == "*":
            yield part
        at, before = at + len(part), part


def _within(narrow: str, wide: str) -> bool:
    """Return whether `wide` matches every name that `narrow` matches. False if comparing parts does not prove it."""
    if not set(narrow) & set("*?["):
        return fnmatch.fnmatchcase(narrow, wide)
    parts = list(_parts(wide))
    places = {part: sum(1 << at for at, other in enumerate(parts) if other == part) for part in {*parts, "*", "?"}}
    stars = places["*"]
    reached = 1 | (1 & stars) << 1  # a bit for each place in `wide` that `narrow` reaches so far
    for part in _parts(narrow):
        step = 0 if part == "*" else (reached & (places.get(part, 0) | places["?"])) << 1
        reached = (reached & stars) | step
        reached |= (reached & stars) << 1
    return bool(reached >> len(parts) & 1)
