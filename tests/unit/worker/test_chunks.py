"""Events that differ in their text alone are read, folded and rendered as if each was parsed."""

from __future__ import annotations

import copy
import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UpstreamError
from headrace.formats.chat.fold import Fold
from headrace.formats.chat.normaliser import Normaliser
from headrace.formats.chat.texts import Texts
from headrace.formats.registry import CLIENT_FORMATS, FORMATS
from headrace.providers.sse import Event
from worker.chunks import ChunkReader

JOB: Any = SimpleNamespace(id="job_019a5e0c3d7f4b1e8a2c6d9f0b3e5a71", created=1, background=False)
REQUEST = {"model": "m", "input": "Hi"}
Json = dict[str, Any]


def chunk(delta: Json, index: int = 0, /, finish: str | None = None, **more: Any) -> Json:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}


def event(document: Any, *, name: bytes = b"", **style: Any) -> Event:
    return name, json.dumps(document, **style).encode()


def parsed(form: str, events: list[Event]) -> list[Json]:
    parser, exact = FORMATS[form].parse_stream(), Normaliser().chunk  # type: ignore[index]
    return [made for name, data in events for said in parser.parse(data, name) if (made := exact(said)) is not None]


def read(form: str, *pieces: list[Event]) -> list[Json | Texts]:
    reader = ChunkReader(FORMATS[form].parse_stream(), Normaliser())  # type: ignore[index]
    return [item for events in pieces for item in reader.read(events)]


def one_by_one(items: list[Json | Texts]) -> list[Json]:
    return [made for item in items for made in (item.chunks() if isinstance(item, Texts) else [item])]


def texts_of(items: list[Json | Texts]) -> list[str]:
    return [text for item in items if isinstance(item, Texts) for text in item.texts]


def completion(items: list[Json] | list[Json | Texts]) -> Json:
    fold = Fold()
    for item in items:
        if isinstance(item, Texts):
            fold.add_texts(item)
        else:
            fold.add(item)
    return fold.completion(id="c", created=1, model="m")


def lines(client: str, items: Any) -> list[bytes]:
    return CLIENT_FORMATS[client].renderer(JOB, REQUEST).render(copy.deepcopy(items))  # type: ignore[index]


def without_new_ids(value: Any) -> str:
    """Return what a value looks like but for the random ids of calls whose own ids are taken."""
    return re.sub(r"call_[0-9a-f]+", "call", repr(value))


STYLES: list[Json] = [
    {},
    {"separators": (",", ":")},
    {"ensure_ascii": False},
    {"ensure_ascii": False, "separators": (",", ":"), "sort_keys": True},
]
TEXTS = st.sampled_from(
    ["a", "m", "c", "content", '"', "\\", 'x","y":"z', "\n", " ", "é", "🙂", " 0", "\x00", ""]
) | st.text(max_size=5)
DELTAS = st.one_of(
    TEXTS.map(lambda text: {"content": text}),
    TEXTS.map(lambda text: {"role": "assistant", "content": text}),
    TEXTS.map(lambda text: {"reasoning_content": text}),
    TEXTS.map(lambda text: {"content": text, "refusal": None}),
    st.just({}),
    st.just({"content": None}),
    st.just({"content": [{"type": "text", "text": "part"}]}),
    st.just({"tool_calls": [{"index": 0, "id": "t", "function": {"name": "f", "arguments": ""}}]}),
)
EXTRAS = st.sampled_from(
    [
        {},
        {},
        {},
        {"usage": None},
        {"usage": {"prompt_tokens": 1, "completion_tokens": 2}},
        {"x": "a"},
        {"service_tier": 3},
    ]
)
CHUNKS = st.builds(
    lambda delta, index, extras: chunk(delta, index, **extras), DELTAS, st.sampled_from([0, 0, 0, 1]), EXTRAS
)
TEXT_ALONE = TEXTS.map(lambda text: chunk({"content": text}))
ODD = st.sampled_from(
    [{"choices": [], "held": "x"}, {"choices": [{"text": "legacy"}]}, {"choices": [{"index": 0, "delta": None}]}]
)


