"""What is wrong with a request, said as OpenAI says it: one field, by the path that its client would write.

Pydantic reports every failure of every alternative of every union, at locations that contain the names of those
alternatives. A client wants one sentence and one path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, LiteralString, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from headrace.errors import InvalidRequestError, invalid_parameter, shorten
from headrace.formats.json_document import parse_json, render_path

__all__ = ["InvalidFieldError", "check_metadata", "check_text", "invalid_request", "parse_body", "validate"]

# Characters of a message.
_LONGEST_MESSAGE = 300
# Errors of one document among which the most helpful one is searched for.
_MOST_ERRORS = 1000

_Model = TypeVar("_Model", bound=BaseModel)
_Key = str | int
_Path = tuple[_Key, ...]


class InvalidFieldError(PydanticCustomError):
    """What a model's own validator raises about one of its fields, to be reported by that field's path."""

    def __new__(cls, field: str, message: LiteralString, code: LiteralString = "invalid_value") -> Self:
        """Say what is wrong with `field` of the model being validated; `code` is OpenAI's."""
        return super().__new__(cls, code, message, {"field": field})


def parse_body(model: type[_Model], body: bytes) -> _Model:
    """Return `body`, which must be JSON, as a `model`. Raises InvalidRequestError naming the field that is wrong."""
    return validate(model, parse_json(body))


def validate(model: type[_Model], document: object) -> _Model:
    """Return parsed JSON as a `model`. Raises InvalidRequestError naming the field that is wrong."""
    try:
        return model.model_validate(document)
    except ValidationError as exc:
        raise invalid_request(exc, document) from None


def check_text(text: str, param: str) -> None:
    """Check that Postgres can keep a text, which is about `param`: it has no place for U+0000.

    Raises:
        InvalidRequestError: It cannot; the error names the parameter.
    """
    if "\0" in text:
        raise invalid_parameter(param, "it has the character U+0000")


def check_metadata(metadata: Mapping[str, str] | None) -> None:
    """Check that Postgres can keep all keys and values of metadata.

    Raises:
        InvalidRequestError: It cannot; the error names the key.
    """
    for key, value in (metadata or {}).items():
        check_text(key + value, f"metadata.{key}")


def invalid_request(exc: ValidationError, data: object | None = None) -> InvalidRequestError:
    """Return `exc` as OpenAI's error: one message, the `param` it is about, and a code.

    `data` is the input that was validated, as parsed JSON. It tells the keys of pydantic's locations from the names of
    union members between them; without it, locations are taken to be made of keys alone.
    """
    # Pydantic describes all errors or none, at some microseconds each: no body may have a million described.
    if exc.error_count() > _MOST_ERRORS:
        return InvalidRequestError(
            f"The request has {exc.error_count()} invalid values, too many to tell which.", code="invalid_value"
        )
    errors = exc.errors(include_url=False)
    placed = [_place(error, data) for error in errors]
    # The first error and those below it concern one value. Where that value may be of several types, the failure
    # furthest inside it comes from the alternative that its client meant.
    first = placed[0].path
    candidates = [error for error in placed if error.path[: len(first)] == first]
    deepest = max(candidates, key=lambda error: len(error.path)).path
    candidates = [error for error in candidates if error.path == deepest]
    best = next((error for error in candidates if error.expected is None), None)
    code, message = _invalid_type(candidates) if best is None else _explain(best)
    return InvalidRequestError(shorten(message, _LONGEST_MESSAGE), param=render_path(deepest) or None, code=code)


class _Placed(NamedTuple):
    """One of pydantic's errors at the path that the client would write."""

    path: _Path
    type: str
    value: Any
    ctx: dict[str, Any]
    message: str
    expected: str | None
    """What it should have been, where it is of the wrong JSON type altogether."""
    is_key: bool
    """It is not about the value at `path` but about one of its keys."""


_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "a boolean",
    "bool_parsing": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def _place(error: ErrorDetails, data: object | None) -> _Placed:
    kind, loc, found, ctx = error["type"], error["loc"], error["input"], error.get("ctx", {})
    value = found
    below: _Path = ()  # the field it is about, where pydantic names only the object around that
    is_key = loc[-1:] == ("[key]",)
    if kind == "missing":
        loc, below = loc[:-1], loc[-1:]
    elif kind.startswith("union_tag"):
        # It is quoted if it is a field. A function that reads it is called after it, as `type_()`.
        discriminator = ctx["discriminator"].strip("'_()")
        below = (discriminator,)
        value = found.get(discriminator) if isinstance(found, dict) else None
        kind = "missing" if value is None else "literal_error"
        ctx = {"expected": ctx.get("expected_tags", "a string")}
    elif "field" in ctx:
        below = (ctx["field"],)
    elif is_key:
        loc = loc[:-2]
    expected = _EXPECTED.get(kind)
    if kind == "literal_error" and not isinstance(value, str):
        expected = ctx["expected"]
    path = loc if data is None else _path_in(data, loc, found)
    return _Placed((*path, *below), kind, value, ctx, error["msg"], expected, is_key)


