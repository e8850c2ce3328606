"""Two workers, one of which cannot reach the provider: its jobs go to the other one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.e2e.jobs import chat, completed, submit
from tests.e2e.statuses import provider_of, read
from tests.fakes.provider import Provider, answer
from tests.service import BOOTSTRAP_KEY, Service, Stores, connect, free_port, running_service
from tests.waiting import until

REQUESTS = 60
ATTEMPTS = {"HEADRACE_CIRCUIT_FAILURES": "5"}


def catalogue(url: str) -> str:
    return f"""
[providers.far]
kind = "openai"
base_url = "{url}"
connect_timeout = 1

[models."far-*"]
routes = ["far/*"]
"""


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory, stores: Stores, provider: Provider) -> Iterator[Service]:
    """A service with a second worker, for which nothing listens at the provider's address."""
    directory = tmp_path_factory.mktemp("paths")
    broken = directory / "broken.toml"
    broken.write_text(catalogue(f"http://127.0.0.1:{free_port()}/v1"))
    with running_service(directory, stores.fresh(), catalogue(provider.url()), environment=ATTEMPTS) as service:
        service.launch("worker-2", HEADRACE_CONFIG=str(broken))
        until(lambda: len(read(service)["workers"]) == 2, "both workers")
        yield service


@pytest.fixture
async def split_client(split: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(split, BOOTSTRAP_KEY) as client:
        yield client


@pytest.mark.parametrize("streamed", [False, True])
async def test_requests_do_not_fail_for_one_workers_broken_path(
    split: Service, split_client: httpx.AsyncClient, provider: Provider, streamed: bool
) -> None:
    model = f"far-{streamed}"
    provider.always(model, answer("Here."))
    turns = asyncio.Semaphore(8)

    async def ask() -> int:
        async with turns:
            return (await split_client.post("/chat/completions", json=chat(model, stream=streamed))).status_code

    statuses = Counter(await asyncio.gather(*(ask() for _ in range(REQUESTS))))
    assert statuses == {200: REQUESTS}
    until(lambda: provider_of(read(split), "far")["errors"], "a failed try of the second worker")


async def test_background_jobs_are_run_by_the_worker_whose_path_is_fine(
    split_client: httpx.AsyncClient, provider: Provider
) -> None:
    provider.always("far-background", answer("Here."))
    job_ids = await asyncio.gather(*(submit(split_client, "far-background") for _ in range(REQUESTS)))
    for job_id in job_ids:
        await completed(split_client, job_id)
