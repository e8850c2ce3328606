"""Batches of requests to the Responses API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import openai
from openai.types.responses import Response

from tests.e2e.batches import jsonl, output, reaches, submit
from tests.e2e.jobs import refused
from tests.e2e.test_cli_batch import read, run
from tests.e2e.test_native_batches import desk, native_client, native_model, shared_desk
from tests.fakes.provider import Json, Provider, answer, status
from tests.service import Service, connect
from tests.waiting import eventually

__all__ = ["desk", "native_client", "native_model", "shared_desk"]

ENDPOINT = "/v1/responses"
UNKNOWN = "resp_" + "0" * 32


def line(custom_id: str, model: str, text: str = "hello there", **fields: Any) -> Json:
    """Return a line of a batch's input; `fields` are its body's."""
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": ENDPOINT,
        "body": {"model": model, "input": text, **fields},
    }


def lines(model: str, count: int, **fields: Any) -> list[Json]:
    return [line(f"r{number}", model, f"say {number}", **fields) for number in range(1, count + 1)]


def responses(results: list[Json]) -> list[Response]:
    """Return the responses in the lines of an output, as OpenAI's client has them."""
    return [Response.model_validate(result["response"]["body"], strict=False) for result in results]


async def test_the_openai_client_runs_a_batch_of_responses(openai_client: openai.AsyncOpenAI, model: str) -> None:
    file = await openai_client.files.create(file=("in.jsonl", jsonl(lines(model, 3))), purpose="batch")
    batch = await openai_client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    assert batch.endpoint == ENDPOINT

    async def ended() -> bool:
        return (await openai_client.batches.retrieve(batch.id)).status == "completed"

    await eventually(ended, "the batch to end")
    batch = await openai_client.batches.retrieve(batch.id)
    assert batch.output_file_id is not None
    content = await openai_client.files.content(batch.output_file_id)
    answers = responses([json.loads(found) for found in content.text.splitlines()])
    assert [each.output_text for each in answers] == [f"You said: say {number}" for number in (1, 2, 3)]
    assert [each.status for each in answers] == ["completed"] * 3
    assert batch.usage is not None
    assert batch.usage.total_tokens == sum(each.usage.total_tokens for each in answers if each.usage is not None) > 0


