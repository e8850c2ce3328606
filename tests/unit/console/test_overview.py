"""The first page, also while a store is unavailable and the API does not know all."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.unit.console.fake_api import ACCOUNT, EMPTY, browser, console, sign_in

WATCHER = {**ACCOUNT, "key": {**ACCOUNT["key"], "scopes": ["metrics:read"]}}  # type: ignore[dict-item]
ENDED = {"completed": 6, "failed": 2, "expired": 0, "cancelled": 0}
STATUS: dict[str, Any] = {
    "stores": {"postgres": "ok", "redis": "ok"},
    "queues": [{"tier": "default", "queued": 17, "running": 3, "oldest_seconds": 4.5}],
    "rates": {**ENDED, "seconds": 120, "slots": [{**ENDED, "at": 1_790_000_000}]},
    "workers": [],
    "providers": [],
    "slowest_jobs": [
        {
            "id": "job_slowest",
            "account_id": "acct_own",
            "model": "demo",
            "tier": "default",
            "attempts": 1,
            "started_at": 1_790_000_000,
        }
    ],
}
NO_REDIS = {"stores": {"postgres": "ok", "redis": "unavailable"}, "rates": None, "workers": None}
NO_POSTGRES = {"stores": {"postgres": "unavailable", "redis": "ok"}, "queues": None, "slowest_jobs": None}


def api(status: dict[str, Any]) -> Callable[[httpx.Request], httpx.Response]:
    """Return an API whose service has a status."""
    answers: dict[str, Any] = {"/account": WATCHER, "/status": status}
    return lambda request: httpx.Response(200, json=answers.get(request.url.path.removeprefix("/api/v1"), EMPTY))


async def overview(status: dict[str, Any]) -> str:
    """Return the words of the page, without its marks."""
    async with browser(console(api(status))) as client:
        page = await sign_in(client)
    assert (page.status_code, page.url.path) == (200, "/")
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.text))


async def test_it_shows_the_state_of_the_service() -> None:
    text = await overview(STATUS)
    for shown in ("Queued 17 oldest 4.5 s", "Running 3 0 workers", "Completed / min 3.0", "Failed 25.0 %"):
        assert shown in text
    for shown in ("2 of 8 in 2 min", "Ended jobs, last 2 min", "No worker runs", "job_slowest"):
        assert shown in text


async def test_without_redis_it_shows_what_postgres_knows() -> None:
    text = await overview(STATUS | NO_REDIS)
    for shown in ("Queued 17 oldest 4.5 s", "Running 3 Requests today", "job_slowest", "Redis unavailable"):
        assert shown in text
    assert "Redis is unavailable, so the workers are not known." in text
    assert "Redis is unavailable, so it is not known which jobs ended." in text
    assert "Completed / min" not in text


async def test_without_postgres_it_shows_what_redis_knows() -> None:
    text = await overview(STATUS | NO_POSTGRES)
    for shown in ("Completed / min 3.0", "Failed 25.0 %", "No worker runs", "Postgres unavailable"):
        assert shown in text
    assert "Postgres is unavailable, so the queues are not known." in text
    assert "job_slowest" not in text


async def test_it_shows_what_is_known_without_either_store() -> None:
    text = await overview(STATUS | NO_REDIS | NO_POSTGRES | {"stores": dict.fromkeys(STATUS["stores"], "unavailable")})
    assert "Postgres unavailable Redis unavailable" in text


@pytest.mark.parametrize("scopes", [[], ["usage:read"]])
async def test_a_key_that_may_not_read_the_status_sees_its_own_jobs(scopes: list[str]) -> None:
    account = {**ACCOUNT, "key": {**ACCOUNT["key"], "scopes": scopes}}  # type: ignore[dict-item]

    def answers(request: httpx.Request) -> httpx.Response:
        assert not request.url.path.endswith("/status")
        return httpx.Response(200, json=account if request.url.path.endswith("/account") else EMPTY)

    async with browser(console(answers)) as client:
        page = await sign_in(client)
    assert page.status_code == 200
    assert "Requests today" in page.text
    assert "Queues" not in page.text
