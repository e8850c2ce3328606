"""A provider that takes few calls at once: two workers find how many, beside a batch and requests of clients."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests.e2e import batches
from tests.e2e.jobs import chat
from tests.e2e.statuses import read
from tests.fakes.provider import Exchange, Provider, answer, status
from tests.service import BOOTSTRAP_KEY, Stores, connect, running_service
from tests.waiting import until

CAPACITY = 20
LINES = 1500
REQUESTS = 60
# Refusals, at most, of workers that look for the capacity. There are 20 or so; without adaptive concurrency there are
# 100 to 2,500.
FEW = 60
# While a busy machine stalls, the slots that workers hold expire, and too many calls begin when it goes on. Then the
# measurement is repeated.
TRIES = 3


class Limited:
    """Answers so many calls at once, each after a while, and refuses the others."""

    def __init__(self) -> None:
        self.under_way = 0
        self.outcomes = Counter[str]()

    async def __call__(self, exchange: Exchange) -> None:
        if self.under_way >= CAPACITY:
            self.outcomes["refused"] += 1
            await status(429)(exchange)
            return
        self.outcomes["answered"] += 1
        self.under_way += 1
        try:
            await asyncio.sleep(0.05)
        finally:
            self.under_way -= 1
        await answer("Here.")(exchange)


async def test_a_batch_and_requests_share_a_capacity_that_no_one_has_configured(
    tmp_path: Path, stores: Stores, provider: Provider
) -> None:
    catalogue = f"""
[providers.small]
kind = "openai"
base_url = "{provider.url()}"

[models."small-*"]
routes = ["small/*"]
"""
    with running_service(tmp_path, stores.fresh(), catalogue) as service:
        service.launch("worker-2")
        until(lambda: len(read(service)["workers"]) == 2, "both workers")
        async with connect(service, BOOTSTRAP_KEY) as client:
            tries = [await share(client, provider)]
            while tries[-1][0]["refused"] > FEW and len(tries) < TRIES:
                tries.append(await share(client, provider))
    outcomes, statuses, counts = tries[-1]
    assert outcomes["refused"] <= FEW, "the workers would fill more slots than the provider takes"
    assert statuses == {200: REQUESTS}
    assert counts == {"total": LINES, "completed": LINES, "failed": 0}
    assert outcomes["answered"] == LINES + REQUESTS


async def share(client: httpx.AsyncClient, provider: Provider) -> tuple[Counter[str], Counter[int], Any]:
    """Run a batch beside requests; return the provider's outcomes, the requests' statuses, and the batch's counts."""
    limited = Limited()
    provider.always("small-one", limited)
    batch = await batches.submit(client, batches.lines("small-one", LINES))
    statuses = Counter(
        [(await client.post("/chat/completions", json=chat("small-one"))).status_code for _ in range(REQUESTS)]
    )
    ended = await batches.reaches(client, batch["id"], "completed", "failed")
    return limited.outcomes, statuses, ended["request_counts"]
