"""What the Responses API refuses: in OpenAI's shape, by the path that the client wrote, and with nothing written."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.e2e.jobs import chat
from tests.e2e.test_responses import create
from tests.fakes.provider import Gate, Json, Provider, answer, chunk, hang, settled, status, stream
from tests.waiting import eventually

UNKNOWN = "0" * 32
CALL = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "1"}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}


async def refused(client: httpx.AsyncClient, status_code: int, **fields: Any) -> Json:
    """Return the error of a request for a response, which has to be of OpenAI's shape."""
    answered = await client.post("/responses", json={"model": "fake", "input": "Hi", **fields})
    return error_of(answered, status_code)


def error_of(answered: httpx.Response, status_code: int) -> Json:
    assert answered.status_code == status_code, answered.text
    error: Json = answered.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


async def ended(client: httpx.AsyncClient, response_id: str, status: str) -> None:
    """Wait for a response to end with a status."""

    async def look() -> bool:
        return bool((await client.get(f"/responses/{response_id}")).json()["status"] == status)

    await eventually(look, status)


REFUSED: dict[str, tuple[Json, str | None, str | None]] = {
    "both contexts": ({"previous_response_id": "resp_1", "conversation": "conv_1"}, None, None),
    "an unknown previous response": (
        {"previous_response_id": f"resp_{UNKNOWN}"},
        "previous_response_id",
        "previous_response_not_found",
    ),
    "a malformed previous response": (
        {"previous_response_id": "resp_\u2028"},
        "previous_response_id",
        "previous_response_not_found",
    ),
    "an output without its call": ({"input": [OUTPUT]}, "input[0].call_id", None),
    "a call without its output": ({"input": [{"role": "user", "content": "x"}, CALL]}, "input[1].call_id", None),
    "a call id twice": ({"input": [CALL, CALL, OUTPUT]}, "input[1].call_id", None),
    "an unknown type of item": ({"input": [{"type": "wish"}]}, "input[0].type", None),
    "a hosted tool": ({"tools": [{"type": "web_search"}]}, "tools[0]", "unsupported_parameter"),
    "a stored prompt": ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
    "an unknown value to include": ({"include": ["everything"]}, "include[0]", None),
    "too few tokens": ({"max_output_tokens": 3}, "max_output_tokens", None),
    "a choice without tools": ({"tool_choice": "required"}, "tool_choice", None),
    "stream options without a stream": ({"stream_options": {"include_obfuscation": False}}, "stream_options", None),
    "a tool without a name": ({"tools": [{"type": "function"}]}, "tools[0].name", None),
    "a key of ours": ({"context_items": 1}, "context_items", "unknown_parameter"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_request_is_refused_by_its_path(client: httpx.AsyncClient, name: str) -> None:
    fields, param, code = REFUSED[name]
    error = await refused(client, 400, **fields)
    if param is not None:
        assert error["param"] == param
    if code is not None:
        assert error["code"] == code


@pytest.mark.parametrize(
    "fields", [{"conversation": f"conv_{UNKNOWN}"}, {"input": [{"type": "item_reference", "id": f"msg_{UNKNOWN}0000"}]}]
)
async def test_what_a_request_names_has_to_exist(client: httpx.AsyncClient, fields: Json) -> None:
    error = await refused(client, 404, **fields)
    assert error["param"] in {"conversation", "input[0].id"}


async def test_another_accounts_responses_and_items_do_not_exist(
    client: httpx.AsyncClient, other: httpx.AsyncClient, model: str
) -> None:
    response = await create(client, model)
    item = {"type": "item_reference", "id": response["output"][0]["id"]}
    error_of(await other.get(f"/responses/{response['id']}"), 404)
    error_of(await other.get(f"/responses/{response['id']}", params={"stream": "true"}), 404)
    error_of(await other.get(f"/responses/{response['id']}/input_items"), 404)
    error_of(await other.post(f"/responses/{response['id']}/cancel"), 404)
    error_of(await other.delete(f"/responses/{response['id']}"), 404)
    error = await refused(other, 400, model=model, previous_response_id=response["id"])
    assert error["code"] == "previous_response_not_found"
    await refused(other, 404, model=model, input=[item])
    again = await create(client, model, input=[item, {"role": "user", "content": "Go on."}])
    assert again["status"] == "completed"


@pytest.mark.parametrize("form", ["resp_x", "resp_", f"msg_{UNKNOWN}", f"job_{UNKNOWN}", "%00", f"resp_{UNKNOWN}"])
async def test_an_unknown_id_is_404_everywhere(client: httpx.AsyncClient, form: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        error_of(await client.request(method, f"/responses/{form}{path}"), 404)


async def test_a_chat_jobs_id_is_no_responses(client: httpx.AsyncClient, model: str) -> None:
    completion = (await client.post("/chat/completions", json=chat(model))).json()
    response_id = "resp_" + completion["id"].removeprefix("chatcmpl-")
    error_of(await client.get(f"/responses/{response_id}"), 404)
    error = await refused(client, 400, model=model, previous_response_id=response_id)
    assert error["code"] == "previous_response_not_found"


async def test_a_response_without_output_cannot_be_continued(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, stream(chunk("One"), gate, hang), status(400))
    running = await create(client, model, background=True)
    await settled(gate.reached)
    error = await refused(client, 400, model=model, previous_response_id=running["id"])
    assert (error["param"], error["code"]) == ("previous_response_id", "previous_response_not_completed")
    await client.post(f"/responses/{running['id']}/cancel")
    failed = await create(client, model, background=True)
    await ended(client, failed["id"], "failed")
    error = await refused(client, 400, model=model, previous_response_id=failed["id"])
    assert error["code"] == "previous_response_not_completed"


async def test_a_response_that_is_not_stored_is_gone(client: httpx.AsyncClient, model: str) -> None:
    response = await create(client, model, store=False)

    async def gone() -> bool:
        return (await client.get(f"/responses/{response['id']}")).status_code == 404

    await eventually(gone, "the erasure of a response that is not stored")
    error = await refused(client, 400, model=model, previous_response_id=response["id"])
    assert error["code"] == "previous_response_not_found"


async def test_a_response_that_is_not_to_be_stored_cannot_be_continued(client: httpx.AsyncClient, model: str) -> None:
    response = await create(client, model, background=True, store=False)
    await ended(client, response["id"], "completed")
    kept = (await client.get(f"/responses/{response['id']}")).json()
    error = await refused(client, 400, model=model, previous_response_id=response["id"])
    assert error["code"] == "previous_response_not_found"
    await refused(client, 404, model=model, input=[{"type": "item_reference", "id": kept["output"][0]["id"]}])


async def test_an_item_is_referred_to_once(client: httpx.AsyncClient, model: str) -> None:
    response = await create(client, model)
    item = {"type": "item_reference", "id": response["output"][0]["id"]}
    error = await refused(client, 400, model=model, input=[item, item])
    assert error["param"] == "input[1].id"


async def test_items_that_are_referred_to_have_at_most_the_bytes_of_a_body(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    large = [{"role": "user", "content": "x" * 150_000}]  # of 256 KiB
    references = []
    for _ in range(2):
        provider.script(model, answer("Yes."))
        response = await create(client, model, input=large)
        page = (await client.get(f"/responses/{response['id']}/input_items")).json()
        references.append({"type": "item_reference", "id": page["data"][0]["id"]})
    error = await refused(client, 400, model=model, input=references)
    assert (error["param"], error["code"]) == ("input", "context_too_long")


@pytest.mark.parametrize("header", ["x", "-1", str(2**40), "9" * 5000])
async def test_a_last_event_that_is_no_number_is_refused(client: httpx.AsyncClient, model: str, header: str) -> None:
    response = await create(client, model)
    answered = await client.get(
        f"/responses/{response['id']}", params={"stream": "true"}, headers={"last-event-id": header}
    )
    assert error_of(answered, 400)["param"] == "Last-Event-ID"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"stream": "true", "starting_after": "x"}, "starting_after"),
        ({"stream": "true", "starting_after": "-1"}, "starting_after"),
        ({"stream": "true", "starting_after": str(2**40)}, "starting_after"),
        ({"starting_after": "1"}, "starting_after"),
        ({"include": "everything"}, "include"),
        ({"what": "1"}, "what"),
        ({"stream": "maybe"}, "stream"),
    ],
)
async def test_a_query_is_refused_by_its_name(client: httpx.AsyncClient, model: str, query: Json, param: str) -> None:
    response = await create(client, model)
    error = error_of(await client.get(f"/responses/{response['id']}", params=query), 400)
    assert str(error["param"]).startswith(param)


