"""The normaliser turns any answer of a provider into valid OpenAI objects, streamed and whole."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import UpstreamError
from headrace.formats.chat.fold import Fold, chunks_of
from headrace.formats.chat.normaliser import Normaliser
from headrace.formats.registry import WireFormat
from tests.unit.formats.test_recordings import chunks_of as parsed
from tests.unit.formats.test_recordings import recordings

_SPECIFICATION = json.loads((Path(__file__).parent / "openai_chat.schema.json").read_text())


def _validator(name: str) -> Any:
    return jsonschema_rs.validator_for({"$ref": f"#/$defs/{name}", "$defs": _SPECIFICATION["$defs"]})


WHOLE = _validator("CreateChatCompletionResponse")
CHUNK = _validator("CreateChatCompletionStreamResponse")
JOB = {"id": "chatcmpl-1", "created": 1}


def check_whole(completion: dict[str, Any]) -> None:
    WHOLE.validate({"model": "m", **completion, **JOB, "object": "chat.completion"})


def check_chunk(chunk: dict[str, Any]) -> None:
    CHUNK.validate({"model": "m", **chunk, **JOB, "object": "chat.completion.chunk"})


def streamed(*chunks: dict[str, Any], done: bool = True) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return exact chunks of a stream, each checked, and the completion that they fold to."""
    normaliser, fold = Normaliser(), Fold()
    exact = [out for chunk in chunks if (out := normaliser.chunk(copy.deepcopy(chunk))) is not None]
    if done:
        exact += normaliser.close()
    for chunk in exact:
        check_chunk(chunk)
        fold.add(copy.deepcopy(chunk))
    completion = fold.completion(id="chatcmpl-1", created=1, model="m")
    if fold.finished:
        check_whole(completion)
    return exact, completion


def choice(delta: Any = None, finish: Any = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {} if delta is None else delta, "finish_reason": finish, **more}]}


