from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from headrace.chat.usage import estimate_demand
from headrace.quotas.rules import Limits


def test_what_is_set_is_kept_and_nothing_else() -> None:
    document = {"requests_per_minute": 3, "daily_budget": "0.1", "models": ["demo", "gpt-*"], "wait": True}
    assert Limits.parse(document).render() == document
    assert Limits.parse({}).render() == Limits.parse(None).render() == {}


def test_a_budget_may_be_a_number() -> None:
    assert Limits.parse({"monthly_budget": 0.1}).monthly_budget == Decimal("0.1")
    assert Limits.parse({"monthly_budget": 100}).render() == {"monthly_budget": "100"}
    assert Limits.parse({"monthly_budget": "0"}).render() == {"monthly_budget": "0"}


@pytest.mark.parametrize(
    "document",
    [
        {"requests_per_minute": 0},
        {"requests_per_minute": -1},
        {"requests_per_minute": "3"},
        {"requests_per_minute": 1.5},
        {"requests_per_minute": True},
        {"tokens_per_minute": 2**53},
        {"jobs_in_flight": 0},
        {"daily_budget": "-0.01"},
        {"daily_budget": "NaN"},
        {"daily_budget": "Infinity"},
        {"daily_budget": "0.0000000001"},
        {"daily_budget": "1000000001"},
        {"daily_budget": True},
        {"models": [""]},
        {"models": ["a\0"]},
        {"models": "demo"},
        {"models": ["m"] * 101},
        {"alert_webhook": "ftp://example.com"},
        {"colour": "red"},
    ],
)
def test_what_is_no_limit_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Limits.model_validate(document)


def test_models_are_names_or_patterns() -> None:
    limits = Limits(models=["demo", "gpt-*"])
    assert [name for name in ("demo", "gpt-4o", "demo2", "GPT-4o") if limits.allows_model(name)] == ["demo", "gpt-4o"]
    assert Limits().allows_model("anything")
    assert not Limits(models=[]).allows_model("anything")


@pytest.mark.parametrize(
    ("asked", "limit", "completion"),
    [
        ({}, None, 4096),
        ({}, 1000, 1000),
        ({}, 100_000, 4096),
        ({"max_tokens": 7}, None, 7),
        ({"max_completion_tokens": 9, "max_tokens": 7}, None, 9),
        ({"max_tokens": 7, "n": 3}, None, 21),
    ],
)
def test_a_demand_is_what_the_answer_may_be(asked: dict[str, Any], limit: int | None, completion: int) -> None:
    request = {"messages": [{"role": "user", "content": "x" * 400}], **asked}
    demand = estimate_demand(request, output_limit=limit)
    assert demand.completion_tokens == completion
    assert 100 <= demand.prompt_tokens <= 110
