"""Usage in OpenAI's shape: input tokens told apart as its specification does."""

from __future__ import annotations

import pytest

from api.resources.organization import _completions_result

OTHERS = ("completion_tokens", "completion_audio_tokens", "requests")


@pytest.mark.parametrize(
    ("prompt", "cached", "written", "audio"),
    [
        (1000, 800, 0, 900),
        (1000, 800, 200, 1000),
        (1000, 0, 0, 300),
        (1000, 100, 100, 300),
        (1000, 100, 800, 300),
        (1000, 1000, 0, 1000),
        (0, 0, 0, 0),
    ],
)
def test_each_input_token_is_of_one_sort(prompt: int, cached: int, written: int, audio: int) -> None:
    row = {"prompt_tokens": prompt, "cached_tokens": cached, "cache_write_tokens": written}
    result = _completions_result({**row, "prompt_audio_tokens": audio, **dict.fromkeys(OTHERS, 0)}, [])
    assert all(value >= 0 for name, value in result.items() if name.startswith("input_"))
    # As the specification has them: the first includes the next three, and each of those its text, audio and images.
    cache = ("input_cached_tokens", "input_cache_write_tokens", "input_uncached_tokens")
    assert result["input_tokens"] == prompt == sum(result[name] for name in cache)
    for whole, part in (
        ("input_uncached_tokens", "input_{}_tokens"),
        ("input_cached_tokens", "input_cached_{}_tokens"),
    ):
        assert result[whole] == sum(result[part.format(sort)] for sort in ("text", "audio", "image"))
    assert result["input_audio_tokens"] + result["input_cached_audio_tokens"] <= audio


def test_audio_that_is_not_cached_is_told_as_such() -> None:
    row = {"prompt_tokens": 1000, "cached_tokens": 800, "cache_write_tokens": 0, "prompt_audio_tokens": 900}
    result = _completions_result({**row, **dict.fromkeys(OTHERS, 0)}, [])
    assert (result["input_text_tokens"], result["input_audio_tokens"]) == (0, 200)
    assert (result["input_cached_text_tokens"], result["input_cached_audio_tokens"]) == (100, 700)
