"""Facts about models that a configuration may leave out: prices, context windows, output limits, abilities.

Prices and context windows come from `genai-prices`, a maintained table that is installed as a package and never
fetched at run time. It identifies a provider by its URL, so a model of the same name at another provider gets no wrong
price. No package has output limits and abilities: the table here is short, goes by model family, and names its sources.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Literal

from headrace.formats.chat.usage import TokenUsage

_SOURCE = f"genai-prices {version('genai-prices')}"
_MILLION = 1_000_000
_DAY_SECONDS = 86_400

Ability = Literal["tools", "json_schema", "reasoning", "images", "audio", "files"]
"""What a model can do beyond text: call tools, follow a schema, reason, and read images, audio or files."""


@dataclass(frozen=True, slots=True)
class Rates:
    """USD for a million tokens of each sort, for a prompt of more than `above` tokens.

    Audio without a rate of its own has the rate of text.
    """

    above: int
    input: Decimal
    cached_input: Decimal
    cache_write: Decimal
    output: Decimal
    input_audio: Decimal | None = field(default=None, kw_only=True)
    output_audio: Decimal | None = field(default=None, kw_only=True)
    source: str = field(default="", kw_only=True)
    """Where the rates come from."""

    def cost(self, tokens: TokenUsage) -> Decimal:
        """Return the exact price of these tokens in USD.

        Providers do not say how many cached tokens were audio, so audio is counted among the uncached tokens first.
        """
        fresh = tokens.prompt_tokens - tokens.cached_tokens - tokens.cache_write_tokens
        heard = min(tokens.prompt_audio_tokens, fresh)
        spoken = tokens.completion_audio_tokens
        return (
            (fresh - heard) * self.input
            + heard * (self.input if self.input_audio is None else self.input_audio)
            + tokens.cached_tokens * self.cached_input
            + tokens.cache_write_tokens * self.cache_write
            + (tokens.completion_tokens - spoken) * self.output
            + spoken * (self.output if self.output_audio is None else self.output_audio)
        ) / _MILLION


@dataclass(frozen=True, slots=True)
class KnownModel:
    """The known facts of a model at one provider. `rates` go from the longest prompts down; empty without a price."""

    context_window: int | None = None
    rates: Sequence[Rates] = ()

    def rates_for(self, prompt_tokens: int) -> Rates | None:
        """Return the rates for a prompt of this length."""
        for rates in self.rates:
            if prompt_tokens > rates.above or not rates.above:
                return rates
        return None


def find_model(base_url: str, model: str) -> KnownModel:
    """Return what the table has today on a provider's model: an empty `KnownModel` if it does not list the model."""
    return _find_model(base_url, model, int(time.time()) // _DAY_SECONDS)


@lru_cache(maxsize=4096)
def _find_model(base_url: str, model: str, day: int) -> KnownModel:
    from genai_prices import data_snapshot

    try:
        _, found = data_snapshot.get_snapshot().find_provider_model(model, None, None, base_url)
    except LookupError:
        return KnownModel()
    prices = found.get_prices(datetime.fromtimestamp(day * _DAY_SECONDS, UTC))
    if prices.input_mtok is None or prices.output_mtok is None:
        return KnownModel(found.context_window)
    sorts = (prices.input_mtok, prices.cache_read_mtok, prices.cache_write_mtok, prices.output_mtok)
    audio = {"input_audio": prices.input_audio_mtok, "output_audio": prices.output_audio_mtok}
    tiers = {0, *(tier.start for price in (*sorts, *audio.values()) for tier in getattr(price, "tiers", ()))}
    rates = [
        Rates(
            above,
            *(_price_above(above, price, otherwise=prices.input_mtok) for price in sorts),
            **{name: _price_above(above, price, otherwise=0) for name, price in audio.items() if price is not None},
            source=_SOURCE,
        )
        for above in sorted(tiers, reverse=True)
    ]
    return KnownModel(found.context_window, tuple(rates))


def _price_above(above: int, price: Any, *, otherwise: Any) -> Decimal:
    """Return a price for prompts of more than `above` tokens, or `otherwise` where the table has no price."""
    if price is None:
        return _price_above(above, otherwise, otherwise=0)
    for tier in reversed(getattr(price, "tiers", ())):
        if above >= tier.start:
            return Decimal(tier.price)
    return Decimal(getattr(price, "base", price))


# Families by the beginning of a name, the most specific first: output limit in tokens, and abilities. Sources, read on
# 2026-11-23: https://platform.claude.com/docs/en/models/sonnet-4-6/overview and its sister pages for Anthropic's
# limits, https://ai.google.dev/gemini-api/docs/models/gemini-2.0-flash for Gemini 2.0. The rest is what the providers
# published with each family, and was not verified again. Newer models are taken to be at least as able as these.
_ALL: tuple[Ability, ...] = ("tools", "json_schema", "reasoning", "images", "files")
_FAMILIES: tuple[tuple[re.Pattern[str], int | None, tuple[Ability, ...]], ...] = tuple(
    (re.compile(pattern), limit, abilities)
    for pattern, limit, abilities in (
        (r"gpt-4o", 16_384, ("tools", "json_schema", "images", "files")),
        (r"gpt-4\.1", 32_768, ("tools", "json_schema", "images", "files")),
        (r"gpt-4", 8_192, ("tools",)),
        (r"o\d", 100_000, _ALL),
        (r"gpt-[5-9]", 128_000, _ALL),
        (r"claude-3-5", 8_192, ("tools", "images", "files")),
        (r"claude-3-7", 64_000, ("tools", "reasoning", "images", "files")),
        (r"claude-opus-4(-[01]|-2025\d{4})?$", 32_000, ("tools", "reasoning", "images", "files")),
        (r"claude-[a-z]+-4(-[0-5])?(-\d{8})?$", 64_000, _ALL),
        (r"claude-[a-z]+-[4-9]", 128_000, _ALL),
        (r"gemini-1\.5|gemini-2\.0", 8_192, ("tools", "json_schema", "images", "audio", "files")),
        (r"gemini-[2-9]", 65_536, (*_ALL, "audio")),
    )
)


@lru_cache(maxsize=1024)
def output_limit(model: str) -> int | None:
    """Return how many tokens a model writes at most, by its family; None for an unknown family."""
    return next((limit for pattern, limit, _ in _FAMILIES if pattern.match(model)), None)


def abilities(model: str) -> tuple[Ability, ...]:
    """Return what a model can do beyond text, by its family; empty for an unknown family."""
    return next((abilities for pattern, _, abilities in _FAMILIES if pattern.match(model)), ())


# Patterns of model names that answer chat completions, by the table's provider name. `_NOT_CHAT` excludes names that
# match anyway.
_CHAT = {
    "openai": re.compile(r"gpt-(?:4o|4\.\d|[5-9](?:\.\d)?)(?:-[a-z]+)?|o[1-9](?:-mini)?"),
    "anthropic": re.compile(r"claude-(?:opus|sonnet|haiku|fable)-[4-9](?:-\d)?"),
    "google": re.compile(r"gemini-\d(?:\.\d)?-[a-z]+(?:-lite)?(?:-preview)?"),
}
_NOT_CHAT = re.compile(
    r"image|audio|tts|realtime|live|transcribe|search|cyber|codex|rosalind|robotics|omni|^gpt.*-pro$"
)


def chat_models(provider: Literal["openai", "anthropic", "google"]) -> list[str]:
    """Return the names of a provider's current models that answer chat completions."""
    from genai_prices import data_snapshot

    models = next(known.models for known in data_snapshot.get_snapshot().providers if known.id == provider)
    return [
        model.id
        for model in models
        if _CHAT[provider].fullmatch(model.id) and not _NOT_CHAT.search(model.id) and not model.deprecated
    ]