def _path_in(data: object, loc: _Path, value: object) -> _Path:
    """Return the keys of `loc` that lead through `data` to `value`, without the union members named between them.

    A member can have the name of a key beside it (a tool of type `function` has a field `function`), so every reading
    is tried, the one with the most keys first.
    """
    most_keys, _ = next(_readings(data, loc))
    return next((path for path, end in _readings(data, loc) if end == value), most_keys)


def _readings(data: object, loc: _Path) -> Iterator[tuple[_Path, object]]:
    if not loc:
        yield (), data
        return
    key, rest = loc[0], loc[1:]
    if (isinstance(data, dict) and key in data) or (
        isinstance(data, list) and isinstance(key, int) and key < len(data)
    ):
        for path, end in _readings(data[key], rest):  # type: ignore[index]  # it is a dict or a list with that key
            yield (key, *path), end
    yield from _readings(data, rest)


def _explain(error: _Placed) -> tuple[str, str]:
    """Return OpenAI's code and message for a value of the right type that is wrong otherwise."""
    path, ctx, value = render_path(error.path), error.ctx, error.value
    name = f"key in '{path}'" if error.is_key else f"'{path}'"
    match error.type:
        case "missing":
            return "missing_required_parameter", f"Missing required parameter: {name}."
        case "extra_forbidden":
            return "unknown_parameter", f"Unknown parameter: {name}."
        case "literal_error":
            supported = ctx["expected"]
            return "invalid_value", f"Invalid {name}: {_echo(value)}. Supported values are: {supported}."
        case comparison if comparison in _COMPARISONS:
            return _out_of_range(name, value, comparison, ctx)
        case "string_too_long":
            return _wrong_length(name, "string", "maximum", ctx["max_length"], len(value))
        case "string_too_short":
            return _wrong_length(name, "string", "minimum", ctx["min_length"], len(value))
        case "too_long" if isinstance(value, dict):
            return "object_above_max_properties", (
                f"Invalid {name}: too many properties. "
                f"Expected an object with at most {ctx['max_length']} properties, but got {len(value)} instead."
            )
        case "too_long":
            return _wrong_length(name, "array", "maximum", ctx["max_length"], len(value))
        case "too_short":
            return _wrong_length(name, "array", "minimum", ctx["min_length"], len(value))
        case "finite_number":
            return "invalid_value", f"Invalid {name}: expected a finite number."
        case "string_pattern_mismatch":
            return "invalid_value", (
                f"Invalid {name}: string does not match pattern. "
                f"Expected a string that matches the pattern '{ctx['pattern']}'."
            )
        case _ if "field" in ctx:
            return error.type, f"Invalid {name}: {error.message}"
        case _:
            reason = error.message.removeprefix("Value error, ")
            return "invalid_value", f"Invalid {name}: {reason}" if path else reason


_COMPARISONS = {
    "less_than_equal": ("le", "<=", "above", "maximum"),
    "less_than": ("lt", "<", "above", "maximum"),
    "greater_than_equal": ("ge", ">=", "below", "minimum"),
    "greater_than": ("gt", ">", "below", "minimum"),
}


def _out_of_range(name: str, value: object, comparison: str, ctx: dict[str, Any]) -> tuple[str, str]:
    key, sign, side, bound = _COMPARISONS[comparison]
    limit = ctx[key]
    # Pydantic gives the limit of an integer as an integer, and that of a float as a float.
    kind = "integer" if isinstance(limit, int) else "decimal"
    shown = f"{limit:g}" if isinstance(limit, float) else limit
    return f"{kind}_{side}_{bound[:3]}_value", (
        f"Invalid {name}: {kind} {side} {bound} value. Expected a value {sign} {shown}, but got {_echo(value)} instead."
    )


def _wrong_length(name: str, kind: str, bound: str, limit: int, length: int) -> tuple[str, str]:
    a_kind = f"an {kind}" if kind == "array" else f"a {kind}"
    if length == 0:
        code, problem, got = f"empty_{kind}", f"empty {kind}", f"an empty {kind}"
    elif bound == "maximum":
        code, problem, got = f"{kind}_above_max_length", f"{kind} too long", f"{a_kind} with length {length}"
    else:
        code, problem, got = f"{kind}_below_min_length", f"{kind} too short", f"{a_kind} with length {length}"
    return code, f"Invalid {name}: {problem}. Expected {a_kind} with {bound} length {limit}, but got {got} instead."


def _invalid_type(errors: Sequence[_Placed]) -> tuple[str, str]:
    """Return OpenAI's code and message for a value that is of none of the types it may have."""
    name = render_path(errors[0].path)
    wanted = " or ".join(dict.fromkeys(error.expected for error in errors if error.expected))
    subject = f"Invalid type for '{name}'" if name else "Invalid body of your request"
    return "invalid_type", f"{subject}: expected {wanted}, but got {_json_type(errors[0].value)} instead."


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a decimal"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def _echo(value: object) -> str:
    """Return a scalar as the client wrote it, shortened: a message is no place to send a body back in."""
    if isinstance(value, str):
        return f"'{shorten(value)}'"
    return shorten(str(value))
