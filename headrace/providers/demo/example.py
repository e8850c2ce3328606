"""A JSON value that fits a JSON Schema, made up for the demo models. Pure.

The schema is a client's, so all work is bounded, and a pattern is read but never matched. A schema for which no value
is found is refused. `not`, `dependentSchemas` and `unevaluated…` are not looked at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from headrace.errors import shorten
from headrace.providers.demo.text import text_of_format, text_of_pattern

Flat = Mapping[str, Any]
"""A schema without `$ref`, `allOf`, `anyOf`, `oneOf` and `if`."""

# Steps that one value may take: schemas, ways through them, every 20 characters of text, and patterns.
_MOST_STEPS = 4000
# Steps after which what a schema does not require is left out.
_STEPS_WITH_EXTRAS = 1000
_STEPS_A_PATTERN = 40
# Characters of a text, and of one that fits a pattern.
_LONGEST_TEXT = 10_000
_LONGEST_PATTERN_TEXT = 1000
# How often a `$ref` may lie within itself: enough for one child of a tree.
_MOST_NESTED = 2
_COMBINING = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "then", "else"})
_TYPES_OF_KEYWORDS = (
    ("object", ("properties", "required", "additionalProperties", "patternProperties", "minProperties")),
    ("array", ("items", "prefixItems", "minItems", "contains", "uniqueItems")),
    ("string", ("pattern", "format", "minLength", "maxLength")),
    ("number", ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
)


class NoExampleError(ValueError):
    """No value was found that fits the schema."""


def example_of(schema: Any, nth: int = 0) -> Any:
    """Return a value that fits a schema; another `nth` gives another one, where the schema leaves room.

    Raises:
        NoExampleError: None was found, or the schema asks for too large a value.
    """
    try:
        return _Maker(schema).make(schema, nth, ())
    except (RecursionError, OverflowError, TypeError, AttributeError) as error:
        raise NoExampleError("it is not a JSON Schema, or one that is nested too deep") from error


class _TooLargeError(NoExampleError):
    """There are no steps left."""


class _Maker:
    """Makes one value. `path` has the `$ref`s that lead from the root to where it is."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._steps = 0

    @property
    def _has_room(self) -> bool:
        return self._steps < _STEPS_WITH_EXTRAS

    def _spend(self, steps: int = 1) -> None:
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise _TooLargeError("the value would be too large")

    def make(self, schema: Any, nth: int, path: tuple[str, ...]) -> Any:
        """Return a value, by the first way through the schema that leads to one."""
        self._spend()
        because = NoExampleError("it fits no value, or has no end")
        for flat, reached in self._ways(schema, path):
            for kind in _types(flat):
                try:
                    return self._value(flat, kind, nth, reached)
                except _TooLargeError:
                    raise
                except NoExampleError as error:
                    because = error
        raise because

    def _ways(self, schema: Any, path: tuple[str, ...]) -> Iterator[tuple[Flat, tuple[str, ...]]]:
        """Yield flat schemas, each of which fits only what the schema fits; those that are null alone come last."""
        self._spend()
        if schema is False:
            return
        if schema is True:
            schema = {}
        groups: list[Sequence[Any]] = [[part] for part in schema.get("allOf", ())]
        groups += [sorted(schema[name], key=_is_null) for name in ("anyOf", "oneOf") if name in schema]
        if "if" in schema:
            groups.append([{"allOf": [schema["if"], schema.get("then", True)]}, schema.get("else", True)])
        if "$ref" in schema:
            reference = schema["$ref"]
            if path.count(reference) >= _MOST_NESTED:
                return
            groups.insert(0, [self._target(reference)])
            path = (*path, reference)
        base = {name: value for name, value in schema.items() if name not in _COMBINING}
        yield from self._combined(base, groups, path)

    def _combined(
        self, base: Flat, groups: Sequence[Sequence[Any]], path: tuple[str, ...]
    ) -> Iterator[tuple[Flat, tuple[str, ...]]]:
        if not groups:
            yield base, path
            return
        for option in groups[0]:
            for flat, reached in self._ways(option, path):
                merged = _merge(base, flat)
                if merged is not None:
                    yield from self._combined(merged, groups[1:], reached)

    def _target(self, reference: str) -> Any:
        if not reference.startswith("#"):
            raise NoExampleError(f"it refers to '{shorten(reference)}', which is not in it")
        target = self._root
        for part in reference[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            try:
                target = target[int(key)] if isinstance(target, list) else target[key]
            except (LookupError, ValueError) as error:
                raise NoExampleError(f"it refers to '{shorten(reference)}', which is not in it") from error
        return target

    def _value(self, flat: Flat, kind: str, nth: int, path: tuple[str, ...]) -> Any:
        if "const" in flat:
            return flat["const"]
        if "enum" in flat:
            choices = [choice for choice in flat["enum"] if "type" not in flat or _is_a(choice, kind)]
            if not choices:
                raise NoExampleError("an enum of it has no value")
            return choices[nth % len(choices)]
        match kind:
            case "object":
                return self._object(flat, nth, path)
            case "array":
                return self._array(flat, nth, path)
            case "string":
                return self._text(flat, nth)
            case "integer" | "number":
                return _number(flat, nth, whole=kind == "integer")
            case "boolean":
                return nth % 2 == 0
            case "null":
                return None
        raise NoExampleError(f"it has the unknown type '{shorten(kind)}'")

    def _object(self, flat: Flat, nth: int, path: tuple[str, ...]) -> dict[str, Any]:
        properties, required = flat.get("properties", {}), flat.get("required", ())
        others = flat.get("additionalProperties", True)
        patterns = flat.get("patternProperties", {})
        most = flat.get("maxProperties", math.inf)
        extras = most - len(required)
        made: dict[str, Any] = {}
        for name, schema in properties.items():
            if name in required:
                made[name] = self.make(schema, nth, path)
            elif extras > 0 and self._has_room:
                try:
                    made[name] = self.make(schema, nth, path)
                except _TooLargeError:
                    raise
                except NoExampleError:
                    continue
                extras -= 1
        for name in required:
            if name not in made:
                made[name] = self.make(others, nth, path)
        # A map of names that the schema does not know, as `dict[str, int]` is one, has one as an example.
        usual = 0 if properties or not (patterns or isinstance(others, dict)) else 1
        pattern, schema = next(iter(patterns.items()), (None, others))
        for number in itertools.count(nth):
            if len(made) >= min(most, max(flat.get("minProperties", 0), usual)):
                return made
            made[self._name(flat, pattern, number, path)] = self.make(schema, number, path)
        raise AssertionError

    def _name(self, flat: Flat, pattern: str | None, nth: int, path: tuple[str, ...]) -> str:
        if pattern is not None:
            return self._text({"pattern": pattern}, nth)
        return str(self.make({"type": "string", **flat.get("propertyNames", {})}, nth, path))

    def _array(self, flat: Flat, nth: int, path: tuple[str, ...]) -> list[Any]:
        first, rest = flat.get("prefixItems", []), flat.get("items", True)
        if isinstance(rest, list):  # as drafts before 2020-12 have it
            first, rest = rest, flat.get("additionalItems", True)
        if "contains" in flat:
            rest = {"allOf": [rest, flat["contains"]]}
        least = max(flat.get("minItems", 0), flat.get("minContains", 0))
        count = min(max(least, len(first), 1), flat.get("maxItems", math.inf))
        made: list[Any] = []
        number = itertools.count(nth)
        while len(made) < count:
            schema = first[len(made)] if len(made) < len(first) else rest
            try:
                value = self.make(schema, next(number), path)
            except _TooLargeError:
                raise
            except NoExampleError:
                if len(made) < least:
                    raise
                return made
            if not (flat.get("uniqueItems") and value in made):
                made.append(value)
        return made

    def _text(self, flat: Flat, nth: int) -> str:
        least, most = flat.get("minLength", 0), flat.get("maxLength", _LONGEST_TEXT)
        if least > _LONGEST_TEXT:
            raise _TooLargeError("a text of it would be too long")
        self._spend(least // 20)
        if "pattern" in flat:
            self._spend(_STEPS_A_PATTERN)
            text = text_of_pattern(flat["pattern"], nth, least=least, longest=min(most, _LONGEST_PATTERN_TEXT))
            if text is None:
                raise NoExampleError(f"no text was found that fits the pattern '{shorten(flat['pattern'])}'")
            return text
        text = text_of_format(flat.get("format"), nth)
        if text is None:
            text = f"{nth + 1} example" if nth else "example"
            text = text.ljust(least, "e")[:most]
        return text


def _types(flat: Flat) -> Sequence[str]:
    """Return the types that a value may have, null last; where the schema names none, what its keywords are about."""
    kind = flat.get("type")
    if isinstance(kind, list):
        return sorted(kind, key=lambda name: name == "null")
    if kind is not None:
        return (kind,)
    return (next((name for name, keywords in _TYPES_OF_KEYWORDS if any(word in flat for word in keywords)), "string"),)


def _is_null(schema: Any) -> bool:
    return isinstance(schema, dict) and (schema.get("type") == "null" or schema.get("const", ...) is None)


def _is_a(value: Any, kind: str) -> bool:
    match value:
        case None:
            return kind == "null"
        case bool():
            return kind == "boolean"
        case str():
            return kind == "string"
        case int() | float():
            return kind == "number" or (kind == "integer" and value == int(value))
        case list():
            return kind == "array"
    return kind == "object"


_LOWER_BOUNDS = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "minContains")
_UPPER_BOUNDS = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")


def _merge(one: Flat, other: Flat) -> Flat | None:
    """Return a flat schema that fits only what both fit, or None if their types or values have nothing in common."""
    merged = {**one, **other}
    for name in one.keys() & other.keys():
        mine, theirs = one[name], other[name]
        if name in _LOWER_BOUNDS:
            merged[name] = max(mine, theirs)
        elif name in _UPPER_BOUNDS:
            merged[name] = min(mine, theirs)
        elif name == "required":
            merged[name] = list(dict.fromkeys((*mine, *theirs)))
        elif name in ("properties", "patternProperties"):
            both = {key: {"allOf": [mine[key], theirs[key]]} for key in mine.keys() & theirs.keys()}
            merged[name] = {**mine, **theirs, **both}
        elif name in ("items", "additionalProperties", "contains", "propertyNames") and mine != theirs:
            merged[name] = {"allOf": [mine, theirs]}
        elif name == "multipleOf":
            merged[name] = float(_common_multiple(Fraction(str(mine)), Fraction(str(theirs))))
        elif name == "type":
            merged[name] = _common_types(mine, theirs)
        elif name == "enum":
            merged[name] = [value for value in mine if value in theirs]
    if merged.get("type") == [] or merged.get("enum") == []:
        return None
    if "const" in one and "const" in other and one["const"] != other["const"]:
        return None
    if "const" in merged and "enum" in merged and merged["const"] not in merged["enum"]:
        return None
    return merged


def _common_types(mine: Any, theirs: Any) -> list[str]:
    one, other = ([kind] if isinstance(kind, str) else kind for kind in (mine, theirs))
    common = [kind for kind in one if kind in other]
    if "integer" not in common and "integer" in (*one, *other) and {"integer", "number"} <= {*one, *other}:
        common.append("integer")
    return common


def _common_multiple(one: Fraction, other: Fraction) -> Fraction:
    return Fraction(
        math.lcm(one.numerator * other.denominator, other.numerator * one.denominator),
        one.denominator * other.denominator,
    )


def _number(flat: Flat, nth: int, *, whole: bool) -> int | float:
    low, is_open_low = _bound(flat, "minimum", "exclusiveMinimum", max)
    high, is_open_high = _bound(flat, "maximum", "exclusiveMaximum", min)
    step = Fraction(str(flat["multipleOf"])) if "multipleOf" in flat else None
    if whole:
        step = Fraction(1) if step is None else _common_multiple(step, Fraction(1))
    if step is not None:
        value = step * _multiple(
            None if low is None else math.floor(low / step) + 1 if is_open_low else math.ceil(low / step),
            None if high is None else math.ceil(high / step) - 1 if is_open_high else math.floor(high / step),
            nth,
        )
    elif low is not None and high is not None:
        value = low if low == high else low + (high - low) * Fraction(nth + 1, nth + 2)
        if value > high or (low == high and (is_open_low or is_open_high)):
            raise NoExampleError("no number lies between its bounds")
    elif low is not None:
        value = low + nth + (1 if is_open_low else 0)
    elif high is not None:
        value = high - nth - (1 if is_open_high else 0)
    else:
        value = Fraction(nth) + Fraction(3, 2)
    return int(value) if whole else float(value)


def _multiple(least: int | None, most: int | None, nth: int) -> int:
    """Return a whole number from `least` to `most`: from 1 on where both leave that open."""
    if least is None:
        return 1 + nth if most is None else most - nth
    if most is None:
        return least + nth
    if most < least:
        raise NoExampleError("no number lies between its bounds")
    return least + nth % (most - least + 1)


def _bound(flat: Flat, name: str, exclusive: str, tighter: Any) -> tuple[Fraction | None, bool]:
    """Return a bound, and whether the bound itself is left out; `exclusive` is a flag in draft 4, and a bound later."""
    bound, beyond = flat.get(name), flat.get(exclusive)
    if isinstance(beyond, bool):
        return (None, False) if bound is None else (Fraction(str(bound)), beyond)
    given = [Fraction(str(value)) for value in (bound, beyond) if value is not None]
    if not given:
        return None, False
    tightest = tighter(given)
    return tightest, beyond is not None and tightest == Fraction(str(beyond))
