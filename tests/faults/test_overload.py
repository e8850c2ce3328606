"""A provider that takes few calls at once: two workers find how many, beside a batch and requests of clients."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from tests.e2e import batches
from tests.e2e.jobs import chat
from tests.fakes.provider import Exchange, Provider, answer, status
from tests.service import BOOTSTRAP_KEY, Stores, connect, running_service

CAPACITY = 20
LINES = 1500
REQUESTS = 60


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
    limited = Limited()
    provider.always("small-one", limited)
    with running_service(tmp_path, stores.fresh(), catalogue) as service:
        service.launch("worker-2")
        async with connect(service, BOOTSTRAP_KEY) as client:
            batch = await batches.submit(client, batches.lines("small-one", LINES))
            statuses = Counter(
                [(await client.post("/chat/completions", json=chat("small-one"))).status_code for _ in range(REQUESTS)]
            )
            ended = await batches.reaches(client, batch["id"], "completed", "failed")
    assert statuses == {200: REQUESTS}
    assert ended["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    assert limited.outcomes["answered"] == LINES + REQUESTS
    assert limited.outcomes["refused"] < 0.1 * LINES, "the workers would fill more slots than the provider takes"
