"""Every response and every event that leaves, over the recordings and over streams of any kind."""

from __future__ import annotations

import copy
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.formats.chat.fold import chunks_of
from headrace.formats.chat.normaliser import Normaliser
from headrace.formats.registry import WireFormat
from headrace.formats.responses import client
from headrace.formats.responses.events import lines_of
from tests.unit.formats.responses.answers import REQUEST, Answer, Job, chunk, folded, streamed, whole, without_time
from tests.unit.formats.responses.contract import check
from tests.unit.formats.test_recordings import chunks_of as parsed
from tests.unit.formats.test_recordings import recordings

TOOLS: dict[str, Any] = {
    **REQUEST,
    "include": ["message.output_text.logprobs"],
    "tools": [{"type": "function", "name": "f", "parameters": {}}, {"type": "custom", "name": "shell"}],
}
SUMMARY: dict[str, Any] = {**TOOLS, "reasoning": {"summary": "auto"}}


@pytest.mark.parametrize("document", [REQUEST, TOOLS, SUMMARY], ids=["plain", "tools", "summary"])
@pytest.mark.parametrize(("form", "recording"), recordings("events", "completion"))
def test_recorded_streams(form: WireFormat, recording: dict[str, Any], document: dict[str, Any]) -> None:
    normaliser = Normaliser()
    chunks = [exact for one in parsed(form, recording["events"])[0] if (exact := normaliser.chunk(one)) is not None]

    answer = streamed(*chunks, *normaliser.close(), document=document)

    check(answer)
    # What a provider streams as one item each is the same whole.
    if len({item["type"] for item in answer.response["output"]}) == len(answer.response["output"]):
        assert whole(folded(chunks), document).response["output"] == answer.response["output"]


@pytest.mark.parametrize(("form", "recording"), recordings("answer", "completion"))
def test_recorded_answers(form: WireFormat, recording: dict[str, Any]) -> None:
    completion = Normaliser().completion(form.parse_completion(json.dumps(recording["answer"]).encode()))
    answer = whole(completion, TOOLS)
    check(answer)
    again = streamed(*chunks_of(completion), document=TOOLS)
    assert without_time(again.response) == without_time(answer.response)
    assert again.lines == answer.lines


TEXTS = st.text(max_size=8)
LOGPROB = st.fixed_dictionaries(
    {
        "token": TEXTS,
        "logprob": st.floats(-100, 0),
        "bytes": st.none() | st.just([1, 2]),
        "top_logprobs": st.just([]) | st.just([{"token": "é", "logprob": -1.5, "bytes": None}]),
    }
)
LOGPROBS = st.none() | st.fixed_dictionaries({"content": st.none() | st.lists(LOGPROB, max_size=2)})
CITATION = {"url": "https://a.invalid/", "title": "A", "start_index": 0, "end_index": 1}
DELTAS = st.fixed_dictionaries(
    {},
    optional={
        "content": st.none() | TEXTS,
        "refusal": st.none() | TEXTS,
        "reasoning_content": st.none() | TEXTS,
        "annotations": st.just([{"type": "url_citation", "url_citation": CITATION}]),
        "thinking_blocks": st.just([{"type": "thinking", "thinking": "Hm", "signature": "s"}]),
    },
)
PIECES = st.tuples(
    st.integers(0, 2), st.sampled_from(["f", "shell", "own"]), st.sampled_from(["", "{", "}", "{}", "a"])
)
FINISHES = st.sampled_from(["stop", "length", "tool_calls", "content_filter"])


@st.composite
def chunk_streams(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw exact chunks: calls begin in the order of their index, but their pieces come by turns."""
    chunks: list[dict[str, Any]] = []
    kinds: list[str] = []
    for delta in draw(st.lists(DELTAS | PIECES, max_size=12)):
        if isinstance(delta, dict):
            chunks.append(chunk(delta, logprobs=draw(LOGPROBS)))
            continue
        index, name, text = delta
        index = min(index, len(kinds))
        begins = index == len(kinds)
        kinds += ["custom" if name == "own" else "function"] * begins
        kind = kinds[index]
        said = {"name": name} if begins else {}
        piece = {"index": index, kind: {**said, "input" if kind == "custom" else "arguments": text}}
        head = {"id": f"call_{index}", "type": kind} if begins else {}
        chunks.append(chunk({"tool_calls": [{**piece, **head}]}))
    return [chunk({"role": "assistant", "content": ""}), *chunks, chunk({}, draw(FINISHES))]


DOCUMENTS = st.sampled_from([REQUEST, TOOLS, SUMMARY])
JOBS = st.builds(Job, background=st.booleans())


@given(chunks=chunk_streams(), document=DOCUMENTS, job=JOBS)
def test_any_stream(chunks: list[dict[str, Any]], document: dict[str, Any], job: Job) -> None:
    answer = streamed(*chunks, document=document, job=job)
    check(answer)

    renderer = client.renderer(job, document)
    at_once = renderer.render(copy.deepcopy(chunks))
    assert at_once + renderer.end(folded(chunks))[0] == answer.lines  # however the chunks arrive


@given(chunks=chunk_streams(), document=DOCUMENTS)
def test_any_whole_answer(chunks: list[dict[str, Any]], document: dict[str, Any]) -> None:
    completion = folded(chunks)
    answer = whole(completion, document)
    check(answer)
    assert streamed(*chunks_of(completion), document=document).lines == answer.lines

    lines = lines_of(orjson.loads(orjson.dumps(answer.response)))
    check(Answer(lines, answer.response, document))


@given(attempts=st.lists(chunk_streams(), min_size=2, max_size=3), document=DOCUMENTS, data=st.data())
def test_any_lost_attempts(attempts: list[list[dict[str, Any]]], document: dict[str, Any], data: st.DataObject) -> None:
    """Cut each attempt but the last anywhere, and go on behind what is left."""
    log: list[bytes] = []
    for chunks in attempts[:-1]:
        grown = streamed(*chunks, document=document, log=log).lines
        log = grown[: data.draw(st.integers(len(log), len(grown)))]

    answer = streamed(*attempts[-1], document=document, log=log)

    assert answer.lines[: len(log)] == log
    items = sum(event["type"] == "response.output_item.added" for event in answer.log)
    check(answer, lost=items - len(answer.response["output"]))