async def test_its_lines_are_jobs_whose_result_is_the_response(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, answer("Cut o", finish="length"))
    done = await reaches(client, (await submit(client, lines(model, 1), endpoint=ENDPOINT))["id"], "completed")
    [job] = (await client.get("/jobs", params={"batch_id": done["id"]})).json()["data"]
    [result] = await output(client, done["output_file_id"])
    assert (job["format"], job["custom_id"], job["service_tier"]) == ("responses", "r1", "batch")
    assert result["response"] == {"status_code": 200, "request_id": job["id"], "body": job["result"]}
    assert (job["result"]["status"], job["result"]["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    assert not any(call.streamed for call in provider.calls_for(model))


async def test_its_lines_may_be_in_the_request_itself(client: httpx.AsyncClient, model: str) -> None:
    bare = [{"custom_id": found["custom_id"], "body": found["body"]} for found in lines(model, 2)]
    created = await client.post("/batches", json={"requests": bare, "endpoint": ENDPOINT})
    assert created.status_code == 200, created.text
    done = await reaches(client, created.json()["id"], "completed")
    assert [each.output_text for each in responses(await output(client, done["output_file_id"]))] == [
        "You said: say 1",
        "You said: say 2",
    ]


async def test_a_line_that_fails_is_in_the_error_file(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.always(model, status(400, {"error": {"message": "No.", "code": "bad"}}))
    done = await reaches(client, (await submit(client, lines(model, 1), endpoint=ENDPOINT))["id"], "completed")
    assert done["request_counts"] == {"total": 1, "completed": 0, "failed": 1}
    [failed] = await output(client, done["error_file_id"])
    assert failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"]["code"] == "bad"


async def test_what_a_line_cannot_have_is_told_by_its_field(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    reference = [{"role": "user", "content": "hello"}, {"id": "msg_" + "0" * 36}]
    wrong = [
        line("ok", model),
        line("stream", model, stream=True),
        line("webhook", model, webhook="https://example.com"),
        line("previous", model, previous_response_id=UNKNOWN),
        line("conversation", model, conversation="conv_" + "0" * 32),
        {**line("reference", model), "body": {"model": model, "input": reference}},
        {**line("url", model), "url": "/v1/chat/completions"},
        line("temperature", model, temperature=7),
        line("hosted", model, tools=[{"type": "web_search"}]),
        line("model", "no-such-model"),
        {**line("chat", model), "body": {"model": model, "messages": [{"role": "user", "content": "hello"}]}},
    ]
    failed = await reaches(client, (await submit(client, wrong, endpoint=ENDPOINT))["id"], "failed")
    assert [(error["line"], error["param"]) for error in failed["errors"]["data"]] == [
        (2, "body.stream"),
        (3, "body.webhook"),
        (4, "body.previous_response_id"),
        (5, "body.conversation"),
        (6, "body.input[1]"),
        (7, "url"),
        (8, "body.temperature"),
        (9, "body.tools[0]"),
        (10, "body.model"),
        (11, "body.input"),
    ]
    assert provider.calls_for(model) == []


async def test_a_line_may_say_that_it_is_not_in_the_background(client: httpx.AsyncClient, model: str) -> None:
    data = [line("a", model, background=False, stream=False, previous_response_id=None)]
    await reaches(client, (await submit(client, data, endpoint=ENDPOINT))["id"], "completed")


async def test_an_unknown_endpoint_is_refused(client: httpx.AsyncClient, model: str) -> None:
    bare = [{"custom_id": "a", "body": {"model": model, "input": "hello"}}]
    refused(
        await client.post("/batches", json={"requests": bare, "endpoint": "/v1/moderations"}), 400, param="endpoint"
    )


async def test_it_runs_under_a_rate_and_a_budget(service: Service, model: str) -> None:
    key = service.create_key(f"limited-{model}", "--daily-budget", "1", "--tpm", "100000")
    async with connect(service, key["key"]) as client:
        batch = await submit(client, lines(model, 3, max_output_tokens=100), endpoint=ENDPOINT)
        done = await reaches(client, batch["id"], "completed")
    assert done["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert float(done["cost"]) > 0


async def test_a_providers_own_batch_api_runs_it(
    native_client: httpx.AsyncClient, provider: Provider, native_model: str
) -> None:
    data = lines(native_model, 2, instructions="Be brief.")
    done = await reaches(native_client, (await submit(native_client, data, endpoint=ENDPOINT))["id"], "completed")
    results = await output(native_client, done["output_file_id"])
    assert [each.output_text for each in responses(results)] == ["You said: say 1", "You said: say 2"]
    assert len(provider.native.batches_for(native_model)) == 1
    jobs = (await native_client.get("/jobs", params={"batch_id": done["id"]})).json()["data"]
    assert {job["result"]["id"] for job in jobs} == {job["id"].replace("job_", "resp_") for job in jobs}
    assert {job["result"]["instructions"] for job in jobs} == {"Be brief."}


def test_the_command_line_runs_it(service: Service, tmp_path: Path, model: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(jsonl(lines(model, 2)))
    _, said = run(service, tmp_path, "run", "in.jsonl")
    assert "2 of 2 answered, 0 failed" in said
    assert [each.output_text for each in responses(read(tmp_path / "in.out.jsonl"))] == [
        "You said: say 1",
        "You said: say 2",
    ]
    (tmp_path / "in.jsonl").write_bytes(jsonl([line("a", model), {**line("b", model), "url": "/v1/chat/completions"}]))
    _, said = run(service, tmp_path, "run", "in.jsonl", code=2)
    assert "in.jsonl:2:" in said
    assert "/v1/responses" in said


async def test_a_line_may_ask_an_agent(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    described = {
        "name": "Miller",
        "bio": "You run a mill.",
        "model": model,
        "parameters": {"max_completion_tokens": 99},
    }
    agent = (await client.post("/agents", json=described)).json()
    data = [line("a", agent["id"], instructions="Be brief.")]
    done = await reaches(client, (await submit(client, data, endpoint=ENDPOINT))["id"], "completed")
    [job] = (await client.get("/jobs", params={"batch_id": done["id"]})).json()["data"]
    assert (job["agent_id"], job["model"]) == (agent["id"], model)
    [call] = provider.calls_for(model)
    assert call.body["messages"][0]["content"] == "You are Miller.\nYou run a mill.\n\nBe brief."
    assert call.body["max_completion_tokens"] == 99


async def test_an_agents_default_without_a_place_is_refused(client: httpx.AsyncClient, model: str) -> None:
    described = {"name": "Miller", "model": model, "parameters": {"stop": ["x"]}}
    agent = (await client.post("/agents", json=described)).json()
    failed = await reaches(client, (await submit(client, [line("a", agent["id"])], endpoint=ENDPOINT))["id"], "failed")
    assert [(error["line"], error["param"]) for error in failed["errors"]["data"]] == [(1, "body.model")]


async def test_a_lines_response_is_read_and_continued(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    done = await reaches(client, (await submit(client, lines(model, 1), endpoint=ENDPOINT))["id"], "completed")
    [result] = await output(client, done["output_file_id"])
    body = result["response"]["body"]
    assert (await client.get(f"/responses/{body['id']}")).json() == body
    [item] = (await client.get(f"/responses/{body['id']}/input_items")).json()["data"]
    assert item["content"][0]["text"] == "say 1"
    asked = {"model": model, "input": "And then?", "previous_response_id": body["id"]}
    assert (await client.post("/responses", json=asked)).status_code == 200
    assert [message["role"] for message in provider.calls_for(model)[-1].body["messages"]] == [
        "user",
        "assistant",
        "user",
    ]
