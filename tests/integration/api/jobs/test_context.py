"""The items that a response's input refers to, and what is read for them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.http.body_memory import BodyMemory
from api.http.request import ApiRequest
from api.jobs.context import expanded
from headrace.errors import InvalidRequestError
from headrace.formats.responses.context import expand, with_ids
from headrace.formats.responses.request import check_response_request
from headrace.ids import item_id, new_id
from headrace.keys.principal import Principal
from headrace.quotas.rules import Limits
from headrace.settings import Settings
from headrace.stores.database import Database
from headrace.telemetry.metrics import STORE_SECONDS
from tests.integration.job_rows import Jobs, end_of
from tests.metrics import Rise

LIMIT = 100_000

Json = dict[str, Any]


def said(text: str) -> Json:
    return {"type": "message", "role": "user", "content": text}


def reference(to: str) -> Json:
    return {"type": "item_reference", "id": to}


async def expanded_input(database: Database, jobs: Jobs, items: list[Json]) -> list[Json]:
    """Return the whole input of a request with these items."""
    owner = jobs.owner
    principal = Principal(
        owner.account_id,
        owner.key_id,
        frozenset(),
        Limits(),
        Limits(),
        None,
        b"",
        "",
        read_only=True,
        key_account_id="",
    )
    state = {
        "account_id": owner.account_id,
        "database": database,
        "body_memory": BodyMemory(2 * LIMIT),
        "settings": Settings(max_body_bytes=LIMIT),
    }
    request = ApiRequest({"type": "http", "headers": [], "state": state})
    body: Json = {"model": "fake", "input": items}
    whole = await expanded(request, principal, body, check_response_request(body), json.dumps(body).encode())
    found: list[Json] = whole["input"]
    return found


def texts(items: list[Json]) -> list[str]:
    return [item["content"][0]["text"] for item in items]


async def respond(jobs: Jobs, items: list[Json], answer: str) -> str:
    """Store a response to the input, and return the id of its answer."""
    job_id = new_id("job")
    document = with_ids(expand({"model": "fake", "input": items}, ()), job_id)
    job = await jobs.run(id=job_id, format="responses", request=json.dumps(document))
    output = [{"id": item_id("msg", job_id, 0), "type": "message", "role": "assistant", "content": answer}]
    assert await jobs.finish(end_of(job, response=json.dumps({"output": output}))) == [True]
    return output[0]["id"]


async def test_the_last_response_of_a_conversation_is_read_alone(database: Database, jobs: Jobs) -> None:
    history: list[Json] = []
    for turn in range(5):
        history.append(said(f"question {turn}"))
        whole = await expanded_input(database, jobs, history)
        history.append(reference(await respond(jobs, whole, f"answer {turn}")))
    asked = Rise(STORE_SECONDS)
    whole = await expanded_input(database, jobs, [*history, said("bye")])
    assert asked() == {("postgres",): 2}, "one for the sizes, and one for the last response"
    assert texts(whole) == [text for turn in range(5) for text in (f"question {turn}", f"answer {turn}")] + ["bye"]


async def test_responses_that_are_too_large_together_are_not_read(database: Database, jobs: Jobs) -> None:
    large = "x" * (LIMIT // 3)
    answers = [await respond(jobs, [said(large)], "yes") for _ in range(4)]
    fitting = [reference(answer) for answer in answers[:2]]
    assert texts(await expanded_input(database, jobs, fitting)) == ["yes", "yes"]
    asked = Rise(STORE_SECONDS)
    with pytest.raises(InvalidRequestError, match=f"larger than {LIMIT} bytes") as raised:
        await expanded_input(database, jobs, [reference(answer) for answer in answers])
    assert (raised.value.status, raised.value.param, raised.value.code) == (400, "input", "context_too_long")
    assert asked() == {("postgres",): 3}, "one for the sizes, and two for the responses that fit"
