"""Tokens: read from what providers send, estimated where they send nothing, rendered as OpenAI does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.formats.chat.usage import TokenUsage, estimate_usage, parse_usage, render_usage

counts = st.integers(0, 1_000_000)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param(
            {
                "prompt_tokens": 20,
                "completion_tokens": 10,
                "total_tokens": 30,
                "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 4},
            },
            TokenUsage(20, 10, 8, 4),
            id="in full",
        ),
        pytest.param({"prompt_tokens": 20, "completion_tokens": 10}, TokenUsage(20, 10), id="without details"),
        pytest.param({"prompt_tokens": 20}, TokenUsage(20, 0), id="without completion"),
        pytest.param(
            {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": None},
            TokenUsage(1, 1),
            id="with null details",
        ),
        pytest.param(
            {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": "some"}},
            TokenUsage(1, 1),
            id="with details that are garbage",
        ),
        pytest.param(
            {
                "prompt_tokens": 5,
                "completion_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 9},
                "completion_tokens_details": {"reasoning_tokens": 7},
            },
            TokenUsage(5, 3, 5, 3),
            id="with details greater than the whole",
        ),
        pytest.param(None, None, id="null"),
        pytest.param({}, None, id="empty"),
        pytest.param("20", None, id="a string"),
        pytest.param([20, 10], None, id="an array"),
        pytest.param({"total_tokens": 30}, None, id="a total alone"),
        pytest.param({"prompt_tokens": "twenty", "completion_tokens": 10}, None, id="a count in words"),
        pytest.param({"prompt_tokens": 20, "completion_tokens": None}, None, id="a null count"),
        pytest.param({"prompt_tokens": 20, "completion_tokens": 1.5}, None, id="a fraction"),
        pytest.param({"prompt_tokens": True, "completion_tokens": 1}, None, id="a boolean"),
        pytest.param({"prompt_tokens": -1, "completion_tokens": 1}, None, id="a negative"),
        pytest.param({"prompt_tokens": 10**12, "completion_tokens": 1}, None, id="a count no call has"),
    ],
)
def test_usage_is_believed_only_where_it_makes_sense(usage: Any, expected: TokenUsage | None) -> None:
    assert parse_usage(usage) == expected


@given(prompt=counts, completion=counts, data=st.data())
@settings(deadline=None)
def test_rendered_usage_parses_to_the_same(prompt: int, completion: int, data: st.DataObject) -> None:
    cached, reasoning = data.draw(st.integers(0, prompt)), data.draw(st.integers(0, completion))
    usage = TokenUsage(prompt, completion, cached, reasoning)
    rendered = render_usage(usage)
    assert rendered["total_tokens"] == usage.total_tokens == prompt + completion
    assert parse_usage(rendered) == usage


def prompt_tokens(**request: Any) -> int:
    return estimate_usage(request, "").prompt_tokens


def said(content: Any, **fields: Any) -> int:
    return prompt_tokens(messages=[{"role": "user", "content": content, **fields}])


def test_an_estimate_says_that_it_is_one() -> None:
    assert estimate_usage({}, "").estimated
    assert not TokenUsage(1, 1).estimated


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        pytest.param("", 0, id="nothing"),
        pytest.param("a", 1, id="a letter"),
        pytest.param("four", 1, id="a word"),
        pytest.param("x" * 400, 100, id="prose"),
        pytest.param("水" * 100, 75, id="Chinese"),
        pytest.param("\ud800", 1, id="half a surrogate pair"),
    ],
)
def test_a_completion_is_estimated_at_four_bytes_a_token(text: str, tokens: int) -> None:
    assert estimate_usage({}, text).completion_tokens == tokens


def test_a_prompt_is_estimated_from_all_that_the_model_reads() -> None:
    text = said("x" * 400)
    assert 100 < text < 110
    assert said([{"type": "text", "text": "x" * 400}]) == text
    assert said("x" * 400, name="y" * 40) == text + 10
    assert prompt_tokens(messages=[{"role": "user", "content": "x" * 400}] * 2) > 2 * text - 10
    assert prompt_tokens(tools=[{"type": "function", "function": {"name": "f" * 40}}]) > 10
    assert said(None, tool_calls=[{"function": {"arguments": "x" * 400}}]) > 100


def test_a_picture_is_not_estimated_by_its_bytes() -> None:
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}]
    assert 500 < said(image) < 1500
    assert said([image[0] | {"text": "", "refusal": "x" * 400}]) == said(image) + 100, "its text counts as well"


@pytest.mark.parametrize("image", ["A" * 1_000_000, {"url": "data:image/png;base64," + "A" * 1_000_000}])
def test_images_beside_the_content_are_not_estimated_by_their_bytes(image: object) -> None:
    picture = said([{"type": "image_url"}]) - said("")
    assert said("Hi", images=[image]) == said("Hi") + picture
    assert said("Hi", images=[image] * 2, name="y" * 40) == said("Hi") + 2 * picture + 10
    assert said("Hi", images="x" * 4000) > 1000, "a text is one"


def test_a_file_and_a_recording_are_estimated_by_their_bytes() -> None:
    file = [{"type": "file", "file": {"filename": "a.pdf", "file_data": "A" * 10_000_000}}]
    recording = [{"type": "input_audio", "input_audio": {"format": "mp3", "data": "A" * 10_000_000}}]
    assert 100_000 < said(file) < 500_000
    assert 10_000 < said(recording) < 100_000
    assert said([{"type": "file", "file": {"file_id": "file-1"}}]) == said([{"type": "image_url"}])


@given(
    kind=st.sampled_from(["text", "refusal", "image_url", "file", "video_url", "thinking", "", None, 1]),
    key=st.sampled_from(["text", "refusal"]),
    size=st.integers(0, 10_000),
)
def test_no_part_counts_less_than_its_text(kind: object, key: str, size: int) -> None:
    assert said([{"type": kind, key: "x" * size}]) >= size // 4


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking_blocks", "of_its_own"])
def test_fields_that_go_to_the_provider_with_a_message_are_estimated(field: str) -> None:
    assert said("Hi", **{field: "x" * 4000}) > 1000
    assert said("Hi", **{field: [{"text": "x" * 4000}]}) > 1000
