"""One of everything that an account may have, and every operation whose path has an id."""

from __future__ import annotations

import re
from typing import Any

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


async def make_everything(service: Service, model: str) -> Json:
    """Make one of everything in an account of the model's own, and return its ids by the names that paths have."""
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
