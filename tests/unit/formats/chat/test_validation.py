"""Pydantic's errors told in OpenAI's words, for models other than the chat request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from headrace.errors import InvalidRequestError
from headrace.formats.chat.validation import InvalidFieldError, invalid_request


class Circle(BaseModel):
    kind: Literal["circle"]
    circle: dict[str, int] | None = None
    radius: int


class Square(BaseModel):
    kind: Literal["square"]
    side: Annotated[int, Field(gt=0, lt=10)]


class Drawing(BaseModel):
    model_config = ConfigDict(strict=True)

    shape: Annotated[Circle | Square, Field(discriminator="kind")] | None = None
    count: int | str | list[int] | None = None
    name: Annotated[str, Field(min_length=3)] | None = None
    low: int = 0
    high: int = 9

    @field_validator("name")
    @classmethod
    def _polite(cls, name: str | None) -> str | None:
        if name == "damn":
            raise ValueError("mind your language")
        return name

    @model_validator(mode="after")
    def _ordered(self) -> Drawing:
        if self.low > self.high:
            raise InvalidFieldError("low", "must not exceed 'high'.")
        return self


def refuse(data: Any) -> InvalidRequestError:
    with pytest.raises(ValidationError) as caught:
        Drawing.model_validate(data)
    return invalid_request(caught.value, data)


@pytest.mark.parametrize(
    ("data", "param", "code"),
    [
        pytest.param({"shape": {"kind": "circle"}}, "shape.radius", "missing_required_parameter", id="in a member"),
        pytest.param(
            {"shape": {"kind": "circle", "circle": {}, "radius": "one"}},
            "shape.radius",
            "invalid_type",
            id="in a member named as a key beside it",
        ),
        pytest.param(
            {"shape": {"kind": "circle", "circle": {"x": "one"}, "radius": 1}},
            "shape.circle.x",
            "invalid_type",
            id="in a key named as its member",
        ),
        pytest.param({"shape": {"kind": "square", "side": 0}}, "shape.side", "integer_below_min_value", id="too low"),
        pytest.param({"shape": {"kind": "square", "side": 10}}, "shape.side", "integer_above_max_value", id="too high"),
        pytest.param({"shape": {"kind": "oval"}}, "shape.kind", "invalid_value", id="no such member"),
        pytest.param({"shape": {"kind": None}}, "shape.kind", "missing_required_parameter", id="null for a member"),
        pytest.param({"count": ["x"]}, "count[0]", "invalid_type", id="the deepest of a union"),
        pytest.param({"name": "ab"}, "name", "string_below_min_length", id="too short"),
        pytest.param({"name": "damn"}, "name", "invalid_value", id="a validator's ValueError"),
        pytest.param({"low": 10}, "low", "invalid_value", id="a validator's InvalidFieldError"),
        pytest.param({"low": "x", "high": "y"}, "low", "invalid_type", id="the first of many"),
    ],
)
def test_an_error_is_placed_where_its_client_would_write_it(data: Any, param: str, code: str) -> None:
    error = refuse(data)
    assert (error.param, error.code) == (param, code)


def test_a_value_of_no_type_of_a_union_is_told_all_of_them() -> None:
    expected = "Invalid type for 'count': expected an integer or a string or an array, but got an object instead."
    assert refuse({"count": {}}).message == expected


def test_a_validators_own_words_reach_the_client() -> None:
    assert refuse({"name": "damn"}).message == "Invalid 'name': mind your language"
    assert refuse({"low": 10}).message == "Invalid 'low': must not exceed 'high'."


def test_without_the_input_a_location_is_the_path() -> None:
    with pytest.raises(ValidationError) as caught:
        Drawing.model_validate({"low": "x"})
    assert invalid_request(caught.value).param == "low"
