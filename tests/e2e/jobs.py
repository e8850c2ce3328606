"""Jobs over HTTP: the requests that tests send, and checks of each answer."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from tests.fakes.provider import Json
from tests.waiting import eventually

FINAL = frozenset({"completed", "failed", "cancelled", "expired"})

# The job object, as docs/reference/api.md has it. `queue_position` is there only while the job is queued.
FIELDS = frozenset(
    {"id", "object", "status", "model", "provider", "attempt", "attempts"}
    | {"created_at", "started_at", "first_token_at", "finished_at"}
    | {"result", "error", "usage", "cost", "metadata", "batch_id", "agent_id"}
)


def chat(model: str, text: str = "hello there", **fields: Any) -> Json:
    """Return the body of a chat completion with one user message."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


async def leave(request: asyncio.Task[httpx.Response]) -> None:
    """Close the request's connection in the middle of it."""
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)


async def submit(client: httpx.AsyncClient, model: str, text: str = "hello there", **fields: Any) -> str:
    """Submit a background job; `fields` are the chat body's. Return its id."""
    response = await client.post("/chat/completions", json=chat(model, text, background=True, **fields))
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


async def get(client: httpx.AsyncClient, job_id: str) -> Json:
    """Return the job's current state."""
    response = await client.get(f"/jobs/{job_id}")
    assert response.status_code == 200, response.text
    job: Json = response.json()
    assert job.keys() >= FIELDS, f"missing: {FIELDS - job.keys()}"
    assert ("queue_position" in job and job["queue_position"] is not None) == (job["status"] == "queued"), job
    return job


async def ended(client: httpx.AsyncClient, job_id: str) -> Json:
    """Return the job once it has ended. A Postgres that has just come back may refuse a last statement: 503."""

    async def final() -> Json | None:
        response = await client.get(f"/jobs/{job_id}", params={"wait": 10})
        if response.status_code == 503:
            return None
        assert response.status_code == 200, response.text
        job: Json = response.json()
        return job if job["status"] in FINAL else None

    job = await eventually(final, f"the end of {job_id}")
    assert job is not None
    return job


async def completed(client: httpx.AsyncClient, job_id: str) -> Json:
    """Return the job once it has ended; it must be completed."""
    job = await ended(client, job_id)
    assert job["status"] == "completed", job
    return job


async def job_of(client: httpx.AsyncClient, model: str) -> Json:
    """Return the one job of a model, once it is there: how a test finds a foreground request's job."""

    async def found() -> Json | None:
        response = await client.get("/jobs", params={"model": model})
        assert response.status_code == 200, response.text
        jobs = response.json()["data"]
        assert len(jobs) <= 1, jobs
        return jobs[0] if jobs else None

    job = await eventually(found, f"a job of {model}")
    assert job is not None
    return job


async def reaches(client: httpx.AsyncClient, job_id: str, *states: str) -> Json:
    """Return the job once it is in one of these states."""

    async def there() -> Json | None:
        job = await get(client, job_id)
        return job if job["status"] in states else None

    job = await eventually(there, f"{job_id} to be {' or '.join(states)}")
    assert job is not None
    return job


def refused(
    response: httpx.Response,
    status: int,
    *,
    type: str | None = None,  # noqa: A002
    code: str | None = None,
    param: str | None = None,
) -> Json:
    """Check that an answer is OpenAI's error object with this status, and return the object inside."""
    assert response.status_code == status, f"{response.status_code} {response.text}"
    assert response.headers["x-request-id"]
    assert response.headers["content-type"].startswith("application/json")
    assert "Traceback" not in response.text
    body = response.json()
    assert body.keys() == {"error"}
    error: Json = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    if type is not None:
        assert error["type"] == type
    if code is not None:
        assert error["code"] == code
    if param is not None:
        assert error["param"] == param
    return error