async def test_only_a_background_response_that_runs_can_be_cancelled(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    foreground = await create(client, model)
    error_of(await client.post(f"/responses/{foreground['id']}/cancel"), 400)
    provider.script(model, answer("Done."), status(400))
    for expected in ("completed", "failed"):
        response = await create(client, model, background=True)
        await ended(client, response["id"], expected)
        error = error_of(await client.post(f"/responses/{response['id']}/cancel"), 400)
        assert expected in error["message"]


async def test_a_page_of_input_items_is_checked(client: httpx.AsyncClient, model: str) -> None:
    response = await create(client, model, input=[{"role": "user", "content": str(n)} for n in range(5)])
    path = f"/responses/{response['id']}/input_items"
    for query in ({"limit": "0"}, {"limit": "101"}, {"after": "msg_1"}, {"order": "up"}):
        error_of(await client.get(path, params=query), 400)
    for order in ("asc", "desc"):
        found: list[Json] = []
        page: Json = {"has_more": True, "last_id": None}
        while page["has_more"]:
            query = {"limit": "2", "order": order} | ({"after": page["last_id"]} if page["last_id"] else {})
            page = (await client.get(path, params=query)).json()
            found += page["data"]
        texts = [item["content"][0]["text"] for item in found]
        assert texts == (list("01234") if order == "asc" else list("43210"))
        assert len({item["id"] for item in found}) == 5


async def test_a_body_that_is_too_large_writes_nothing(client: httpx.AsyncClient, model: str) -> None:
    body = b'{"model":"%b","input":"%b"}' % (model.encode(), b"x" * 100_000_000)
    error_of(await client.post("/responses", content=body), 413)
    jobs = (await client.get("/jobs", params={"model": model})).json()
    assert jobs["data"] == []


async def test_a_chain_has_at_most_the_bytes_of_a_body(client: httpx.AsyncClient, model: str) -> None:
    large = {"input": [{"role": "user", "content": "x" * 150_000}]}  # of 256 KiB
    first = await create(client, model, **large)
    error = await refused(client, 400, model=model, previous_response_id=first["id"], **large)
    assert error["code"] == "context_too_long"
