"""Prices as the maintained table has them, worked out by us because its own way is too slow for every job."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import Usage, calc_price
from hypothesis import given
from hypothesis import strategies as st

from headrace.catalogue.known import abilities, chat_models, find_model, output_limit
from headrace.formats.chat.usage import TokenUsage

OPENAI = "https://api.openai.com/v1"
ANTHROPIC = "https://api.anthropic.com/v1"
GEMINI = "https://generativelanguage.googleapis.com/v1beta"
MODELS = [
    (OPENAI, "gpt-4o"),
    (OPENAI, "gpt-4o-mini-2024-07-18"),
    (OPENAI, "gpt-5.4"),
    (OPENAI, "gpt-audio"),
    (ANTHROPIC, "claude-sonnet-4-6"),
    (ANTHROPIC, "claude-haiku-4-5-20251001"),
    (GEMINI, "gemini-1.5-pro"),
    (GEMINI, "gemini-2.5-pro"),
    (GEMINI, "gemini-2.5-flash"),
]


@pytest.mark.parametrize(("base_url", "model"), MODELS)
@given(
    fresh=st.integers(0, 400_000),
    cached=st.integers(0, 400_000),
    written=st.integers(0, 10_000),
    output=st.integers(0, 100_000),
    heard=st.integers(0, 10_000),
    spoken=st.integers(0, 10_000),
)
def test_our_price_is_the_tables(
    base_url: str, model: str, fresh: int, cached: int, written: int, output: int, heard: int, spoken: int
) -> None:
    if base_url != ANTHROPIC:
        written = 0  # the others charge nothing for it
    heard, spoken = min(heard, fresh), min(spoken, output)
    tokens = TokenUsage(
        fresh + cached + written,
        output,
        cached_tokens=cached,
        cache_write_tokens=written,
        prompt_audio_tokens=heard,
        completion_audio_tokens=spoken,
    )
    rates = find_model(base_url, model).rates_for(tokens.prompt_tokens)
    assert rates is not None
    theirs = calc_price(
        Usage(
            input_tokens=tokens.prompt_tokens,
            cache_read_tokens=cached,
            cache_write_tokens=written,
            output_tokens=output,
            input_audio_tokens=heard,
            output_audio_tokens=spoken,
            cache_audio_read_tokens=0,
        ),
        model,
        provider_api_url=base_url,
        genai_request_timestamp=datetime.now(UTC),
    )
    assert rates.cost(tokens) == theirs.total_price


def test_a_long_prompt_has_its_own_rates() -> None:
    known = find_model(GEMINI, "gemini-1.5-pro")
    assert [rates.above for rates in known.rates] == [128_000, 0]
    short, long = known.rates_for(128_000), known.rates_for(128_001)
    assert short is not None
    assert long is not None
    assert (short.input, long.input) == (Decimal("1.25"), Decimal("2.5"))


@pytest.mark.parametrize(("base_url", "model"), [("http://127.0.0.1:11434/v1", "gpt-4o"), (OPENAI, "unknown-model")])
def test_an_unknown_model_has_no_price(base_url: str, model: str) -> None:
    assert find_model(base_url, model).rates_for(1) is None


@pytest.mark.parametrize(
    ("provider", "some", "none"),
    [
        ("openai", {"gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-5", "o3"}, {"gpt-4o-transcribe", "gpt-5-pro", "tts-1"}),
        ("anthropic", {"claude-sonnet-4-6", "claude-haiku-4-5", "claude-opus-4-6"}, {"claude-2"}),
        ("google", {"gemini-2.5-pro", "gemini-2.5-flash"}, {"gemini-2.5-flash-image", "gemini-2.5-pro-tts"}),
    ],
)
def test_the_built_in_models_answer_chats(provider: str, some: set[str], none: set[str]) -> None:
    models = set(chat_models(provider))  # type: ignore[arg-type]
    assert some <= models
    assert not none & models


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        ("gpt-4o-2024-08-06", 16_384),
        ("gpt-4.1-nano", 32_768),
        ("o4-mini", 100_000),
        ("claude-opus-4-1", 32_000),
        ("claude-haiku-4-5-20251001", 64_000),
        ("claude-sonnet-4-20250514", 64_000),
        ("claude-opus-4-6", 128_000),
        ("claude-sonnet-4-6", 128_000),
        ("claude-opus-5-5", 128_000),
        ("gemini-1.5-pro", 8_192),
        ("gemini-2.5-flash", 65_536),
        ("llama-4", None),
    ],
)
def test_output_limits_go_by_family(model: str, limit: int | None) -> None:
    assert output_limit(model) == limit
    assert bool(abilities(model)) == (limit is not None)
