"""What an account may have at one time, over HTTP: beyond it requests are refused until something has gone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.e2e.jobs import chat, refused, submit
from tests.service import BOOTSTRAP_KEY, Service, Stores, connect, running_service
from tests.waiting import eventually

SMALL = {
    "HEADRACE_ACCOUNT_WAITING_JOBS": "2",
    "HEADRACE_ACCOUNT_CONVERSATIONS": "2",
    "HEADRACE_ACCOUNT_FILES": "2",
    "HEADRACE_ACCOUNT_FILE_BYTES": "1000",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, stores: Stores, config: str) -> Iterator[Service]:
    """A service whose accounts may have little. It has no worker, so each job waits."""
    directory = tmp_path_factory.mktemp("small")
    with running_service(directory, stores.fresh(), config, "api", environment=SMALL) as service:
        yield service


@pytest.fixture
async def first(small: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(small, BOOTSTRAP_KEY) as client:
        yield client


@pytest.fixture(scope="module")
def second_key(small: Service) -> str:
    """A key of another account."""
    return str(small.create_key("second")["key"])


@pytest.fixture
async def second(small: Service, second_key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(small, second_key) as client:
        yield client


def refused_for_good(response: httpx.Response, code: str, param: str | None = None) -> None:
    """Check that a request is refused, and that to send it again soon is told not to help."""
    error = refused(response, 429, type="insufficient_quota", code=code)
    assert error["param"] == param
    assert 1 <= int(response.headers["retry-after"]) <= 59
    assert response.headers["x-should-retry"] == "false"


async def test_so_many_jobs_of_an_account_may_wait(
    first: httpx.AsyncClient, second: httpx.AsyncClient, model: str
) -> None:
    job_ids = [await submit(first, model) for _ in range(2)]
    for body in (chat(model, background=True), chat(model)):
        response = await first.post("/chat/completions", json=body)
        refused(response, 429, type="rate_limit_error", code="too_many_waiting_jobs")
        assert response.headers["retry-after"] == "30"
        assert "x-should-retry" not in response.headers, "there is room later"
    await submit(second, model)
    assert (await first.post(f"/jobs/{job_ids[0]}/cancel")).status_code == 200

    async def let_in() -> bool:
        return (await first.post("/chat/completions", json=chat(model, background=True))).status_code == 202

    await eventually(let_in, "the account to be counted again")


async def test_an_account_may_have_so_many_conversations(first: httpx.AsyncClient, second: httpx.AsyncClient) -> None:
    made = [await first.post("/conversations", json={}) for _ in range(2)]
    assert {response.status_code for response in made} == {200}
    refused_for_good(await first.post("/conversations", json={}), "conversation_quota_exceeded")
    assert (await second.post("/conversations", json={})).status_code == 200
    assert (await first.delete(f"/conversations/{made[0].json()['id']}")).status_code == 200
    assert (await first.post("/conversations", json={})).status_code == 200
    refused_for_good(await first.post("/conversations", json={}), "conversation_quota_exceeded")


async def test_an_account_may_have_so_many_files_of_so_many_bytes(
    first: httpx.AsyncClient, second: httpx.AsyncClient, model: str
) -> None:
    async def upload(client: httpx.AsyncClient, size: int) -> httpx.Response:
        return await client.post("/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", b"x" * size)})

    large = await upload(first, 600)
    assert large.status_code == 200
    refused_for_good(await upload(first, 401), "file_quota_exceeded", "file")
    assert (await upload(first, 400)).status_code == 200
    refused_for_good(await upload(first, 0), "file_quota_exceeded", "file")
    batch = {"requests": [{"custom_id": "a", "body": chat(model)}]}
    refused_for_good(await first.post("/batches", json=batch), "file_quota_exceeded", "requests")
    assert (await upload(second, 600)).status_code == 200
    assert (await first.delete(f"/files/{large.json()['id']}")).status_code == 200
    assert (await upload(first, 600)).status_code == 200
    assert len((await first.get("/files")).json()["data"]) == 2, "nothing is left of what was refused"
