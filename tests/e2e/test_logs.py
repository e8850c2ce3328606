"""The logs of every process, in both formats: a line for each request and attempt, and nothing that anyone wrote."""

from __future__ import annotations

import json
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.batches import lines, reaches
from tests.e2e.batches import submit as submit_batch
from tests.e2e.jobs import chat, completed, ended, submit
from tests.fakes.provider import Provider, answer, chunk, raw, status, stream
from tests.service import BOOTSTRAP_KEY, PROVIDER_KEY, Service, Stores, connect, running_service
from tests.waiting import until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def in_json(tmp_path_factory: pytest.TempPathFactory, stores: Stores, config: str) -> Iterator[Service]:
    environment = {"HEADRACE_LOG_FORMAT": "json"}
    directory = tmp_path_factory.mktemp("json")
    with running_service(directory, stores.fresh(), config, environment=environment) as service:
        yield service


def objects(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log, each of which has to be a JSON object."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert all({"time", "level", "logger", "part", "message"} <= line.keys() for line in found)
    return found


def line_of(service: Service, name: str, **ids: object) -> dict[str, Any]:
    """Return the only line of a process's log with these ids, once it is there: it follows the answer."""
    path = service.directory / f"{name}.log"
    [line] = until(lambda: [line for line in objects(path) if ids.items() <= line.items()], f"{ids} in {path}")
    return line


async def test_a_request_and_its_attempt_have_a_line_each(in_json: Service, provider: Provider, model: str) -> None:
    provider.script(model, stream(chunk("a"), chunk("b", finish="stop")))
    async with connect(in_json, BOOTSTRAP_KEY) as client:
        headers = {"traceparent": PARENT, "x-request-id": f"r-{model}"}
        answered = await client.post("/chat/completions", json=chat(model, stream=True), headers=headers)
    job_id = answered.headers["x-headrace-job"]
    line = line_of(in_json, "api", request=f"r-{model}")
    assert 0 < line.pop("seconds") < 60
    assert line.pop("account")
    assert {**line, "time": ""} == {
        "time": "",
        "level": "INFO",
        "logger": "api.http.middleware",
        "part": "api",
        "message": line["message"],
        "request": f"r-{model}",
        "trace": TRACE,
        "job": job_id,
        "method": "POST",
        "route": "/chat/completions",
        "status": 200,
    }
    line = line_of(in_json, "worker", job=job_id)
    assert (line["attempt"], line["outcome"], line["provider"], line["model"]) == (1, "completed", "fake", model)
    assert 0 <= line["first_delta_seconds"] <= line["seconds"]
    assert line["prompt_tokens"] > 0 < line["completion_tokens"]


async def test_an_attempt_that_failed_says_why(in_json: Service, provider: Provider, model: str) -> None:
    provider.script(model, status(500), answer("a"))
    async with connect(in_json, BOOTSTRAP_KEY) as client:
        job_id = await submit(client, model)
        await completed(client, job_id)
    for attempt, outcome, error in ((1, "failed", "UpstreamError 502"), (2, "completed", "")):
        line = line_of(in_json, "worker", job=job_id, attempt=attempt)
        assert (line["level"], line["outcome"]) == ("INFO", outcome)
        assert line.get("error", "").startswith(error)


async def test_a_clients_mistake_is_no_trouble_of_ours(in_json: Service) -> None:
    async with connect(in_json, BOOTSTRAP_KEY) as client:
        unknown = await client.get("/a-path-that-may-be-a-secret", headers={"traceparent": PARENT.upper()})
        wrong = await client.post("/chat/completions", json={})
        missing = await client.get("/jobs/job_0", headers={"authorization": "Bearer hr_wrong-0123456789012345"})
    for response, route, code in (
        (unknown, "(no endpoint)", 404),
        (wrong, "/chat/completions", 400),
        (missing, "/jobs/{job_id}", 401),
    ):
        line = line_of(in_json, "api", request=response.headers["x-request-id"])
        assert (line["level"], line["route"], line["status"]) == ("INFO", route, code)
        assert "trace" not in line


async def test_a_request_that_names_a_job_by_its_answer_has_the_jobs_id(in_json: Service, model: str) -> None:
    async with connect(in_json, BOOTSTRAP_KEY) as client:
        job_id = (await client.post("/responses", json={"model": model, "input": "Hi"})).headers["x-headrace-job"]
        digits = job_id.removeprefix("job_")
        conversation_id = (await client.post("/conversations", json={})).json()["id"]
        for path, ids in (
            (f"/responses/resp_{digits}", {"job": job_id}),
            (f"/responses/resp_{digits}/input_items", {"job": job_id}),
            (f"/chat/completions/chatcmpl-{digits}", {"job": job_id}),
            (f"/conversations/{conversation_id}/items", {"conversation": conversation_id}),
            (f"/batches/batch_{digits}", {"batch": f"batch_{digits}"}),
        ):
            answered = await client.get(path)
            line = line_of(in_json, "api", request=answered.headers["x-request-id"])
            assert line.items() >= ids.items()


def test_bytes_that_are_no_request_have_one_line_at_info(in_json: Service) -> None:
    url = urlsplit(in_json.base_url)
    with socket.create_connection((url.hostname, url.port), timeout=60) as connection:
        connection.sendall(b"\x16\x03 no request\r\n\r\n")
        with connection.makefile("rb") as answer:
            [request_id] = re.findall(rb"x-request-id: (\S+)", answer.read())
    line = line_of(in_json, "api", request=request_id.decode())
    assert (line["level"], line["logger"]) == ("INFO", "api.http.connection")
    assert "no request" not in json.dumps(objects(in_json.directory / "api.log"))
    warnings = [line for line in objects(in_json.directory / "api.log") if line["level"] == "WARNING"]
    assert "uvicorn.error" not in {line["logger"] for line in warnings}


def test_probes_have_no_line(in_json: Service) -> None:
    httpx.get(f"{in_json.base_url}/readyz").raise_for_status()
    assert not [line for line in objects(in_json.directory / "api.log") if line.get("route") == "/readyz"]


@pytest.mark.parametrize("part", ["worker", "scheduler"])
def test_every_line_of_a_part_from_its_start_to_its_end_is_an_object(in_json: Service, part: str) -> None:
    process = in_json.launch(f"{part}-2")
    until(lambda: process.log.exists() and "ready: " in process.log.read_text(), f"a second {part}")
    assert process.terminate() == 0
    del in_json.processes[f"{part}-2"]
    assert {line["part"] for line in objects(process.log)} == {part}


@pytest.mark.parametrize("form", ["text", "json"])
async def test_no_log_has_a_prompt_an_answer_or_a_key(
    service: Service, in_json: Service, provider: Provider, model: str, form: str
) -> None:
    logged = service if form == "text" else in_json
    prompt, said, key = (f"{what}{secrets.token_hex(8)}" for what in ("prompt", "answer", "hr_wrong-but-another-s-"))
    quoted = {"error": {"message": prompt, "type": prompt, "param": prompt, "code": prompt}}
    failures = [status(code, quoted) for code in (400, 401, 429, 500)] + [
        raw(f"<p>{prompt} {PROVIDER_KEY}</p>".encode(), code=500, content_type="text/html"),
        raw(f"{{{prompt}".encode()),
        stream(chunk(said), {"error": {"message": f"{prompt} {PROVIDER_KEY}"}}),
        stream(chunk(said), f"data: {prompt}\n\n".encode()),
    ]
    async with connect(logged, BOOTSTRAP_KEY) as client:
        for failure in failures:
            provider.script(model, failure)
            await client.post("/chat/completions", json=chat(model, prompt, stream=True))
        provider.always(model, answer(said))
        assert said in (await client.post("/chat/completions", json=chat(model, prompt))).text
        assert said in (await client.post("/chat/completions", json=chat(model, prompt, stream=True))).text
        response = await client.post("/responses", json={"model": model, "input": prompt, "instructions": prompt})
        assert said in response.text
        job = await ended(client, await submit(client, model, prompt, metadata={"a": prompt}, user=prompt))
        batch = await submit_batch(client, lines(model, 3, user=prompt))
        await reaches(client, batch["id"], "completed")
        for wrong in (
            {"role": prompt, "content": prompt},
            {"role": "user", "content": [{"type": "text", "text": [prompt]}]},
        ):
            refused = await client.post("/chat/completions", json={"model": model, "messages": [wrong], prompt: prompt})
            assert refused.status_code == 400
        await client.post("/chat/completions", content=f'{{"{prompt}'.encode())
        await client.get(f"/jobs/{prompt}?after={prompt}")
        await client.get(f"/{prompt}?{prompt}={prompt}", headers={"authorization": f"Bearer {key}"})
        await client.get("/jobs", headers={"x-api-key": key})
        last = await client.get("/jobs", headers={"authorization": f"Basic {key}"})
    until(lambda: last.headers["x-request-id"] in logged.logs(), "the line of the last request")
    logs = logged.logs()
    assert job["id"] in logs
    assert model in logs
    for marker in (prompt, said, key, PROVIDER_KEY, BOOTSTRAP_KEY):
        assert marker not in logs
    if form == "json":
        for path in logged.directory.glob("*.log"):
            objects(path)
