"""JSON Schemas as Anthropic's structured outputs take them, for strict tools and for answers.

See https://platform.claude.com/docs/en/build-with-claude/structured-outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Keywords with schemas under names of the client's, and those that hold values and no schemas.
_NAMED = frozenset({"properties", "$defs", "definitions"})
_VALUES = frozenset({"enum", "const", "default", "examples", "required"})
# Bounds, and what says the same as the branches of a `oneOf` beside it.
_UNSUPPORTED = frozenset({
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength",
    "maxItems", "uniqueItems", "minProperties", "maxProperties", "discriminator",
})  # fmt: skip
# Any of these says what an object has.
_DESCRIBING = frozenset({"properties", "$ref", "anyOf", "oneOf", "allOf"})


def close_schema(schema: Any) -> Any:
    """Return a schema whose objects are closed: without bounds, and with `anyOf` in the place of `oneOf`."""
    if isinstance(schema, list):
        return [close_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            closed[key] = {name: close_schema(inner) for name, inner in value.items()}
        elif key in _VALUES:
            closed[key] = value
        elif key == "oneOf":
            closed.setdefault("anyOf", close_schema(value))
        elif key not in _UNSUPPORTED and not (key == "minItems" and value not in (0, 1)):
            closed[key] = close_schema(value)
    if _may_be_object(closed):
        closed["additionalProperties"] = False
    return closed


def holds_map(schema: Any) -> bool:
    """Return whether a schema has an object whose keys it does not name: closed, that object could only be empty."""
    if isinstance(schema, list):
        return any(map(holds_map, schema))
    return isinstance(schema, dict) and (_is_map(schema) or any(map(holds_map, _inner(schema))))


def _is_map(schema: dict[str, Any]) -> bool:
    others = schema.get("additionalProperties")
    if others is False:
        return False
    return (isinstance(others, dict) and bool(others)) or (_may_be_object(schema) and _DESCRIBING.isdisjoint(schema))


def _may_be_object(schema: dict[str, Any]) -> bool:
    kinds = schema.get("type")
    return kinds == "object" or (isinstance(kinds, list) and "object" in kinds)


def _inner(schema: dict[str, Any]) -> Iterator[Any]:
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            yield from value.values()
        elif key not in _VALUES:
            yield value
