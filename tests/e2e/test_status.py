"""`GET /status`: what an operator sees of the whole deployment."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from headrace.queue import TIERS
from tests.e2e import batches
from tests.e2e.jobs import ended, submit
from tests.e2e.statuses import provider_of, read
from tests.fakes.provider import Gate, Json, Provider, answer, status, usage_of
from tests.service import BOOTSTRAP_KEY, Service, Stores, connect, running_service
from tests.waiting import until
from worker.adaptive import INITIAL

SETTINGS = {"HEADRACE_CIRCUIT_FAILURES": "3", "HEADRACE_WORKER_SLOTS": "7"}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, stores: Stores, config: str) -> Iterator[Service]:
    """A service of its own, whose worker opens a circuit after three failures."""
    limited = config.replace("[providers.second]", "[providers.second]\nmax_concurrency = 5\nrequests_per_minute = 600")
    with running_service(tmp_path_factory.mktemp("watched"), stores.fresh(), limited, environment=SETTINGS) as service:
        until(lambda: read(service)["workers"], "the worker's record")
        yield service


def queue_of(told: Json, tier: str) -> Json:
    """Return what a status tells of a queue."""
    return next(each for each in told["queues"] if each["tier"] == tier)


async def test_it_shows_a_job_while_it_runs_and_counts_it_at_its_end(watched: Service, provider: Provider) -> None:
    gate = Gate()
    provider.script("fake-watched", answer("Held.", usage=usage_of(100, 20), hold=gate))
    async with connect(watched, BOOTSTRAP_KEY) as client:
        job_id = await submit(client, "fake-watched")
        until(lambda: provider_of(read(watched), "fake")["running"] == 1, "the call under way")
        told = read(watched)
        gate.release()
        assert (await ended(client, job_id))["status"] == "completed"
    assert provider_of(told, "fake")["adaptive_limits"] == [{"route": "fake/fake-watched", "calls": INITIAL}]
    assert told["stores"] == {"postgres": "ok", "redis": "ok"}
    assert [queue["tier"] for queue in told["queues"]] == list(TIERS)
    default = queue_of(told, "default")
    assert (default["queued"], default["exact"], default["running"]) == (0, True, 1)
    [worker] = told["workers"]
    assert (worker["pid"], worker["slots"], worker["running"]) == (watched.processes["worker"].pid, 7, 1)
    assert (worker["tiers"], worker["draining"], worker["version"]) == (list(TIERS), False, told["version"])
    [job] = told["slowest_jobs"]
    assert (job["id"], job["worker"], job["attempts"]) == (job_id, worker["name"], 1)
    until(lambda: read(watched)["rates"]["completed"] == 1, "the job among those that ended")
    rates = read(watched)["rates"]
    assert (rates["submitted"], rates["failed"], rates["input_tokens"], rates["output_tokens"]) == (1, 0, 100, 20)
    assert rates["cost"] == pytest.approx(0.00045)
    assert sum(slot["completed"] for slot in rates["slots"]) == 1
    until(lambda: provider_of(read(watched), "fake")["running"] == 0, "the end of the call")
    fake = provider_of(read(watched), "fake")
    assert (fake["format"], fake["circuit"], fake["calls"], fake["errors"]) == ("chat", "closed", 1, 0)
    assert set(fake["limits"].values()) == {None}


async def test_it_shows_who_waits_while_no_worker_is_there(watched: Service) -> None:
    watched.processes["worker"].kill()
    try:
        async with connect(watched, BOOTSTRAP_KEY) as client:
            job_id = await submit(client, "fake-queued")
            batch = await batches.submit(client, batches.lines("fake-lines", 1))
            until(lambda: read(watched)["workers"] == [], "the end of the killed worker's record")
            until(lambda: queue_of(read(watched), "batch")["queued"] == 1, "the queued line")
            told = read(watched)
            for path in (f"/jobs/{job_id}/cancel", f"/batches/{batch['id']}/cancel"):
                assert (await client.post(path)).status_code == 200
        [shown] = told["batches"]
        assert (shown["id"], shown["status"], shown["request_counts"]["total"]) == (batch["id"], "in_progress", 1)
        assert queue_of(told, "default")["queued"] == 1
        assert queue_of(told, "default")["oldest_seconds"] > 0
        assert told["scheduler"]["leader"].endswith(f":{watched.processes['scheduler'].pid}")
        until(lambda: read(watched)["batches"] == [], "the end of the batch")
        until(lambda: read(watched)["rates"]["cancelled"] >= 1, "the end of the job")
    finally:
        watched.launch("worker")
        until(lambda: read(watched)["workers"], "the next worker's record")


async def test_an_open_circuit_and_a_pause_show(watched: Service, provider: Provider) -> None:
    provider.script("routed-failing", *[status(500)] * 50)
    provider.script("anthropic-busy", status(429, retry_after=600))
    other_key = watched.create_key("another")["key"]
    async with connect(watched, BOOTSTRAP_KEY) as client, connect(watched, other_key) as other:
        # One account's failures alone open no circuit but its own.
        for each in (client, other):
            assert (await ended(each, await submit(each, "routed-failing")))["status"] == "failed"
        job_id = await submit(client, "anthropic-busy")
        until(lambda: provider_of(read(watched), "second")["circuit"] != "closed", "the open circuit")
        until(lambda: provider_of(read(watched), "claude")["paused_for"], "the pause")
        told = read(watched)
        await client.post(f"/jobs/{job_id}/cancel")
    second, claude = provider_of(told, "second"), provider_of(told, "claude")
    assert second["open_on"] == second["failing_on"] == 1
    assert second["errors"] >= 3
    assert second["limits"] == {"max_concurrency": 5, "requests_per_minute": 600, "tokens_per_minute": None}
    assert claude["circuit"] == "closed"
    [paused] = claude["paused_routes"]
    assert paused["route"] == "claude/anthropic-busy"
    assert 0 < paused["seconds"] == claude["paused_for"] <= 600
    assert second["adaptive_limits"] == [], "its limits are set"


async def test_only_keys_with_the_scope_read_it(service: Service, anonymous: httpx.AsyncClient) -> None:
    assert (await anonymous.get("/status")).status_code == 401
    for scope, wanted in ((None, 403), ("usage:read", 403), ("metrics:read", 200), ("admin", 200)):
        key = service.create_key("watched", *(() if scope is None else ("--scope", scope)))["key"]
        headers = {"authorization": f"Bearer {key}"}
        for path in ("/v1/status", "/api/v1/status"):
            assert (await anonymous.get(service.base_url + path, headers=headers)).status_code == wanted, (scope, path)
