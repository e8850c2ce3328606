from __future__ import annotations

from typing import Any

import pytest

from headrace.formats.closed_schema import close_schema, holds_map

CAT = {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]}
DOG = {"type": "object", "properties": {"kind": {"const": "dog"}}, "required": ["kind"]}


def shut(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "additionalProperties": False}


def test_one_of_some_becomes_any_of_them_without_its_discriminator() -> None:
    union = {"oneOf": [CAT, DOG], "discriminator": {"propertyName": "kind"}}
    assert close_schema({"type": "array", "items": union}) == {
        "type": "array",
        "items": {"anyOf": [shut(CAT), shut(DOG)]},
    }


@pytest.mark.parametrize("first", ["oneOf", "anyOf"])
def test_any_of_some_stays_beside_one_of_others(first: str) -> None:
    other = "anyOf" if first == "oneOf" else "oneOf"
    schema = {first: [CAT], other: [DOG]}
    assert close_schema(schema) == {"anyOf": [shut(schema["anyOf"][0])]}


def test_properties_may_be_called_as_keywords_are() -> None:
    names = {name: {"type": "string"} for name in ("oneOf", "discriminator", "minimum")}
    assert close_schema({"type": "object", "properties": names})["properties"] == names


def test_an_object_among_other_types_is_closed() -> None:
    schema = {"type": ["object", "null"], "properties": {"a": {"type": "string"}}}
    assert close_schema(schema) == shut(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": ["object", "null"]},
        {"type": "object", "additionalProperties": True},
        {"type": "object", "additionalProperties": {}},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "integer"}},
    ],
)
def test_an_object_with_names_that_the_schema_does_not_say_is_a_map(schema: dict[str, Any]) -> None:
    for within in (schema, {"anyOf": [schema]}, {"$defs": {"m": schema}}, {"type": "array", "items": schema}):
        assert holds_map(within)
        assert holds_map({"type": "object", "properties": {"counts": within}})


@pytest.mark.parametrize(
    "schema",
    [
        {},
        CAT,
        shut(CAT),
        {"type": "object", "properties": {}},
        {"type": "object", "additionalProperties": False},
        {**CAT, "additionalProperties": True},
        {"type": "object", "allOf": [{"$ref": "#/$defs/cat"}], "$defs": {"cat": CAT}},
        {"enum": [{"type": "object"}]},
        {"type": "string"},
    ],
)
def test_any_other_schema_has_no_map(schema: dict[str, Any]) -> None:
    assert not holds_map(schema)
