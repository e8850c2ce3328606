"""Bounds of a JSON document. A long request is checked as a short one is."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidRequestError
from headrace.formats.chat.base import MOST_PARTS, MOST_TOOLS
from headrace.formats.chat.messages import MOST_MESSAGES
from headrace.formats.chat.request import MOST_BIASES, MOST_TOKENS, ChatRequest, JobSubmission, check_request
from headrace.formats.json_document import MAX_NESTING, MOST_VALUES, check_bounds, has_long_number, parse_json
from headrace.runtime.offload import LARGE_BYTES, offloaded

TEXT = {"type": "text", "text": "a"}
USER = {"role": "user", "content": "hi"}


def refusal(document: Any, *, within: str | None = None) -> InvalidRequestError:
    model = ChatRequest if within is None else JobSubmission
    with pytest.raises(InvalidRequestError) as caught:
        check_request(model, document, within=within)
    return caught.value


def asking(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [USER], **fields}


@pytest.mark.parametrize("item", [b"1", b"{}", b"[]", b'""', b'{"a":1}', b'"\\\\"'], ids=repr)
def test_a_document_of_too_many_values_is_not_parsed(item: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_bounds(b"[" + b",".join([item] * MOST_VALUES) + b"]")
    assert caught.value.code == "too_many_values"


@pytest.mark.parametrize("text", ["a,b[c]{d}:", '"quoted", \\ and \\" escaped', "[[[[[{{{{{", "é\n\t,"], ids=repr)
def test_what_stands_in_strings_is_text(text: str) -> None:
    document = {"messages": [{"content": text * (2 * MOST_VALUES)}]}
    assert parse_json(orjson.dumps(document)) == document


@given(
    st.recursive(
        st.text(max_size=3) | st.integers(0, 9), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_what_is_within_bounds_is_parsed(document: Any) -> None:
    assert parse_json(orjson.dumps(document)) == document


@pytest.mark.parametrize(("levels", "fits"), [(MAX_NESTING, True), (MAX_NESTING + 1, False)])
def test_levels_are_counted(levels: int, fits: bool) -> None:
    document = b'{"a":' * (levels - 1) + b'["[[[", "]"]' + b"}" * (levels - 1)
    if fits:
        parse_json(document)
        return
    with pytest.raises(InvalidRequestError, match="nested too deeply"):
        parse_json(document)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b"[[]]]["])
@pytest.mark.parametrize("more", [0, 1, 3000])
def test_a_document_of_many_levels_is_refused_whatever_closes_them(opening: bytes, more: int) -> None:
    closing = b"}" if opening.startswith(b"{") else b"]"
    with pytest.raises(InvalidRequestError) as caught:
        parse_json(opening * 1500 + closing * (1500 + more))
    assert caught.value.code == "invalid_json"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [USER] * (MOST_MESSAGES + 1)}, "messages"),
        ({"messages": [{"role": "user", "content": [TEXT] * (MOST_PARTS + 1)}]}, "messages[0].content"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * (MOST_TOOLS + 1)}, "tools"),
        ({"logit_bias": {str(number): 1 for number in range(MOST_BIASES + 1)}}, "logit_bias"),
        ({"max_completion_tokens": MOST_TOKENS + 1}, "max_completion_tokens"),
        ({"max_tokens": 2**63}, "max_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_request_of_too_much_is_refused_by_the_name_of_its_field(fields: dict[str, Any], param: str) -> None:
    assert refusal(asking(**fields)).param == param


@pytest.mark.parametrize("wrong", [0, 499, 500, 501, 1234, 4999])
@pytest.mark.parametrize("within", [None, "request"])
def test_a_wrong_message_of_a_long_request_is_named(wrong: int, within: str | None) -> None:
    messages: list[Any] = [USER] * 5000
    messages[wrong] = {"role": "user", "content": 3}
    chat = asking(messages=messages)
    error = refusal(chat if within is None else {within: chat}, within=within)
    path = f"{'' if within is None else 'request.'}messages[{wrong}].content"
    assert error.param == path
    assert path in error.message


def test_a_long_request_that_is_right_is_taken() -> None:
    messages = [USER, {"role": "user", "content": [TEXT] * 1000}, *[USER] * 5000]
    assert check_request(ChatRequest, asking(messages=messages, temperature=1)).temperature == 1
    assert check_request(JobSubmission, {"request": asking(messages=messages)}, within="request").request.model == "m"


async def test_a_large_document_is_worked_on_beside_the_loop() -> None:
    loop = asyncio.get_running_loop()
    waiting = asyncio.Event()

    def work() -> str:
        # Only a loop that goes on meanwhile can set it.
        asyncio.run_coroutine_threadsafe(waiting.wait(), loop).result(30)
        return "done"

    call = asyncio.create_task(offloaded(LARGE_BYTES + 1, work))
    await asyncio.sleep(0)
    waiting.set()
    assert await call == "done"


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, -(2**63), 1.5e300, 10**18])
def test_a_number_of_64_bits_is_itself(number: float) -> None:
    assert parse_json(b'{"a":[%s]}' % str(number).encode())["a"] == [number]


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**40], ids=str)
@pytest.mark.parametrize("form", ['{"a":{"b":[1,%d]}}', '{"a": {"b": [1,\n %d]}}'])
def test_an_integer_beyond_64_bits_is_refused_by_its_path(number: int, form: str) -> None:
    with pytest.raises(InvalidRequestError, match="64 bits") as caught:
        parse_json((form % number).encode())
    assert (caught.value.param, caught.value.code) == ("a.b[1]", "invalid_value")


@pytest.mark.parametrize("before", range(7))
def test_a_long_integer_is_found_wherever_it_stands(before: int) -> None:
    assert has_long_number(b'{"a":%s-%d}' % (b" " * before, 10**18))
    assert not has_long_number(b'{"a":%s-%d}' % (b" " * before, 10**18 - 1))


def test_digits_in_a_text_are_no_number() -> None:
    document = {"a": "call, 12345678901234567890123 or\n99999999999999999999999"}
    assert parse_json(orjson.dumps(document)) == document
