"""JSON as providers and models write it, however deep."""

from __future__ import annotations

import base64

import orjson
import pytest

from headrace.formats.json_document import MAX_NESTING
from headrace.formats.lenient import parse_lenient_json
from headrace.formats.responses.sealed import open_sealed, seal
from headrace.formats.tools import parse_arguments


def nested(levels: int, inner: str = "1") -> str:
    return '{"a":' * levels + inner + "}" * levels


@pytest.mark.parametrize("levels", [MAX_NESTING + 1, 300, 600, 5000])
@pytest.mark.parametrize("inner", ["1", "NaN", '"\\ud800"', "1" * 30])
def test_what_is_nested_too_deeply_is_no_document(levels: int, inner: str) -> None:
    text = nested(levels, inner)
    with pytest.raises(ValueError, match="deep"):
        parse_lenient_json(text.encode())
    assert parse_arguments(text) == {"arguments": text}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("levels", [MAX_NESTING + 1, 3000])
@pytest.mark.parametrize("closed", [False, True])
def test_levels_are_counted_in_any_encoding(encoding: str, levels: int, closed: bool) -> None:
    text = '["\\"",' + "[" * levels + ("]" * levels + "]" if closed else "")
    with pytest.raises(ValueError, match="deep"):
        parse_lenient_json(text.encode(encoding))
    sealed = "hr1." + base64.b64encode(text.encode(encoding)).decode()
    assert open_sealed(sealed) is None


@pytest.mark.parametrize("inner", ["1", "NaN", '"\\ud800"', "1" * 30])
def test_what_is_read_can_be_written(inner: str) -> None:
    assert orjson.dumps({"body": [parse_arguments(nested(MAX_NESTING, inner))]})


def test_sealed_fields_that_are_nested_too_deeply_are_not_ours() -> None:
    fields = orjson.loads(nested(MAX_NESTING + 1))
    assert open_sealed(seal({"a": 1})) == {"a": 1}
    assert open_sealed(seal(fields)) is None
