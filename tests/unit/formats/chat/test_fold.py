"""The fold from chunks to a completion, and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.formats.chat.completion import ChatCompletion, ChatCompletionChunk
from headrace.formats.chat.fold import MOST_CHOICES, MOST_INDEXED, Fold, chunks_of


def chunk(delta: Any = None, *, index: int = 0, finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish_reason, **fields}
    return {"id": "chatcmpl-up", "object": "chat.completion.chunk", "created": 5, "model": "up", "choices": [choice]}


def fold(*chunks: Any) -> Fold:
    folded = Fold()
    for each in chunks:
        folded.add(each)
    return folded


def complete(*chunks: Any) -> dict[str, Any]:
    return fold(*chunks).completion(id="chatcmpl-1", created=1, model="demo")


def message(*deltas: dict[str, Any]) -> dict[str, Any]:
    """Fold `deltas` and return the fields of the message that are neither null nor its role."""
    (choice,) = complete(*map(chunk, deltas))["choices"]
    return {key: value for key, value in choice["message"].items() if value is not None and key != "role"}


def call(index: int, arguments: str, **fields: Any) -> dict[str, Any]:
    return {"index": index, **fields, "function": {"arguments": arguments}}


def test_a_stream_of_openai_folds_to_openais_completion() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    top = {"service_tier": "default", "system_fingerprint": "fp_1", "usage": None, "obfuscation": "xYz"}
    assert complete(
        {**chunk({"role": "assistant", "content": "", "refusal": None}, logprobs=None), **top},
        {**chunk({"content": "Hel"}, logprobs=None), **top},
        {**chunk({"content": "lo"}, logprobs=None), **top},
        {**chunk({}, logprobs=None, finish_reason="stop"), **top},
        {**chunk(), **top, "choices": [], "usage": usage},
    ) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "demo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": usage,
        "service_tier": "default",
        "system_fingerprint": "fp_1",
    }


DELTAS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "nothing leaves content null": ([{}], {}),
    "an empty content is content": ([{"role": "assistant", "content": ""}], {"content": ""}),
    "null never erases": ([{"content": "a"}, {"content": None}, {"content": "b"}], {"content": "ab"}),
    "refusals concatenate": ([{"refusal": "I "}, {"refusal": "can't."}], {"refusal": "I can't."}),
    "reasoning_content concatenates": (
        [{"reasoning_content": "Hm"}, {"reasoning_content": "m."}, {"content": "No"}],
        {"reasoning_content": "Hmm.", "content": "No"},
    ),
    "a function call gathers": (
        [{"function_call": {"name": "f", "arguments": ""}}, {"function_call": {"arguments": "{}"}}],
        {"function_call": {"name": "f", "arguments": "{}"}},
    ),
    "tool calls gather by index": (
        [
            {"tool_calls": [{**call(1, "["), "id": "b", "type": "function"}]},
            {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}}]},
            {"tool_calls": [call(0, "}"), call(1, "]")]},
            {"tool_calls": [{"index": 1, "function": {"name": "g"}}]},
        ],
        {
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "b", "type": "function", "function": {"arguments": "[]", "name": "g"}},
            ]
        },
    ),
    "ids, types and names repeated by the provider stay": (
        [
            {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "1"}}]},
            {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "2"}}]},
            {"tool_calls": [{"index": 0, "id": "", "type": None, "function": {"name": "", "arguments": "3"}}]},
        ],
        {"tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "123"}}]},
    ),
    "custom tool calls gather": (
        [
            {"tool_calls": [{"index": 0, "id": "a", "type": "custom", "custom": {"name": "sql", "input": "SELECT"}}]},
            {"tool_calls": [{"index": 0, "custom": {"input": " 1"}}]},
        ],
        {"tool_calls": [{"id": "a", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}]},
    ),
    "tool calls without an index are whole": (
        [{"tool_calls": [{"id": "a", "function": {"name": "f"}}]}, {"tool_calls": [{"id": "b"}]}],
        {"tool_calls": [{"id": "a", "function": {"name": "f"}}, {"id": "b"}]},
    ),
    "annotations are appended": (
        [{"annotations": [{"type": "url_citation", "url_citation": {"url": "u"}}]}, {"annotations": [{"type": "x"}]}],
        {"annotations": [{"type": "url_citation", "url_citation": {"url": "u"}}, {"type": "x"}]},
    ),
    "unknown items with an index merge": (
        [
            {"reasoning_details": [{"index": 0, "type": "reasoning.text", "text": "a"}]},
            {"reasoning_details": [{"index": 0, "type": "reasoning.text", "text": "b"}, {"index": 1, "text": "c"}]},
        ],
        {"reasoning_details": [{"index": 0, "type": "reasoning.text", "text": "ab"}, {"index": 1, "text": "c"}]},
    ),
    "audio gathers": (
        [
            {"audio": {"id": "audio_1", "transcript": "He"}},
            {"audio": {"data": "AA", "transcript": "y"}},
            {"audio": {"data": "BB", "expires_at": 7}},
        ],
        {"audio": {"id": "audio_1", "transcript": "Hey", "data": "AABB", "expires_at": 7}},
    ),
    "other values replace": ([{"score": 1, "safe": True}, {"score": 0, "safe": False}], {"score": 0, "safe": False}),
    "content in parts grows": (
        [{"content": [{"type": "text", "text": "a"}]}, {"content": [{"type": "text", "text": "b"}]}],
        {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ),
}


@pytest.mark.parametrize(("deltas", "expected"), DELTAS.values(), ids=DELTAS.keys())
def test_deltas_fold_to_a_message(deltas: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    assert message(*deltas) == expected


def test_a_message_always_has_its_role_content_and_refusal() -> None:
    assert complete(chunk())["choices"][0]["message"] == {"role": "assistant", "content": None, "refusal": None}


def test_choices_fold_apart_and_come_in_order() -> None:
    choices = complete(
        chunk({"content": "b"}, index=1),
        chunk({"content": "a"}),
        chunk({"content": "B"}, index=1, finish_reason="length"),
        chunk({"content": "A"}, finish_reason="stop"),
    )["choices"]
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in choices] == [
        (0, "aA", "stop"),
        (1, "bB", "length"),
    ]


def test_log_probabilities_concatenate() -> None:
    a: dict[str, Any] = {"token": "a", "logprob": -0.1, "bytes": None, "top_logprobs": []}
    b: dict[str, Any] = {"token": "b", "logprob": -0.2, "bytes": None, "top_logprobs": []}
    (choice,) = complete(
        chunk({"content": "a"}, logprobs={"content": [a], "refusal": None}),
        chunk({"content": "b"}, logprobs={"content": [b], "refusal": None}),
        chunk({}, logprobs=None, finish_reason="stop"),
    )["choices"]
    assert choice["logprobs"] == {"content": [a, b], "refusal": None}


def test_unknown_fields_of_a_choice_replace_but_for_lists() -> None:
    (choice,) = complete(
        chunk(verdict={"hate": {"severity": "safe"}}, token_ids=[1], stop_reason=None),
        chunk(verdict={"hate": {"severity": "safe"}}, token_ids=[2, 3], stop_reason="eos"),
        chunk(verdict=None, stop_reason=None),
    )["choices"]
    assert choice["verdict"] == {"hate": {"severity": "safe"}}
    assert choice["token_ids"] == [1, 2, 3]
    assert choice["stop_reason"] == "eos"


def test_of_unknown_fields_at_the_top_the_last_stands() -> None:
    completion = complete(
        {**chunk(), "service_tier": None, "provider": "a"},
        {**chunk(), "service_tier": "flex", "provider": "b"},
        {**chunk(), "service_tier": None},
    )
    assert (completion["service_tier"], completion["provider"]) == ("flex", "b")


def test_usage_is_absent_until_a_chunk_has_it() -> None:
    assert "usage" not in complete({**chunk(), "usage": None})
    assert fold({**chunk(), "usage": {"prompt_tokens": 1}}, {**chunk(), "usage": None}).usage == {"prompt_tokens": 1}


def test_a_completion_can_be_had_before_the_end_and_again() -> None:
    folded = fold(chunk({"content": "a"}))
    assert complete(chunk({"content": "a"})) == folded.completion(id="chatcmpl-1", created=1, model="demo")
    folded.add(chunk({"content": "b"}))
    assert folded.completion(id="x", created=1, model="m")["choices"][0]["message"]["content"] == "ab"


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param({}, id="empty"),
        pytest.param({"choices": None}, id="null choices"),
        pytest.param({"choices": {"index": 0}}, id="choices no array"),
        pytest.param({"choices": [None, "x"]}, id="choices no objects"),
        pytest.param({"choices": [{"delta": None}]}, id="null delta"),
        pytest.param({"choices": [{"delta": "x", "index": "0"}]}, id="delta no object"),
        pytest.param({"choices": [{"delta": {"tool_calls": [None, 3]}}]}, id="calls no objects"),
        pytest.param({"choices": [{"delta": {"tool_calls": {"index": 0}}}]}, id="calls no array"),
        pytest.param({"choices": [{"index": 0, "logprobs": 3, "message": 3}]}, id="no delta"),
        pytest.param({"choices": [], "usage": "lots"}, id="usage no object"),
    ],
)
def test_garbage_between_chunks_does_no_harm(garbage: dict[str, Any]) -> None:
    folded = fold(chunk({"content": "a"}), garbage, chunk({"content": "b"}, finish_reason="stop"))
    (choice,) = folded.completion(id="x", created=1, model="m")["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("ab", "stop")
    assert folded.text.startswith("ab")


@pytest.mark.parametrize(
    ("delta", "started"),
    [
        pytest.param({}, False, id="nothing"),
        pytest.param({"role": "assistant", "content": "", "refusal": None}, False, id="a role"),
        pytest.param({"content": "a"}, True, id="content"),
        pytest.param({"refusal": "a"}, True, id="a refusal"),
        pytest.param({"reasoning_content": "a"}, True, id="reasoning"),
        pytest.param({"tool_calls": [{"index": 0}]}, True, id="a call"),
    ],
)
def test_a_fold_has_started_when_the_model_has_said_something(delta: dict[str, Any], started: bool) -> None:
    assert fold(chunk(delta)).started is started


def test_a_fold_has_finished_when_every_choice_has() -> None:
    folded = Fold()
    assert not folded.finished
    for index, reason, finished in [(0, None, False), (1, "stop", False), (0, "length", True), (0, None, True)]:
        folded.add(chunk({}, index=index, finish_reason=reason))
        assert folded.finished is finished


def test_text_is_all_that_the_model_wrote_and_nothing_else() -> None:
    text = fold(
        chunk({"role": "assistant", "reasoning_content": "R"}),
        chunk({"content": "C", "annotations": [{"url_citation": {"url": "U"}}]}),
        chunk(
            {"tool_calls": [{"index": 0, "id": "I", "type": "function", "function": {"name": "N", "arguments": "A"}}]}
        ),
        chunk({"tool_calls": [{"id": "I", "type": "function", "function": {"name": "M", "arguments": "B"}}]}),
        chunk({"audio": {"id": "I", "data": "D", "transcript": "T", "expires_at": 1}}),
        chunk({"content": "c"}, index=1),
    ).text
    assert sorted(text) == sorted("RCNAMBTc")


# ---------------------------------------------------------------------------------------------------------------------
# The inverse

texts = st.text(max_size=12)
names = st.sampled_from(["reasoning_content", "reasoning", "verdict", "x"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "id", "type", "b"]), inner),
    max_leaves=6,
)
function_calls = st.fixed_dictionaries({"name": texts, "arguments": texts})
tool_calls = st.fixed_dictionaries(
    {"id": texts, "type": st.just("function"), "function": function_calls}
) | st.fixed_dictionaries(
    {"id": texts, "type": st.just("custom"), "custom": st.fixed_dictionaries({"name": texts, "input": texts})}
)
token_logprobs = st.fixed_dictionaries({"token": texts, "logprob": st.integers(-9, 0), "bytes": st.none()})
messages = st.builds(
    lambda known, unknown: {**unknown, **known},
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": st.none() | texts, "refusal": st.none() | texts},
        optional={
            "tool_calls": st.none() | st.lists(tool_calls, max_size=3),
            "function_call": st.none() | function_calls,
            "annotations": st.lists(st.fixed_dictionaries({"type": texts, "url_citation": json_values}), max_size=2),
            "audio": st.none()
            | st.fixed_dictionaries({"id": texts, "data": texts, "transcript": texts, "expires_at": st.integers(0, 9)}),
            "reasoning_details": st.lists(st.fixed_dictionaries({"type": texts, "text": texts}), max_size=3).map(
                lambda items: [{**item, "index": index} for index, item in enumerate(items)]
            ),
        },
    ),
    st.dictionaries(names, json_values, max_size=2),
)
choices = st.fixed_dictionaries(
    {
        "message": messages,
        "logprobs": st.none()
        | st.fixed_dictionaries(
            {
                "content": st.none() | st.lists(token_logprobs, max_size=2),
                "refusal": st.none() | st.lists(token_logprobs, max_size=2),
            }
        ),
        "finish_reason": st.sampled_from(["stop", "length", "tool_calls"]),
    },
    optional={"content_filter_results": json_values},
)
completions = st.builds(
    lambda choices, extra: {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "demo",
        "choices": [{"index": index, **choice} for index, choice in enumerate(choices)],
        **extra,
    },
    st.lists(choices, min_size=1, max_size=3),
    st.fixed_dictionaries(
        {},
        optional={
            "usage": st.just({"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}),
            "service_tier": st.none() | texts,
            "system_fingerprint": texts,
            "moderation": json_values,
        },
    ),
)


@given(completions)
@settings(max_examples=150, deadline=None)
def test_the_chunks_of_a_completion_fold_to_it(completion: dict[str, Any]) -> None:
    assert complete(*chunks_of(completion)) == completion


# Strings that a model writes bit by bit, as against ids, types and names.
SPLIT = {"content", "refusal", "reasoning_content", "arguments", "input", "transcript", "data", "text"}


def split(delta: dict[str, Any], cuts: st.DataObject) -> list[dict[str, Any]]:
    """Return `delta` as deltas: one for each piece of each string that a model writes, the rest with the first."""
    first = dict(delta)
    rest: list[dict[str, Any]] = []
    address = {"index": delta["index"]} if "index" in delta else {}
    for key, value in delta.items():
        pieces: list[Any] = [value]
        if key in SPLIT and isinstance(value, str):
            cut = cuts.draw(st.integers(0, len(value)))
            pieces = [value[:cut], value[cut:]]
        elif key in ("function", "custom", "audio", "function_call") and isinstance(value, dict):
            pieces = split(value, cuts)
        elif key in ("tool_calls", "reasoning_details") and value:
            pieces = [[piece] for item in value for piece in split(item, cuts)]
        first[key] = pieces[0]
        rest += [{**address, key: piece} for piece in pieces[1:]]
    return [first, *rest]


@given(completions, st.data())
@settings(max_examples=150, deadline=None)
def test_a_completion_is_the_same_however_its_strings_were_split(
    completion: dict[str, Any], data: st.DataObject
) -> None:
    chunks = []
    for whole in chunks_of(completion):
        for choice in whole["choices"]:
            first, *rest = split(choice["delta"], data)
            chunks.append({**whole, "choices": [{**choice, "delta": first}]})
            chunks += [{"choices": [{"index": choice["index"], "delta": delta}]} for delta in rest]
        if not whole["choices"]:
            chunks.append(whole)
    assert complete(*chunks) == completion


def test_chunks_come_as_openai_streams_them() -> None:
    completion = complete(
        chunk({"content": "Hi", "tool_calls": [call(0, "{}", id="a")], "reasoning": "Hm"}, finish_reason="tool_calls"),
        {"choices": [], "usage": {"prompt_tokens": 1}, "service_tier": "flex"},
    )
    chunks = chunks_of(completion)
    assert [c["choices"][0]["delta"] for c in chunks[:-1]] == [
        {"role": "assistant", "content": ""},
        {"reasoning": "Hm"},
        {"content": "Hi"},
        {"tool_calls": [{"index": 0, "id": "a", "function": {"arguments": "{}"}}]},
        {},
    ]
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * 4 + ["tool_calls"]
    assert chunks[-1] == {"model": "demo", "service_tier": "flex", "choices": [], "usage": {"prompt_tokens": 1}}
    assert not any({"id", "object", "created"} & c.keys() for c in chunks)
    assert all(c["service_tier"] == "flex" for c in chunks)


def test_without_usage_there_is_no_usage_chunk() -> None:
    assert all(c["choices"] for c in chunks_of(complete(chunk({"content": "a"}, finish_reason="stop"))))


def test_a_completion_without_choices_keeps_what_else_it_has() -> None:
    assert complete(*chunks_of(complete({"choices": [], "service_tier": "flex"})))["service_tier"] == "flex"


@pytest.mark.parametrize("model", [ChatCompletion, ChatCompletionChunk])
def test_the_documented_formats_have_examples_that_are_valid(model: Any) -> None:
    for example in model.model_json_schema()["examples"]:
        assert model.model_validate(example).model_dump(exclude_unset=True) == example


def test_what_a_fold_gives_is_of_the_documented_format() -> None:
    deltas = [{"content": "a"}, {"tool_calls": [{**call(0, "{}", id="a", type="function")}]}]
    deltas[1]["tool_calls"][0]["function"]["name"] = "f"  # type: ignore[index]
    ChatCompletion.model_validate(complete(*map(chunk, deltas), chunk(finish_reason="tool_calls")))


def test_indexes_that_no_answer_has_are_left_out() -> None:
    fold = Fold()
    for index in (0, MOST_CHOICES, -1, 10**18):
        calls = [{"index": index, "function": {"arguments": "x"}} for index in (0, MOST_INDEXED, -1)]
        fold.add({"choices": [{"index": index, "delta": {"content": "a", "tool_calls": calls}}]})
    [choice] = fold.completion(id="c", created=0, model="m")["choices"]
    assert (choice["index"], choice["message"]["content"], len(choice["message"]["tool_calls"])) == (0, "a", 1)


def test_a_list_that_grows_leaves_the_chunks_as_they_came() -> None:
    fold = Fold()
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "seen": [number]}]} for number in range(3)]
    for piece in chunks:
        fold.add(piece)
    assert fold.completion(id="c", created=0, model="m")["choices"][0]["seen"] == [0, 1, 2]
    assert [piece["choices"][0]["seen"] for piece in chunks] == [[0], [1], [2]]
