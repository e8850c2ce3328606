"""Values that are made up for a schema fit it, as an independent validator sees it."""

from __future__ import annotations

import enum
import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from typing import Annotated, Any, Literal
from uuid import UUID

import jsonschema_rs
import pytest
from pydantic import AnyUrl, BaseModel, Field

from headrace.providers.demo.example import NoExampleError, example_of

TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["value", "next", "children"],
            "additionalProperties": False,
        }
    },
}
TEXT: dict[str, Any] = {"type": "string"}


def obj(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


SCHEMAS: list[Any] = [
    True,
    {},
    {"const": {"a": [1, None]}},
    {"enum": ["red", None, 3]},
    {"type": "integer", "enum": ["red", 3]},
    {"type": ["null", "integer"]},
    {"type": "null"},
    {"type": "boolean"},
    # numbers
    {"type": "integer", "minimum": -5, "exclusiveMaximum": -3},
    {"type": "integer", "exclusiveMinimum": 0.5, "maximum": 1.5},
    {"type": "integer", "multipleOf": 7, "minimum": 15},
    {"type": "integer", "multipleOf": 2.5, "maximum": -1},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "number", "multipleOf": 0.01, "minimum": 3.141},
    {"type": "number", "minimum": 0.25, "maximum": 0.25},
    {"type": "number", "exclusiveMaximum": -1e9},
    {"minimum": 10},
    {"type": "integer", "minimum": 9007199254740993},
    # texts
    {"type": "string", "minLength": 40},
    {"type": "string", "maxLength": 3},
    {"type": "string", "maxLength": 0},
    {"type": "string", "pattern": "^[A-Z]{2}-\\d{3,5}$"},
    {"type": "string", "pattern": "^(?<year>\\d{4})-(0[1-9]|1[0-2])$"},
    {"type": "string", "pattern": "^(cat|dog)s?$", "maxLength": 4},
    {"type": "string", "pattern": "^[^a-z\\s]+$", "minLength": 12},
    {"type": "string", "pattern": "^\\w+([.-]?\\w+)*@\\w+\\.(com|org)$"},
    {"type": "string", "pattern": "^(a+)+$"},
    {"type": "string", "pattern": "^#(?:[0-9a-fA-F]{3}){1,2}$"},
    {"type": "string", "pattern": "^[\\u4e00-\\u9fff]+$"},
    *({"type": "string", "format": name} for name in ("date-time", "date", "time", "duration", "email", "hostname")),
    *({"type": "string", "format": name} for name in ("ipv4", "ipv6", "uri", "uri-reference", "uuid", "json-pointer")),
    *({"type": "string", "format": name} for name in ("regex", "iri", "idn-email", "uri-template", "unknown")),
    # arrays
    {"type": "array", "items": TEXT, "minItems": 3},
    {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "minItems": 3},
    {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "minItems": 2},
    {"type": "array", "items": TEXT, "maxItems": 0},
    {"type": "array", "prefixItems": [TEXT, {"type": "integer"}], "items": False, "minItems": 2},
    {"type": "array", "items": obj("a", a={"type": "integer"}), "uniqueItems": True, "minItems": 4},
    {"type": "array", "contains": {"const": 5}, "minContains": 2},
    {"items": {"type": "integer"}},
    # objects
    obj("a", a=obj("b", b={"type": "array", "items": obj("c", c=TEXT), "minItems": 2})),
    {"type": "object", "required": ["x"]},
    {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 3},
    {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "minProperties": 2},
    {"type": "object", "patternProperties": {"^x-": TEXT}, "additionalProperties": False, "minProperties": 2},
    {"type": "object", "properties": {"a": TEXT, "b": TEXT, "c": TEXT}, "required": ["c"], "maxProperties": 2},
    {"type": "object", "properties": {"a": False, "b": TEXT}},
    # references and combinations
    TREE,
    {"$defs": {"a/b": TEXT}, "type": "object", "properties": {"x": {"$ref": "#/$defs/a~1b"}}, "required": ["x"]},
    {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 3}]},
    {"oneOf": [obj("kind", "a", kind={"const": "a"}, a=TEXT), obj("kind", kind={"const": "b"})]},
    {"allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": {"type": "integer", "minimum": 8}}}]},
    {"allOf": [{"type": ["number", "string"]}, {"type": ["integer", "null"]}, {"maximum": 2}, {"minimum": 2}]},
    {"type": "object", "properties": {"a": TEXT}, "anyOf": [{"required": ["b"]}, {"required": ["a"]}]},
    {"anyOf": [{"$ref": "#"}, TEXT]},
    {"allOf": [{"enum": [1, 2, 3]}, {"enum": [3, 4]}]},
    {"if": {"properties": {"a": {"const": 1}}, "required": ["a"]}, "then": {"required": ["b"]}, "type": "object"},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
@pytest.mark.parametrize("nth", [0, 1, 5])
def test_a_value_fits_its_schema(schema: Any, nth: int) -> None:
    jsonschema_rs.validator_for(schema, validate_formats=True).validate(example_of(schema, nth))


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Line(BaseModel):
    name: Annotated[str, Field(pattern=r"^[A-Z]\w{2,9}$")]
    count: Annotated[int, Field(gt=0, le=12)]
    price: Decimal
    colour: Colour | None


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(multiple_of=3)]


class Dog(BaseModel):
    kind: Literal["dog"]


class Order(BaseModel):
    id: UUID
    at: datetime
    day: date
    hour: time
    took: timedelta
    home: AnyUrl
    host: IPv4Address
    lines: Annotated[list[Line], Field(min_length=2, max_length=3)]
    pair: tuple[int, str]
    tags: set[str]
    stock: dict[str, int]
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    next: Order | None = None
    fraction: Annotated[float, Field(ge=0, lt=1)]


@pytest.mark.parametrize("nth", [0, 1, 2])
def test_pydantic_takes_what_is_made_of_its_schema(nth: int) -> None:
    Order.model_validate_json(json.dumps(example_of(Order.model_json_schema(), nth)))


def test_choices_differ_where_the_schema_leaves_room() -> None:
    assert len({json.dumps(example_of(obj("a", a=TEXT), nth)) for nth in range(5)}) == 5


def doubling(levels: int) -> dict[str, Any]:
    """Return a schema whose smallest value has 2 ** levels parts."""
    definitions: dict[str, Any] = {
        f"d{level}": obj("a", "b", a={"$ref": f"#/$defs/d{level + 1}"}, b={"$ref": f"#/$defs/d{level + 1}"})
        for level in range(levels)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{levels}": TEXT}}


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"$ref": "#"},
        {"$ref": "https://example.com/schema"},
        {"$ref": "#/$defs/nothing"},
        obj("a", a={"$ref": "#"}),
        {"type": "array", "minItems": 10**9},
        {"type": "string", "minLength": 10**12},
        {"type": "string", "pattern": "^a{1000000}$"},
        {"type": "string", "pattern": "^((((a{99}){99}){99}){99})$"},
        {"type": "string", "pattern": "["},
        {"type": "string", "pattern": "^\\ud800$"},
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "minItems": 3},
        {"type": "wavelength"},
        {"enum": []},
        {"properties": 3, "required": ["a"]},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"allOf": [{"anyOf": [{"type": "string"}] * 9}] * 9 + [{"type": "integer"}]},
        doubling(14),
    ],
    ids=lambda schema: json.dumps(schema)[:60],
)
def test_what_no_value_is_found_for_is_refused(schema: Any) -> None:
    with pytest.raises(NoExampleError):
        example_of(schema)