def calling(*pieces: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a stream of pieces of tool calls."""
    return [*(choice({"tool_calls": [piece]}) for piece in pieces), choice(finish="tool_calls")]


def calls_of(completion: dict[str, Any]) -> list[tuple[str, str]]:
    calls = completion["choices"][0]["message"].get("tool_calls") or []
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


# -- recordings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "recording"), recordings("answer", "completion"))
def test_every_whole_answer_validates_and_exact_ones_stay_as_they_are(
    form: WireFormat, recording: dict[str, Any]
) -> None:
    exact = Normaliser().completion(form.parse_completion(json.dumps(recording["answer"]).encode()))
    check_whole(exact)
    said = recording["completion"]
    assert [one["message"] for one in exact["choices"]] == [one["message"] for one in said["choices"]]
    assert [one["finish_reason"] for one in exact["choices"]] == [one["finish_reason"] for one in said["choices"]]


@pytest.mark.parametrize(("form", "recording"), recordings("events", "completion"))
def test_every_chunk_validates_and_folds_to_the_whole(form: WireFormat, recording: dict[str, Any]) -> None:
    chunks, _ = parsed(form, recording["events"])
    _, completion = streamed(*chunks)
    for one, said in zip(completion["choices"], recording["completion"]["choices"], strict=True):
        assert one["message"] == said["message"]
        assert one["finish_reason"] == said["finish_reason"]


# -- choices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [None, "0", -1, 1.5], ids=str)
def test_a_choice_without_an_index_has_that_of_its_place(index: Any) -> None:
    _, completion = streamed(
        {"choices": [{"index": index, "delta": {"content": "a"}}, {"index": 1, "delta": {"content": "b"}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}, {"index": 1, "finish_reason": "length"}]},
    )
    assert [one["message"]["content"] for one in completion["choices"]] == ["a", "b"]
    assert [one["finish_reason"] for one in completion["choices"]] == ["stop", "length"]


def test_a_choice_without_a_delta_says_nothing_and_keeps_what_else_it_holds() -> None:
    chunks, completion = streamed(
        choice({"content": "Hi"}),
        {"choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {"start": 1}}]},
        choice(finish="stop"),
    )
    assert chunks[1]["choices"][0]["content_filter_offsets"] == {"start": 1}
    assert completion["choices"][0]["message"]["content"] == "Hi"


def test_the_role_is_told_once_for_each_choice() -> None:
    chunks, _ = streamed(*(choice({"role": "assistant", "content": letter}) for letter in "abc"), choice(finish="stop"))
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks] == ["assistant", None, None, None]


def test_a_role_that_was_left_out_is_told() -> None:
    chunks, _ = streamed(choice({"content": "a"}), choice(finish="stop"))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "a"}


def test_a_finish_reason_is_null_until_there_is_one() -> None:
    chunks, _ = streamed(choice({"content": "a"}, ""), choice(None, "stop"))
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "stop"]


@pytest.mark.parametrize(
    ("reason", "ours"), [("end_turn", "stop"), ("MAX_TOKENS", "length"), ("tool_use", "tool_calls"), ("eos", "stop")]
)
def test_other_words_for_a_finish_reason_are_translated_and_kept(reason: str, ours: str) -> None:
    _, completion = streamed(choice({"content": "a"}), choice(None, reason))
    [one] = completion["choices"]
    assert (one["finish_reason"], one["native_finish_reason"]) == (ours, reason)
    whole = {"choices": [{"message": {"content": "a"}, "finish_reason": reason}]}
    assert Normaliser().completion(whole)["choices"][0]["finish_reason"] == ours


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource", "never_heard_of", 7, ["stop"]])
def test_a_reason_that_may_mean_half_an_answer_is_an_error(reason: Any) -> None:
    with pytest.raises(UpstreamError, match="ended its answer"):
        streamed(choice({"content": "Half"}), choice(None, reason))
    with pytest.raises(UpstreamError, match="ended its answer"):
        Normaliser().completion({"choices": [{"message": {"content": "Half"}, "finish_reason": reason}]})


@pytest.mark.parametrize(
    ("delta", "ours"),
    [({"content": "a"}, "stop"), ({"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, "tool_calls")],
    ids=["text", "calls"],
)
def test_a_stream_that_is_over_without_a_reason_gets_the_usual_one(delta: dict[str, Any], ours: str) -> None:
    chunks, completion = streamed(choice(delta))
    assert chunks[-1]["choices"][0]["finish_reason"] == ours
    assert completion["choices"][0]["finish_reason"] == ours


@pytest.mark.parametrize("choices", [[], None, [None], ["a"]], ids=str)
def test_a_whole_answer_without_a_choice_is_an_error(choices: Any) -> None:
    with pytest.raises(UpstreamError):
        Normaliser().completion({"choices": choices})


@pytest.mark.parametrize("message", [None, {}, {"role": "model"}, {"content": None}], ids=str)
def test_a_message_of_nothing_has_all_that_is_required(message: Any) -> None:
    exact = Normaliser().completion({"choices": [{"message": message, "finish_reason": "length"}]})
    check_whole(exact)
    assert exact["choices"][0]["message"] == {"role": "assistant", "content": None, "refusal": None}
    assert exact["choices"][0]["logprobs"] is None


def test_content_in_parts_is_text_and_thought() -> None:
    parts: Sequence[Any] = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm. "}]}]
    _, completion = streamed(
        choice({"content": parts}),
        choice({"content": [{"type": "text", "text": "He"}]}),
        choice({"content": "llo"}),
        choice(finish="stop"),
    )
    message = completion["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Hello", "Hm. ")
    whole = {
        "choices": [{"message": {"content": [*parts, {"type": "text", "text": "Hello"}]}, "finish_reason": "stop"}]
    }
    assert Normaliser().completion(whole)["choices"][0]["message"] == message


# -- chunks that are not of choices -----------------------------------------------------------------------------------


def test_a_chunk_without_choices_is_passed_on_with_usage_alone_and_what_it_holds_goes_with_the_next() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    chunks, completion = streamed(
        {"choices": [], "prompt_filter_results": [1]},
        choice({"content": "a"}, "stop"),
        {"choices": [], "usage": usage},
        {"choices": [], "usage": {}},
    )
    assert [bool(chunk["choices"]) for chunk in chunks] == [True, False]
    assert chunks[0]["prompt_filter_results"] == [1]
    assert chunks[1]["usage"] == usage
    assert completion["usage"] == usage


# -- calls ------------------------------------------------------------------------------------------------------------


def test_pieces_of_a_call_without_an_index_are_of_the_last_call() -> None:
    chunks, completion = streamed(
        *calling(
            {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}},
            {"function": {"arguments": '{"q": "a'}},
            {"function": {"arguments": 'b"}'}},
        )
    )
    assert calls_of(completion) == [("look", '{"q": "ab"}')]
    assert [chunk["choices"][0]["delta"]["tool_calls"][0]["index"] for chunk in chunks[:3]] == [0, 0, 0]


def test_another_id_is_another_call_whatever_its_index() -> None:
    _, completion = streamed(
        *calling(
            {"index": 0, "id": "call_a", "function": {"name": "f", "arguments": '{"q":1}'}},
            {"index": 0, "id": "call_b", "function": {"name": "f", "arguments": '{"q":'}},
            {"index": 0, "function": {"arguments": "2}"}},
        )
    )
    assert calls_of(completion) == [("f", '{"q":1}'), ("f", '{"q":2}')]


def test_whole_calls_without_id_and_index_are_as_many_calls() -> None:
    pieces = [{"function": {"name": "f", "arguments": {"q": number}}} for number in range(3)]
    _, completion = streamed(choice({"tool_calls": pieces[:2]}), choice({"tool_calls": pieces[2:]}, "tool_calls"))
    assert calls_of(completion) == [("f", f'{{"q": {number}}}') for number in range(3)]
    ids = [call["id"] for call in completion["choices"][0]["message"]["tool_calls"]]
    assert len(set(ids)) == 3
    assert all(ids)


def test_id_type_and_name_of_a_call_are_told_once() -> None:
    piece = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": "1"}}
    chunks, completion = streamed(*calling(piece, piece, piece))
    told = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in chunks[:3]]
    assert [call.keys() & {"id", "type"} for call in told] == [{"id", "type"}, set(), set()]
    assert [call["function"] for call in told] == [{"name": "look", "arguments": "1"}, *[{"arguments": "1"}] * 2]
    assert calls_of(completion) == [("look", "111")]


@pytest.mark.parametrize("named", [True, False])
def test_arguments_that_are_whole_in_each_piece_are_told_once(named: bool) -> None:
    said = {"arguments": '{"q": 1}'}
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", **said}}
    again = first if named else {"index": 0, "function": said}
    _, completion = streamed(*calling(first, again, again))
    assert calls_of(completion) == [("look", '{"q": 1}')]


def test_arguments_that_only_look_repeated_are_all_told() -> None:
    pieces = [{"index": 0, "function": {"arguments": text}} for text in ("{", '"a":', "{", "}", "}")]
    _, completion = streamed(*calling({"index": 0, "id": "call_1", "function": {"name": "look"}}, *pieces))
    assert calls_of(completion) == [("look", '{"a":{}}')]


@pytest.mark.parametrize("name", [None, "", 5, "call_taken"])
def test_a_call_gets_an_id_of_its_own(name: Any) -> None:
    call = {"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    seen = {"call_taken"}
    for _ in range(2):
        exact = Normaliser(taken=seen).completion(
            {"choices": [{"message": {"tool_calls": [dict(call)]}, "finish_reason": "tool_calls"}]}
        )
        check_whole(exact)
        [made] = exact["choices"][0]["message"]["tool_calls"]
        assert made["id"] not in seen
        seen.add(made["id"])


@pytest.mark.parametrize("nothing", [[], None, "none", [None]], ids=str)
def test_calls_that_are_none_are_left_out(nothing: Any) -> None:
    chunks, completion = streamed(choice({"content": "a", "tool_calls": nothing}), choice(finish="stop"))
    assert "tool_calls" not in chunks[0]["choices"][0]["delta"]
    assert "tool_calls" not in completion["choices"][0]["message"]
    whole = {"choices": [{"message": {"content": "a", "tool_calls": nothing}, "finish_reason": "stop"}]}
    assert "tool_calls" not in Normaliser().completion(whole)["choices"][0]["message"]


@pytest.mark.parametrize(
    ("piece", "arguments"),
    [
        ({"id": "c1", "function": {"name": "f"}}, "{}"),
        ({"id": "c1", "function": {"name": "f", "arguments": None}}, "{}"),
        ({"id": "c1", "name": "f", "arguments": {"q": 1}}, '{"q": 1}'),
        (
            {"id": "c1", "function": {"name": "f", "arguments": {"q": orjson.Fragment(b"1" * 30)}}},
            f'{{"q": {"1" * 30}}}',
        ),
    ],
    ids=["left out", "null", "flat", "beyond 64 bits"],
)
def test_arguments_are_json_whatever_they_came_as(piece: dict[str, Any], arguments: str) -> None:
    whole = {"choices": [{"message": {"tool_calls": [copy.copy(piece)]}, "finish_reason": "tool_calls"}]}
    exact = Normaliser().completion(whole)
    check_whole(exact)
    assert calls_of(exact) == [("f", arguments)]
    normaliser, fold = Normaliser(), Fold()
    for chunk in calling(copy.copy(piece)):
        exact_chunk = normaliser.chunk(chunk)
        assert exact_chunk is not None
        check_chunk(exact_chunk)
        fold.add(exact_chunk)
    assert calls_of(fold.completion(id="", created=1, model="m")) == [("f", arguments)]


def piece(name: str | None, arguments: str, **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}, **more}


@pytest.mark.parametrize(
    "pieces",
    [
        [
            {"index": 0, "function": {"name": "f", "arguments": ""}},
            {"index": 0, "id": "c9", "function": {"arguments": "[1]"}},
        ],
        [
            {"index": 0, "id": f"c{n}", "function": {"name": ["f", None, ""][n], "arguments": "[1]"[n]}}
            for n in range(3)
        ],
        [
            {"index": "0", "id": "c", "function": {"name": "f", "arguments": "["}},
            {"index": 0.0, "function": {"arguments": "1]"}},
        ],
    ],
    ids=["an id that comes late", "another id in each piece", "an index of another type"],
)
def test_a_piece_without_a_name_is_of_the_call_at_its_index(pieces: list[dict[str, Any]]) -> None:
    assert calls_of(streamed(*calling(*pieces))[1]) == [("f", "[1]")]


def test_calls_that_share_an_id_are_two() -> None:
    same = [{"id": "c", "function": {"name": "f", "arguments": text}} for text in ("[1]", "[2]")]
    whole = Normaliser().completion({"choices": [{"message": {"tool_calls": same}, "finish_reason": "tool_calls"}]})
    check_whole(whole)
    for completion in (whole, streamed(*calling(*({"index": n, **piece} for n, piece in enumerate(same))))[1]):
        assert calls_of(completion) == [("f", "[1]"), ("f", "[2]")]
        assert len({call["id"] for call in completion["choices"][0]["message"]["tool_calls"]}) == 2


@settings(max_examples=200)
@given(
    cuts=st.lists(st.integers(0, 30), max_size=4),
    names=st.integers(1, 4),
    repeated=st.booleans(),
    indexed=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_calls_come_out_the_same_however_they_are_cut(
    cuts: list[int], names: int, repeated: bool, indexed: bool, order: Any
) -> None:
    texts = [orjson.dumps({"call": number, "text": "x" * number}).decode() for number in range(names)]
    queues = []
    for number, text in enumerate(texts):
        edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
        pieces = [text[start:end] for start, end in itertools.pairwise(edges)]
        told = {"id": f"c{number}", "type": "function"}
        queues.append(
            [
                {
                    **({"index": number} if indexed else {}),
                    **(told if repeated or not place or not indexed else {}),
                    "function": {**({"name": "f"} if repeated or not place else {}), "arguments": piece},
                }
                for place, piece in enumerate(pieces)
            ]
        )
    begun = [queue.pop(0) for queue in queues]  # calls begin in their order
    rest = [piece for queue in queues for piece in queue]
    if indexed or repeated:
        slots = [number for number, queue in enumerate(queues) for _ in queue]
        order.shuffle(slots)
        rest = [queues[number].pop(0) for number in slots]
    _, completion = streamed(*calling(*begun, *rest))
    assert calls_of(completion) == [("f", text) for text in texts]


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("STOP", "stop"),
        ("FINISH_REASON_STOP", "stop"),
        ("tool-calls", "tool_calls"),
        ("toolUse", "tool_calls"),
        ("RECITATION", "content_filter"),
        ("max_new_tokens", "length"),
        ("repetition", "length"),
        ("repetition_truncation", "length"),
        ("complete", "stop"),
    ],
)
def test_a_finish_reason_is_known_in_any_spelling(word: str, ours: str) -> None:
    _, completion = streamed(choice({"content": "a"}, "null"), choice(None, word))
    assert completion["choices"][0]["finish_reason"] == ours


@pytest.mark.parametrize(
    ("message", "exact"),
    [
        (
            {"function_call": {"name": "f", "arguments": {"a": 1}}},
            {"function_call": {"name": "f", "arguments": '{"a": 1}'}},
        ),
        ({"content": "a", "function_call": {}}, {"content": "a"}),
        ({"content": {"a": 1}}, {"content": '{"a": 1}'}),
        ({"content": [{"text": "a"}, {"type": "refusal", "refusal": "no"}]}, {"content": "a", "refusal": "no"}),
        ({"content": "a", "annotations": None}, {"content": "a"}),
    ],
    ids=str,
)
def test_a_message_of_other_types_is_made_exact(message: dict[str, Any], exact: dict[str, Any]) -> None:
    whole = Normaliser().completion({"choices": [{"message": message, "finish_reason": "stop"}]})
    check_whole(whole)
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": None, "refusal": None, **exact}


def test_log_probabilities_have_all_that_is_required() -> None:
    token = {"token": "a", "logprob": None, "top_logprobs": [{"token": "b", "logprob": -1}]}
    for one in (token, token | {"token": None}, token | {"token": 1}):
        whole = Normaliser().completion({"choices": [{"text": "a", "logprobs": {"content": [one]}}]})
        check_whole(whole)
        assert whole["choices"][0]["message"]["content"] == "a"


@pytest.mark.parametrize("kind", [[], {}, ["text"], 1])
def test_a_part_of_an_odd_kind_has_no_text(kind: Any) -> None:
    parts = [{"type": kind, "text": "no"}, {"type": "text", "text": "a"}]
    whole = Normaliser().completion({"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]})
    check_whole(whole)
    assert whole["choices"][0]["message"]["content"] == "a"


def test_usage_is_read_where_servers_put_it_and_does_not_get_smaller() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    none = dict.fromkeys(usage, 0)
    for last in ({"x_groq": {"usage": usage}}, {"usage": usage}):
        _, completion = streamed(choice({"content": "a"}), choice(finish="stop") | last, {"choices": [], "usage": none})
        assert completion["usage"]["total_tokens"] == 10
    _, completion = streamed(choice({"content": "a"}), choice(finish="stop", usage=usage))
    assert completion["usage"]["total_tokens"] == 10
    for delta in ({"usage": usage}, {"content": "b", "usage": usage}):
        chunks, completion = streamed(choice({"content": "a"}), choice(delta), choice(finish="stop"))
        assert completion["usage"]["total_tokens"] == 10
        assert all("usage" not in chunk["choices"][0]["delta"] for chunk in chunks)
    message = {"content": "a", "usage": usage}
    whole = Normaliser().completion({"choices": [{"message": message, "finish_reason": "stop"}]})
    check_whole(whole)
    assert whole["usage"]["total_tokens"] == 10
    assert "usage" not in whole["choices"][0]["message"]


def test_counts_that_are_strings_are_numbers() -> None:
    usage = {
        "prompt_tokens": "7",
        "completion_tokens": "3",
        "total_tokens": "10",
        "prompt_tokens_details": {"cached_tokens": "2"},
        "completion_tokens_details": {"accepted_prediction_tokens": "0", "reasoning_tokens": "many"},
    }
    _, completion = streamed(choice({"content": "a"}), choice(finish="stop") | {"usage": usage})
    assert completion["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"accepted_prediction_tokens": 0},
    }
    renamed = {"input_tokens": "5", "output_tokens": "1", "cache_read_input_tokens": "2"}
    _, completion = streamed(choice({"content": "a"}), choice(finish="stop") | {"usage": renamed})
    assert (completion["usage"]["prompt_tokens"], completion["usage"]["completion_tokens"]) == (7, 1)


# -- anything ---------------------------------------------------------------------------------------------------------

_JUNK = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "x", "stop", "tool_calls", "function"])
_TEXTS = st.sampled_from(["", "a", "b c"])
_CALL = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(0, 2) | _JUNK,
        "id": st.sampled_from(["call_1", "call_2", "", None]),
        "type": st.sampled_from(["function", "", None]),
        "function": st.fixed_dictionaries(
            {},
            optional={"name": st.sampled_from(["f", "g", None]), "arguments": _TEXTS | st.none() | st.just({"a": 1})},
        )
        | st.none(),
    },
)
_MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["assistant", "", None, "model"]),
        "content": _TEXTS | st.none() | st.lists(st.just({"type": "text", "text": "t"}) | _TEXTS, max_size=2),
        "refusal": st.none() | _TEXTS | st.integers(),
        "reasoning_content": st.none() | _TEXTS,
        "tool_calls": st.lists(_CALL, max_size=3) | _JUNK,
        "function_call": st.none(),
    },
)
_REASON = st.sampled_from([None, "", "stop", "length", "tool_calls", "end_turn"])
_USAGE = st.fixed_dictionaries(
    {},
    optional={
        name: st.integers(0, 9) | st.floats(0, 9) | st.none()
        for name in ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens")
    },
)


def _choices(part: str) -> st.SearchStrategy[Any]:
    fields = {"index": st.integers(0, 1) | _JUNK, part: _MESSAGE | _JUNK, "finish_reason": _REASON, "logprobs": _JUNK}
    return st.lists(st.fixed_dictionaries({}, optional=fields) | _JUNK, max_size=3) | _JUNK


@settings(max_examples=300)
@given(chunks=st.lists(st.fixed_dictionaries({}, optional={"choices": _choices("delta"), "usage": _USAGE | _JUNK})))
def test_whatever_is_streamed_comes_out_exact(chunks: list[dict[str, Any]]) -> None:
    try:
        _, completion = streamed(*chunks)
    except UpstreamError:
        assert any(chunk.get("choices") and not isinstance(chunk["choices"], list) for chunk in chunks)
        return
    ids = [call["id"] for one in completion["choices"] for call in one["message"].get("tool_calls", ())]
    assert len(ids) == len(set(ids))


@settings(max_examples=300)
@given(answer=st.fixed_dictionaries({}, optional={"choices": _choices("message"), "usage": _USAGE | _JUNK}))
def test_whatever_is_answered_whole_comes_out_exact_and_streams_as_it_is(answer: dict[str, Any]) -> None:
    try:
        exact = Normaliser().completion(answer)
    except UpstreamError:
        return
    check_whole(exact)
    fold = Fold()
    for chunk in chunks_of(exact):
        check_chunk(chunk)
        fold.add(chunk)
    if len({one["index"] for one in exact["choices"]}) == len(exact["choices"]):
        folded = fold.completion(id="", created=1, model="m")["choices"]
        assert folded == sorted(exact["choices"], key=lambda one: one["index"])


def test_each_call_of_a_whole_answer_is_one_of_its_own_however_little_is_said_of_it() -> None:
    calls = [{"index": None}, {"index": None}, {"id": "call_1"}, {"id": "call_1"}]
    completion = {"choices": [{"message": {"role": "assistant", "tool_calls": calls}}]}
    [choice] = Normaliser().completion(completion)["choices"]
    made = choice["message"]["tool_calls"]
    assert [call["type"] for call in made] == ["function"] * 4
    assert len({call["id"] for call in made}) == 4


def test_a_priority_tier_by_its_newer_name_is_openais() -> None:
    chunks, completion = streamed({**choice({"content": "a"}, "stop"), "service_tier": "fast"})
    assert (chunks[0]["service_tier"], completion["service_tier"]) == ("fast", "fast")
    assert "native_service_tier" not in completion


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}])
def test_what_moderation_found_is_passed_on_after_the_finish(usage: Any) -> None:
    found = {"type": "moderation_results", "model": "omni", "results": []}
    last = {"choices": [], "moderation": {"input": found, "output": found}} | ({"usage": usage} if usage else {})
    chunks, completion = streamed(choice({"content": "a"}), choice(finish="stop"), last)
    assert chunks[-1]["moderation"] == completion["moderation"] == last["moderation"]
    assert chunks[-1]["choices"] == []
    assert completion.get("usage", {}).get("total_tokens") == (usage or {}).get("total_tokens")
