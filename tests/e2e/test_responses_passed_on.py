"""A client of the Responses API on a provider that speaks it: all but ids, times and numbers is the provider's."""

from __future__ import annotations

import json
import secrets
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.jobs import refused
from tests.e2e.test_responses import blocks_of, stream_of
from tests.fakes.formats import Said, responses_events, responses_whole
from tests.fakes.provider import RESET, Gate, Json, Provider, answer, raw, settled, status, stream, usage_of

SEARCH: Json = {
    "id": "ws_upstream",
    "type": "web_search_call",
    "status": "completed",
    "action": {"type": "search", "query": "mill", "sources": [{"type": "url", "url": "https://example.com"}]},
}
NEW: Json = {"id": "qz_upstream", "type": "quantum_call", "spin": [1, None, {"deep": "value"}]}
TOOLS: Json = {
    "tools": [{"type": "web_search", "filters": {"allowed_domains": ["example.com"]}}],
    "include": ["web_search_call.action.sources"],
}


@pytest.fixture
def model() -> str:
    return f"responses-x{secrets.token_hex(6)}"


def events_of(body: bytes) -> list[Json]:
    """Return the events of a stream, whose schemas are the provider's own."""
    return [json.loads(block.partition(b"\ndata: ")[2]) for block in blocks_of(body)]


async def create(client: httpx.AsyncClient, model: str, **fields: Any) -> Json:
    answered = await client.post("/responses", json={"model": model, "input": "Hi", **fields})
    assert answered.status_code == 200, answered.text
    return dict(answered.json())


def said(model: str, **more: Any) -> Said:
    return Said(model, ["It ", "turns."], usage_of(12, 3), **more)


def with_tools(model: str) -> tuple[Json, list[Json]]:
    """Return a response with a hosted tool and what is newer than Headrace, and its events."""
    whole, events = responses_whole(said(model)), responses_events(said(model))
    shifted = [{**event, "output_index": 2} if "output_index" in event else event for event in events[2:-1]]
    whole = {**whole, "output": [SEARCH, NEW, *whole["output"]], "mood": {"calm": True}}
    at = {"item_id": "ws_upstream", "output_index": 0}
    between = [
        {"type": "response.output_item.added", "output_index": 0, "item": {**SEARCH, "status": "in_progress"}},
        *({"type": f"response.web_search_call.{step}", **at} for step in ("in_progress", "searching", "completed")),
        {"type": "response.output_item.done", "output_index": 0, "item": SEARCH},
        {"type": "response.output_item.added", "output_index": 1, "item": NEW},
        {"type": "response.quantum_call.spun", "item_id": "qz_upstream", "output_index": 1, "spin": 0.50, "newer": []},
        {"type": "response.output_item.done", "output_index": 1, "item": NEW},
    ]
    events = [*events[:2], *between, *shifted, {"type": "response.completed", "response": whole}]
    return whole, [{**event, "sequence_number": number} for number, event in enumerate(events)]


def as_sent(value: Json, ids: Json) -> Json:
    """Return JSON of the provider with the ids that its client has for these."""
    text = json.dumps(value)
    for theirs, ours in ids.items():
        text = text.replace(f'"{theirs}"', f'"{ours}"')
    return dict(json.loads(text))


