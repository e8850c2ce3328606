from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from headrace.catalogue.models import Catalogue, Model, Provider, Route
from headrace.errors import InvalidRequestError
from headrace.formats.chat.usage import estimate_demand
from headrace.quotas.cost import check_priced, highest_cost
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
        ({"max_completion_tokens": 1, "max_tokens": 700}, None, 700),
        ({"max_completion_tokens": 1, "max_new_tokens": 700, "max_output_tokens": "9"}, None, 700),
        ({"max_tokens": 7, "n": 3}, None, 21),
    ],
)
def test_a_demand_is_what_the_answer_may_be(asked: dict[str, Any], limit: int | None, completion: int) -> None:
    request = {"messages": [{"role": "user", "content": "x" * 400}], **asked}
    demand = estimate_demand(request, output_limit=limit)
    assert demand.completion_tokens == completion
    assert 100 <= demand.prompt_tokens <= 110
    whole = estimate_demand(request, output_limit=limit, whole=True)
    assert whole.completion_tokens == (limit or 4096 if not asked else completion)


def route(output_limit: int | None, *prices: int, model: str = "m") -> Route:
    provider = Provider(kind="openai", base_url="https://p.example/v1")
    fresh, output = map(Decimal, prices) if prices else (None, None)
    entry = Model(routes=[f"p/{model}"], input_price=fresh, output_price=output, output_limit=output_limit)
    return Route("p", provider, model, entry)


def test_an_answer_costs_at_most_what_the_dearest_of_its_routes_may_write() -> None:
    request = {"messages": [{"role": "user", "content": "x" * 400}]}
    prompt = estimate_demand(request, output_limit=None).prompt_tokens
    short, long, free, unknown = route(1_000, 0, 50), route(100_000, 0, 1), route(100_000), route(None, 0, 10)
    assert highest_cost([short], request) == Decimal("0.05")
    assert highest_cost([short, long, free], request) == Decimal("0.1")
    assert highest_cost([short, long, free], request | {"max_tokens": 2_000}) == Decimal("0.1")
    assert highest_cost([long, unknown], request | {"max_tokens": 2_000}) == Decimal("0.02")
    assert highest_cost([unknown], request) == Decimal("0.04096")
    assert highest_cost([free], request) == highest_cost([], request) == 0
    assert highest_cost([route(1, 1_000, 0)], request) == Decimal(prompt) / 1000


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"model": "priced"}, None),
        ({"model": "free"}, None),
        ({"model": "unheard-of"}, "model"),
        ({"model": "partly"}, "model"),
        ({"model": "detour"}, "model"),
        ({"model": "priced", "fallbacks": ["free", "unheard-of"]}, "fallbacks[1]"),
    ],
)
def test_under_a_budget_each_model_that_may_answer_has_a_price(request_: dict[str, Any], param: str | None) -> None:
    price = {"input_price": Decimal(1), "output_price": Decimal(1)}
    catalogue = Catalogue(
        providers={"p": Provider(kind="openai", base_url="https://p.example/v1")},
        models={
            "priced": Model(routes=["p/priced"], **price),
            "free": Model(routes=["p/free"], input_price=Decimal(), output_price=Decimal()),
            "partly": Model(routes=["p/partly"], input_price=Decimal(1)),
            "detour": Model(routes=["p/detour"], **price, context_window_fallbacks=["unheard-of"]),
            "*": Model(routes=["p/*"]),
        },
    )
    routes = catalogue.routes(request_["model"], request_.get("fallbacks", ()))
    if param is None:
        check_priced(catalogue, routes, request_)
        return
    with pytest.raises(InvalidRequestError) as refused:
        check_priced(catalogue, routes, request_)
    assert (refused.value.param, refused.value.code) == (param, "model_not_priced")