@given(
    documents=st.lists(TEXT_ALONE | TEXT_ALONE | CHUNKS | ODD, max_size=12),
    style=st.sampled_from(STYLES),
    cut=st.integers(0, 12),
)
def test_any_stream_is_read_as_if_each_event_was_parsed(documents: list[Json], style: Json, cut: int) -> None:
    events = [event(document, **style) for document in documents]
    items, expected = read("chat", events[:cut], events[cut:]), parsed("chat", events)
    assert without_new_ids(one_by_one(items)) == without_new_ids(expected)
    assert without_new_ids(completion(items)) == without_new_ids(completion(expected))
    for client in CLIENT_FORMATS:
        assert without_new_ids(lines(client, items)) == without_new_ids(lines(client, expected))


MESSAGES = [
    {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 1, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f"t{n} "}} for n in range(9)),
    {"type": "content_block_stop", "index": 0},
]
GEMINI = [
    {"candidates": [{"index": 0, "content": {"role": "model", "parts": [{"text": f"t{n} "}]}}], "modelVersion": "m"}
    for n in range(9)
]
CHAT = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": f"t{n} "}, usage=None) for n in range(9))]


@pytest.mark.parametrize(
    ("form", "documents", "learned"), [("chat", CHAT, 1), ("messages", MESSAGES, 1), ("gemini", GEMINI, 2)]
)
def test_all_texts_but_the_first_are_read_without_parsing_the_rest(
    form: str, documents: list[Json], learned: int
) -> None:
    events = [event(document, name=b"e") for document in documents]
    items, expected = read(form, events), parsed(form, events)
    assert one_by_one(items) == expected
    assert texts_of(items) == [f"t{n} " for n in range(learned, 9)]


def test_a_text_that_stands_elsewhere_in_its_event_too_is_parsed() -> None:
    events = [event(chunk({"content": text})) for text in ("", "m", "m", "a", "b", "m")]
    items = read("chat", events)
    assert one_by_one(items) == parsed("chat", events)
    assert texts_of(items) == ["b", "m"]


def test_a_text_with_half_a_character_is_parsed() -> None:
    events = [event(chunk({"content": text})) for text in ("", "a", "b")]
    halved = (b"", events[-1][1].replace(b'"b"', rb'"\ud83d"'))
    items = read("chat", [*events, halved])
    assert one_by_one(items) == parsed("chat", [*events, halved])
    assert one_by_one(items)[-1]["choices"][0]["delta"] == {"content": "�"}


def test_an_error_between_texts_is_raised() -> None:
    texts = [event(chunk({"content": text})) for text in ("", "a", "b", "c")]
    with pytest.raises(UpstreamError, match="over capacity"):
        read("chat", [*texts, event({"error": {"message": "over capacity"}}), *texts])


def test_nothing_behind_the_end_is_read() -> None:
    texts = [event(chunk({"content": text})) for text in ("", "a", "b", "c")]
    items = read("chat", [*texts, (b"", b"[DONE]"), *texts])
    assert texts_of(items) == ["b", "c"]
    assert len(items) == 3


WRITTEN = st.sampled_from(
    [b'"a"', b'"b"', b'"c" ', b' "d"', b'""', b"", b'"', b'"e', b'f"', b'"g","h"', b'"i",', b'["j"', b'"k"]', b"1"]
)


@given(written=st.lists(WRITTEN, max_size=6))
def test_texts_that_are_whole_strings_only_together_are_refused(written: list[bytes]) -> None:
    before, _, after = event(chunk({"content": "TEXT"}))[1].partition(b'"TEXT"')
    events = [event(chunk({"content": text})) for text in ("", "x", "y")]
    events += [(b"", before + string + after) for string in written]
    try:
        expected = parsed("chat", events)
    except UpstreamError:
        with pytest.raises(UpstreamError):
            read("chat", events)
    else:
        assert one_by_one(read("chat", events)) == expected
