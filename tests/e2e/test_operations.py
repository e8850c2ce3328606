"""What operators and tools look at: health, readiness, models, the OpenAPI document, request ids."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from tests.e2e.jobs import chat, refused
from tests.service import Service
from tests.waiting import until


@pytest.fixture
async def root(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.base_url, timeout=30, verify=False) as client:
        yield client


async def test_health_and_readiness_answer_without_a_key(root: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/readyz"):
        response = await root.get(path)
        assert response.status_code == 200, path
        assert response.headers["x-request-id"]


async def test_the_openapi_document_has_schemas_and_examples(root: httpx.AsyncClient) -> None:
    document = (await root.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.")
    paths = document["paths"]
    chat_path = next(path for path in paths if path.endswith("/chat/completions"))
    for suffix in ("/jobs", "/jobs/{job_id}", "/jobs/{job_id}/events", "/jobs/{job_id}/cancel", "/models"):
        assert any(path.endswith(suffix) for path in paths), f"{suffix} in {sorted(paths)}"
    operation = paths[chat_path]["post"]
    content = operation["requestBody"]["content"]["application/json"]

    def resolved(schema: dict[str, object]) -> dict[str, object]:
        while "$ref" in schema:
            found: object = document
            for part in str(schema["$ref"]).removeprefix("#/").split("/"):
                assert isinstance(found, dict)
                found = found[part]
            assert isinstance(found, dict)
            schema = found
        return schema

    request = resolved(content["schema"])
    properties = request["properties"]
    assert isinstance(properties, dict)
    assert {"model", "messages", "temperature", "tools", "stream", "background"} <= properties.keys()
    assert "examples" in content or "example" in content or "examples" in request or "example" in request
    answer = operation["responses"]["200"]["content"]["application/json"]
    assert "choices" in str(resolved(answer["schema"]))
    assert {"401", "404", "429"} & operation["responses"].keys()
    assert "/v1" in str(document.get("servers", "")) + chat_path


async def test_models_are_listed_as_openai_does(client: httpx.AsyncClient) -> None:
    body = (await client.get("/models")).json()
    assert body["object"] == "list"
    entries = {entry["id"]: entry for entry in body["data"]}
    assert {"renamed", "absent"} <= entries.keys()
    assert not [name for name in entries if "*" in name]
    for entry in entries.values():
        assert entry["object"] == "model"
        assert isinstance(entry["created"], int)
        assert isinstance(entry["owned_by"], str)
    assert (await client.get("/models/renamed")).json() == entries["renamed"]


async def test_a_model_that_is_not_there_is_not_found(client: httpx.AsyncClient) -> None:
    refused(await client.get("/models/no-such-model"), 404, code="model_not_found")


async def test_every_answer_has_a_request_id_of_its_own(
    client: httpx.AsyncClient, anonymous: httpx.AsyncClient
) -> None:
    answers = [
        await client.get("/models"),
        await client.get("/jobs/x"),
        await client.get("/nowhere"),
        await client.post("/chat/completions", content=b"{"),
        await anonymous.get("/models"),
    ]
    assert len({response.headers["x-request-id"] for response in answers}) == len(answers)


async def test_a_request_id_cannot_smuggle_a_header_or_a_log_line(client: httpx.AsyncClient) -> None:
    for request_id in ("a" * 10_000, "a b", "a\tb", "a;b=c", 'a"b', "a,b", "é"):
        response = await client.get("/models", headers=[(b"x-request-id", request_id.encode())])
        assert re.fullmatch(r"req_[0-9a-f]+", response.headers["x-request-id"]), request_id[:10]


async def test_an_answer_is_not_cached_by_who_is_between(client: httpx.AsyncClient, model: str) -> None:
    response = await client.post("/chat/completions", json=chat(model))
    assert "public" not in response.headers.get("cache-control", "")


def test_the_comparison_shows_when_each_process_was_last_seen(service: Service) -> None:
    def shown() -> list[str]:
        return [line for line in service.command("config", "compare").stdout.splitlines() if "scheduler" in line]

    *_, date, time = until(shown, "the scheduler's digests")[0].split()
    assert abs(datetime.fromisoformat(f"{date}T{time}+00:00") - datetime.now(UTC)) < timedelta(days=1)