async def test_a_whole_response(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    whole, _ = with_tools(model)
    provider.script(model, raw(json.dumps(whole).encode()))
    response = await create(client, model, newer={"a": [1]}, metadata={"b": "c"}, background=False, **TOOLS)
    sent = provider.calls_for(model)[0].body
    assert {name: sent[name] for name in TOOLS} == TOOLS
    assert (sent["newer"], sent["store"], sent["stream"]) == ({"a": [1]}, False, False)
    assert not sent.keys() & {"background", "context_items", "messages"}
    ids = {theirs["id"]: ours["id"] for theirs, ours in zip(whole["output"], response["output"], strict=True)}
    assert response["output"] == as_sent(whole, ids)["output"]
    assert response["mood"] == {"calm": True}
    assert response["usage"]["total_tokens"] == 15
    assert (response["store"], response["metadata"]) == (True, {"b": "c"})
    assert response["id"] != whole["id"]
    assert (await client.get(f"/responses/{response['id']}")).json() == response
    job = (await client.get(f"/jobs/job_{response['id'][5:]}")).json()
    assert job["usage"]["total_tokens"] == 15
    # The stream that it would have had.
    events = events_of(await stream_of(client, response["id"]))
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == response["output"]


@pytest.mark.parametrize("background", [False, True])
async def test_a_stream(client: httpx.AsyncClient, provider: Provider, model: str, background: bool) -> None:
    _, theirs = with_tools(model)
    provider.script(model, stream(*theirs))
    body = {"model": model, "input": "Hi", "stream": True, "background": background, **TOOLS}
    answered = await client.post("/responses", json=body)
    events = events_of(answered.content)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    ours = events[3 if background else 2 : -1]
    ids = {one["item"]["id"]: two["item"]["id"] for one, two in zip(theirs[2:-1], ours, strict=True) if "item" in one}
    for one, two in zip(theirs[2:-1], ours, strict=True):
        assert {**two, "sequence_number": one["sequence_number"]} == as_sent(one, ids)
    response = events[-1]["response"]
    assert response["output"] == as_sent(theirs[-1]["response"], ids)["output"]
    assert response["mood"] == {"calm": True}
    assert (await client.get(f"/responses/{response['id']}")).json() == response
    assert blocks_of(await stream_of(client, response["id"])) == blocks_of(answered.content)


async def test_a_tool_of_the_providers_is_seen_while_it_runs(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    _, theirs = with_tools(model)
    gate = Gate()
    provider.script(model, stream(*theirs[:4], gate, *theirs[4:]))
    seen = b""
    async with client.stream("POST", "/responses", json={"model": model, "input": "Hi", "stream": True}) as answered:
        async for piece in answered.aiter_bytes():
            seen += piece
            if b"response.web_search_call.in_progress" in seen:
                gate.release()
    assert events_of(seen)[-1]["type"] == "response.completed"


async def test_the_next_turn_has_its_context_and_the_encrypted_thoughts(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    calls = [("call_1", "f", {"a": 1})]
    provider.script(model, answer("I call.", thoughts=["Hm."], calls=calls), answer("Done."))
    first = await create(client, model, reasoning={"effort": "low"})
    output = {"type": "function_call_output", "call_id": "call_1", "output": "1"}
    await create(client, model, input=[output], previous_response_id=first["id"])
    sent = provider.calls_for(model)[1].body
    assert not sent.keys() & {"previous_response_id", "conversation", "context_items"}
    kinds = [item["type"] for item in sent["input"]]
    assert kinds == ["message", "reasoning", "message", "function_call", "function_call_output"]
    thought = sent["input"][1]
    assert thought["encrypted_content"] == "c2ln"
    assert "id" not in thought  # it would have to be the provider's
    assert sent["input"][3]["call_id"] == "call_1"


async def test_a_refusal_and_a_failure_of_the_moment(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    error = {"message": "No such tool.", "type": "invalid_request_error", "param": "tools[0]", "code": "invalid_value"}
    provider.script(model, status(400, {"error": error}), status(429), answer("At last."))
    response = await client.post("/responses", json={"model": model, "input": "Hi"})
    refused(response, 400, param="tools[0]")
    assert "No such tool." in response.json()["error"]["message"]
    assert (await create(client, model))["status"] == "completed"
    assert len(provider.calls_for(model)) == 3


@pytest.mark.parametrize("end", ["failed", "half", "reset"])
async def test_a_stream_that_breaks_fails(client: httpx.AsyncClient, provider: Provider, model: str, end: str) -> None:
    theirs = responses_events(said(model))
    error = {"code": "server_error", "message": "It broke."}
    failed = {**theirs[-1]["response"], "status": "failed", "output": [], "error": error}
    last: list[Any] = {
        "failed": [0.2, {"type": "response.failed", "response": failed}],
        "half": [],
        "reset": [0.2, RESET],
    }[end]
    provider.script(model, stream(*theirs[:5], *last))
    answered = await client.post("/responses", json={"model": model, "input": "Hi", "stream": True})
    events = events_of(answered.content)
    assert [event["type"] for event in events if "delta" in event] == ["response.output_text.delta"]
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["status"] == "failed"


async def test_a_background_response_goes_on_behind_a_lost_attempt(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    theirs = responses_events(said(model))
    provider.script(model, stream(*theirs[:5], gate, RESET), stream(*theirs))
    response = await create(client, model, background=True)
    await settled(gate.reached)
    seen = b""
    async with client.stream("GET", f"/responses/{response['id']}?stream=true") as answered:
        async for piece in answered.aiter_bytes():
            seen += piece
            if b"response.output_text.delta" in seen:
                gate.release()
    events = events_of(seen)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [(item["status"], item["content"][0]["text"]) for item in done] == [
        ("incomplete", "It "),
        ("completed", "It turns."),
    ]
    assert events[-1]["response"]["output"] == done[1:]


async def test_openais_client_works_unmodified(
    openai_client: openai.AsyncOpenAI, provider: Provider, model: str
) -> None:
    provider.script(model, answer("Hello.", thoughts=["Hm."]), answer("Hello.", calls=[("call_1", "f", {"a": 1})]))
    async with openai_client.responses.stream(model=model, input="Hi") as events:
        final = await events.get_final_response()
    assert final.output_text == "Hello."
    assert final.output[0].type == "reasoning"
    response = await openai_client.responses.create(model=model, input="Hi", previous_response_id=final.id)
    assert response.output[1].type == "function_call"
