"""Batches over HTTP: the requests that tests send, and checks of each answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import httpx

from tests.e2e.jobs import chat
from tests.fakes.provider import Json
from tests.waiting import eventually

FINAL = frozenset({"completed", "failed", "expired", "cancelled"})

# `Batch` in OpenAI's description.
FIELDS = frozenset(
    {"id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window", "status", "output_file_id"}
    | {"error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at"}
    | {"expired_at", "cancelling_at", "cancelled_at", "request_counts", "usage", "metadata"}
)


def line(custom_id: str, model: str, text: str = "hello there", **fields: Any) -> Json:
    """Return a line of a batch's input; `fields` are its body's."""
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": chat(model, text, **fields),
    }


def lines(model: str, count: int, **fields: Any) -> list[Json]:
    """Return so many lines, r1 to rN."""
    return [line(f"r{number}", model, f"say {number}", **fields) for number in range(1, count + 1)]


def jsonl(documents: Iterable[Json]) -> bytes:
    """Return documents one a line."""
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


async def submit(client: httpx.AsyncClient, data: bytes | Sequence[Json], **fields: Any) -> Json:
    """Upload an input, create a batch of it, and return the batch."""
    body = data if isinstance(data, bytes) else jsonl(data)
    file = await client.post("/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", body)})
    assert file.status_code == 200, file.text
    created = await client.post("/batches", json={"input_file_id": file.json()["id"], **WHAT, **fields})
    assert created.status_code == 200, created.text
    batch: Json = created.json()
    return batch


WHAT: Json = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}


async def get(client: httpx.AsyncClient, batch_id: str) -> Json:
    """Return the batch's current state."""
    response = await client.get(f"/batches/{batch_id}")
    assert response.status_code == 200, response.text
    batch: Json = response.json()
    assert batch.keys() >= FIELDS
    return batch


async def reaches(client: httpx.AsyncClient, batch_id: str, *states: str) -> Json:
    """Return the batch once it is in one of these states.

    Raises:
        TimeoutError: it was not in time.
    """

    async def there() -> Json | None:
        batch = await get(client, batch_id)
        assert batch["status"] in states or batch["status"] not in FINAL, batch
        return batch if batch["status"] in states else None

    batch = await eventually(there, f"{batch_id} to be {' or '.join(states)}")
    assert batch is not None
    return batch


async def cancel(client: httpx.AsyncClient, batch_id: str) -> Json:
    """Cancel a batch, and return it once nothing more of it runs."""
    response = await client.post(f"/batches/{batch_id}/cancel")
    assert response.status_code == 200, response.text
    return await reaches(client, batch_id, "cancelled")


async def output(client: httpx.AsyncClient, file_id: str | None) -> list[Json]:
    """Return the lines of an output file; none if there is no file."""
    if file_id is None:
        return []
    content = await client.get(f"/files/{file_id}/content")
    assert content.status_code == 200, content.text
    return [json.loads(found) for found in content.text.splitlines()]


def text_of(result: Json) -> str:
    """Return the answer in a line of an output."""
    text: str = result["response"]["body"]["choices"][0]["message"]["content"]
    return text
