from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.batches.lines import LONGEST_CUSTOM_ID, CustomIds, LineReader, RawLine, parse_line
from headrace.errors import InvalidRequestError
from headrace.formats.chat.request import ChatRequest, parse_chat_request

BODY = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": BODY}


def line(**changes: Any) -> bytes:
    """Return a line that is valid but for `changes`; None removes a field."""
    return json.dumps({name: value for name, value in (LINE | changes).items() if value is not None}).encode()


def read(pieces: Iterable[bytes], **start: int) -> list[RawLine]:
    reader = LineReader(**start)
    found = [raw for piece in pieces for raw in reader.feed(piece)]
    return [*found, *reader.close()]


INPUT = st.lists(st.sampled_from([b"", b" ", b"\t", b"{}", b"abc", b'"\xc3\xa9"', b"x" * 9]), max_size=12).flatmap(
    lambda parts: st.sampled_from([b"\n".join(parts), b"\r\n".join(parts), b"\n".join(parts) + b"\n"])
)


@given(INPUT, st.lists(st.integers(0, 100), max_size=8))
def test_lines_are_the_same_however_the_input_is_cut(text: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[start:end] for start, end in pairwise(places)]
    found = read(pieces)
    expected = [(number, part) for number, part in enumerate(text.split(b"\n"), 1) if part.strip()]
    assert [(raw.number, raw.text) for raw in found] == expected


@given(INPUT)
def test_reading_goes_on_where_any_line_ended(text: bytes) -> None:
    found = read([text])
    for index, raw in enumerate(found):
        assert read([text[raw.end :]], offset=raw.end, number=raw.number + 1) == found[index + 1 :]


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert [raw.text for raw in read([b"\xef\xbb\xbf{}\n{}"])] == [b"{}", b"{}"]


def test_a_line_that_is_too_large_is_told_and_not_held() -> None:
    reader = LineReader(largest=10)
    found = [raw for piece in (b"{}\n" + b"x" * 9, b"x" * 9, b"x\n{}\n") for raw in reader.feed(piece)]
    assert [(raw.number, raw.text) for raw in found] == [(1, b"{}"), (2, None), (3, b"{}")]
    assert found[-1].end == 3 + 20 + 3


def test_a_valid_line_is_read() -> None:
    read_line = parse_line(line(body={**BODY, "temperature": 0, "timeout": 5}))
    assert read_line.custom_id == "a"
    assert read_line.body == {**BODY, "temperature": 0, "timeout": 5}
    assert read_line.terms == parse_chat_request(json.dumps(read_line.body).encode())


@pytest.mark.parametrize(
    ("text", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (b'{"custom_id": "\xff"}', "invalid_json_line", None),
        (b'{"custom_id": NaN}', "invalid_value", "custom_id"),
        (None, "line_too_large", None),
        (line(custom_id=None), "missing_required_parameter", "custom_id"),
        (line(method=None), "missing_required_parameter", "method"),
        (line(url=None), "missing_required_parameter", "url"),
        (line(body=None), "missing_required_parameter", "body"),
        (line(custom_id=""), "invalid_custom_id", "custom_id"),
        (line(custom_id=1), "invalid_custom_id", "custom_id"),
        (line(custom_id="x" * (LONGEST_CUSTOM_ID + 1)), "invalid_custom_id", "custom_id"),
        (line(custom_id="a\0"), "invalid_custom_id", "custom_id"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url="/v1/embeddings"), "mismatched_url", "url"),
        (line(body=[]), "invalid_type", "body"),
        (line(extra=1), "unknown_parameter", "extra"),
        (line(body={"model": "fake"}), "missing_required_parameter", "body.messages"),
        (line(body={**BODY, "temperature": 9}), "decimal_above_max_value", "body.temperature"),
        (line(body={**BODY, "messages": [{"role": "nobody"}]}), "invalid_value", "body.messages[0].role"),
        (line(body={**BODY, "stream": True}), "invalid_value", "body.stream"),
        (line(body={**BODY, "background": False}), "invalid_value", "body.background"),
        (line(body={**BODY, "webhook": "https://example.com"}), "invalid_value", "body.webhook"),
    ],
)
def test_what_is_wrong_with_a_line_is_told_by_its_field(text: bytes | None, code: str, param: str | None) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_line(text)
    assert (refused.value.code, refused.value.param) == (code, param)


@pytest.mark.parametrize(
    "fields",
    [
        {
            "temperature": 1,
            "top_p": 0,
            "n": 2,
            "stop": ["a"],
            "seed": 1,
            "logit_bias": {"1": -3},
            "metadata": {"a": "b"},
        },
        {"max_tokens": 5, "stream": False, "unknown": {"deep": [1, 2.5, None]}, "logprobs": True, "top_logprobs": 3},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "tool_choice": "auto"},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}, "timeout": 1.5},
        {"temperature": "1"},
        {"n": 1.5},
        {"n": True},
        {"logprobs": 1},
        {"metadata": {"a": 1}},
    ],
)
def test_a_body_means_the_same_in_a_line_as_by_itself(fields: dict[str, Any]) -> None:
    body = BODY | fields
    try:
        alone: ChatRequest | str | None = parse_chat_request(json.dumps(body).encode())
    except InvalidRequestError as error:
        alone = error.message
    try:
        in_line: object = parse_line(line(body=body)).terms
    except InvalidRequestError as error:
        in_line = error.message
    assert in_line == alone


def test_a_custom_id_that_comes_twice_is_found() -> None:
    ids = CustomIds()
    for number in range(1000):
        ids.check(f"r{number}")
    with pytest.raises(InvalidRequestError, match="'r7'"):
        ids.check("r7")
