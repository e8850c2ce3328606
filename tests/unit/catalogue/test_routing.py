"""Which routes can serve a request, and what the formats of the others have nothing for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from headrace.catalogue.models import Catalogue, Model, Provider
from headrace.catalogue.routing import UsableRoute, usable_routes
from headrace.errors import InvalidRequestError
from headrace.formats.translation import Translation

CATALOGUE = Catalogue(
    providers={
        "o": Provider(kind="openai", base_url="http://127.0.0.1:1/v1"),
        "a": Provider(kind="anthropic", base_url="http://127.0.0.1:1/v1"),
        "g": Provider(kind="gemini", base_url="http://127.0.0.1:1/v1"),
    },
    models={"ag": Model(routes=["a/x", "g/y"]), "a": Model(routes=["a/x"]), "o": Model(routes=["o/z"])},
)


def asking(model: str, **fields: Any) -> Translation:
    return Translation({"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields})


def routes(model: str, catalogue: Catalogue = CATALOGUE, **fields: Any) -> list[tuple[str, list[str]]]:
    ways = usable_routes(catalogue, asking(model, **fields), format="chat", seed="job")
    return [(way.route.provider_name, list(way.dropped)) for way in ways]


def test_a_route_that_cannot_honour_a_request_is_passed_over() -> None:
    assert routes("ag") == [("a", []), ("g", [])]
    assert routes("ag", logprobs=True) == [("g", [])]
    assert routes("a", logprobs=True, fallbacks=["o"]) == [("o", [])]


def test_what_no_route_can_honour_is_refused_for_the_first_ones_reason() -> None:
    with pytest.raises(InvalidRequestError) as raised:
        routes(
            "ag",
            parallel_tool_calls=False,
            tools=[{"type": "function", "function": {"name": "f"}}],
            logit_bias={"1": 1},
        )
    assert raised.value.param == "logit_bias"


@pytest.mark.parametrize("by", ["request", "file"])
def test_strictness_makes_a_drop_a_refusal(by: str) -> None:
    strict = CATALOGUE.model_copy(update={"strict_params": True}) if by == "file" else CATALOGUE
    fields = {"strict_params": True} if by == "request" else {}
    assert routes("ag", seed=1) == [("a", ["seed"]), ("g", [])]
    assert routes("ag", strict, seed=1, **fields) == [("g", [])]
    with pytest.raises(InvalidRequestError) as raised:
        routes("a", strict, seed=1, **fields)
    assert raised.value.param == "seed"


# -- a client of another format ---------------------------------------------------------------------------------------


def ways_from_responses(translation: Translation) -> list[UsableRoute]:
    return usable_routes(CATALOGUE, translation, format="responses", seed="job")


def test_what_only_the_clients_format_has_is_refused_by_its_path() -> None:
    with pytest.raises(InvalidRequestError) as raised:
        ways_from_responses(replace(asking("o"), own={"tools[1]": "web_search", "prompt": "a stored prompt"}))
    assert (raised.value.param, raised.value.code) == ("tools[1]", "unsupported_parameter")
    assert raised.value.message.startswith("'tools[1]' (web_search) is not supported")


def test_what_is_dropped_is_named_by_the_clients_paths() -> None:
    asked = replace(asking("a", verbosity="low"), dropped=["truncation"], names={"verbosity": "text.verbosity"})
    assert [way.dropped for way in ways_from_responses(asked)] == [["truncation", "text.verbosity"]]


def test_a_refusal_names_the_clients_path_in_its_message_too() -> None:
    asked = Translation(
        {
            "model": "a",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}],
                },
            ],
        },
        messages=["instructions", "input[0]"],
    )
    with pytest.raises(InvalidRequestError) as raised:
        ways_from_responses(asked)
    assert raised.value.param == "input[0].content[0]"
    assert raised.value.message.startswith("'input[0].content[0]' is not supported")


def test_strictness_refuses_what_the_translation_drops() -> None:
    with pytest.raises(InvalidRequestError) as raised:
        ways_from_responses(replace(asking("o", strict_params=True), dropped=["truncation"]))
    assert raised.value.param == "truncation"


def test_a_provider_of_the_clients_format_gets_all_of_it() -> None:
    asked = replace(asking("a", verbosity="low"), own={"tools[1]": "web_search"}, dropped=["truncation"])
    [way] = usable_routes(CATALOGUE, asked, format="messages", seed="job")
    assert not way.dropped
