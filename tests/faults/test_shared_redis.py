"""Two deployments, each with a database of its own, on one Redis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from redis import Redis

from tests.e2e.jobs import completed, get, submit
from tests.fakes.provider import Provider, answer
from tests.service import BOOTSTRAP_KEY, Stores, connect, running_service

# As when it is not set: each database has a namespace of its own.
OWN = {"HEADRACE_REDIS_NAMESPACE": ""}


async def test_a_worker_takes_no_wake_up_of_another_deployment(
    tmp_path: Path, stores: Stores, config: str, provider: Provider, model: str
) -> None:
    ours = stores.fresh()
    theirs = replace(stores.fresh(), redis_url=ours.redis_url)
    provider.always(model, answer("Done."))
    with (
        running_service(tmp_path / "ours", ours, config, "api", environment=OWN) as first,
        running_service(tmp_path / "theirs", theirs, config, environment=OWN) as second,
        Redis.from_url(ours.redis_url) as redis,
    ):
        async with connect(first, BOOTSTRAP_KEY) as client, connect(second, BOOTSTRAP_KEY) as other:
            waiting = [await submit(client, model) for _ in range(20)]
            await completed(other, await submit(other, model))  # so its worker takes what there is
            found: Any = redis.keys("hr-????????:headrace.default")
            assert len([redis.llen(key) for key in found]) == 1, "their queue is empty, and so is no key"
            assert (await get(client, waiting[0]))["status"] == "queued"
            first.launch("worker")
            for job_id in waiting:
                await completed(client, job_id)
        found = redis.keys()
        assert all(key.startswith(b"hr-") for key in found)
