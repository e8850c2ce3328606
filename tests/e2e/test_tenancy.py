"""An id of another account is answered as an id that never was, on every path that takes one."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from api.app import create_app
from headrace.settings import Settings
from tests.e2e.jobs import chat, completed, submit
from tests.service import Service, connect

Json = dict[str, Any]

PATHS = create_app(Settings()).openapi()["paths"]
OPERATIONS = [
    (method.upper(), path.removeprefix("/api/v1"))
    for path in PATHS
    for method in PATHS[path]
    if re.search(r"\{\w+_id\}", path)
]
BODIES: dict[str, Json] = {
    "/agents/{agent_id}": {"name": "mine"},
    "/api-keys/{key_id}": {"name": "mine"},
    "/conversations/{conversation_id}": {"metadata": {"whose": "mine"}},
    "/conversations/{conversation_id}/items": {"items": [{"role": "user", "content": "mine"}]},
    "/chat/completions/{completion_id}": {"metadata": {"whose": "mine"}},
}


@pytest.fixture
async def ids(service: Service, client: httpx.AsyncClient, model: str) -> Json:
    """One of everything, of an account of this test's own, by the names that paths have for ids."""
    key = service.create_key(f"owner-{model}", "--scope", "keys:write", "--scope", "webhooks:write")
    async with connect(service, key["key"]) as owner:
        job_id = await submit(owner, model, webhook="http://127.0.0.1:9/")
        await completed(owner, job_id)
        agent = (await owner.post("/agents", json={"name": "theirs", "model": model})).json()
        batch = (await owner.post("/batches", json={"requests": [{"custom_id": "1", "body": chat(model)}]})).json()
        conversation = (await owner.post("/conversations", json={"items": [{"role": "user", "content": "hi"}]})).json()
        items = (await owner.get(f"/conversations/{conversation['id']}/items")).json()
        response = (await owner.post("/responses", json={"model": model, "input": "hi", "background": True})).json()
        delivery = (await owner.get(f"/jobs/{job_id}/webhook-deliveries")).json()["data"][0]
    return {
        "job_id": job_id,
        "completion_id": f"chatcmpl-{job_id.removeprefix('job_')}",
        "agent_id": agent["id"],
        "batch_id": batch["id"],
        "file_id": batch["input_file_id"],
        "delivery_id": delivery["id"],
        "conversation_id": conversation["id"],
        "item_id": items["last_id"],
        "response_id": response["id"],
        "key_id": key["id"],
    }


async def test_a_stranger_learns_of_no_id(service: Service, ids: Json) -> None:
    stranger = service.create_key("stranger", "--scope", "keys:write", "--scope", "webhooks:write")
    never = {name: value[:-6] + "abcdef" for name, value in ids.items()}
    never["completion_id"] = f"chatcmpl-{never['job_id'].removeprefix('job_')}"
    async with connect(service, stranger["key"]) as client:
        for method, path in OPERATIONS:
            answers = []
            for known in (ids, never):
                response = await client.request(
                    method, path.format(**known), json=BODIES.get(path, {}) if method == "POST" else None
                )
                text = response.text
                for name, value in known.items():
                    text = text.replace(value, name)
                answers.append((response.status_code, text))
            assert answers[0] == answers[1], f"{method} {path}"
            assert answers[0][0] == 404, f"{method} {path} {answers[0]}"
