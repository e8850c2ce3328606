"""Every process counts what it does, and serves its metrics and its health."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.jobs.state import State
from headrace.settings import Settings
from headrace.telemetry.metrics import METRICS
from tests.e2e.jobs import chat, completed, ended, submit
from tests.e2e.metrics import Scrape, scrape
from tests.fakes.provider import Gate, Provider, answer, chunk, status, stream, usage_of
from tests.promql import parsed, queries, selectors
from tests.service import BOOTSTRAP_KEY, Service, Stores, connect, free_port
from tests.waiting import until

PARTS = ("api", "worker", "scheduler")
NAMED = """
[models."counted"]
routes = ["fake/counted"]
input_price = 2.00
output_price = 10.00
"""


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, stores: Stores, config: str
) -> Iterator[tuple[Service, dict[str, int]]]:
    """A service of its own with the metrics port of each part."""
    service = Service(tmp_path_factory.mktemp("measured"), stores.fresh(), config + NAMED)
    ports = {part: free_port() for part in PARTS}
    Service.running.append(service)
    try:
        service.run("migrate")
        for part, port in ports.items():
            service.launch(part, HEADRACE_METRICS_PORT=str(port))
        service.wait_until_ready()
        for port in ports.values():
            until(lambda port=port: health(port, "/readyz") is not None, "a metrics port")  # type: ignore[misc]
        yield service, ports
    finally:
        service.stop()


def health(port: int, path: str) -> dict[str, Any] | None:
    """Return the health of a process, or None while it is not healthy or does not answer."""
    try:
        told = httpx.get(f"http://127.0.0.1:{port}{path}", timeout=30)
    except httpx.TransportError:
        return None
    body: dict[str, Any] = told.json()
    return body if told.status_code == 200 else None


async def test_each_process_counts_a_known_load(measured: tuple[Service, dict[str, int]], provider: Provider) -> None:
    service, ports = measured
    usage = usage_of(100, 20)
    provider.script("counted", status(500), answer("One.", usage=usage), answer("Two.", usage=usage), status(400))
    async with connect(service, BOOTSTRAP_KEY) as client:
        await completed(client, await submit(client, "counted"))
        assert (await client.post("/chat/completions", json=chat("counted"))).status_code == 200
        assert (await ended(client, await submit(client, "counted")))["status"] == "failed"
        assert (await client.post("/chat/completions", json=chat("fake-unnamed"))).status_code == 200

    def counted() -> Scrape | None:
        told = scrape(ports["worker"])
        return told if told.total("headrace_attempts_total") == 5 else None

    until(lambda: counted() is not None, "the end of the last attempt")
    api, worker = scrape(ports["api"]), scrape(ports["worker"])
    assert api.total("headrace_jobs_submitted_total", tier="default", format="chat") == 4
    assert worker.total("headrace_jobs_ended_total", status="completed", model="counted", tier="default") == 2
    assert worker.total("headrace_jobs_ended_total", status="failed", model="counted") == 1
    assert worker.total("headrace_jobs_ended_total", model="other") == 1
    assert worker.total("headrace_attempts_total", provider="fake", model="counted", outcome="failed") == 1
    assert worker.total("headrace_attempts_total", provider="fake", model="counted", outcome="refused") == 1
    assert worker.total("headrace_attempts_total", provider="fake", outcome="completed") == 3
    assert worker.total("headrace_attempts_total", route="fake/counted") == 4
    assert worker.total("headrace_attempts_total", route="fake/other", model="other") == 1
    assert worker.total("headrace_worker_slots") > 0
    until(lambda: scrape(ports["worker"]).total("headrace_worker_slots_taken") == 0, "free slots")
    assert api.total("headrace_http_requests_total", route="/chat/completions", status="2xx") == 4
    assert worker.total("headrace_tokens_total", kind="input", model="counted") == 200
    assert worker.total("headrace_tokens_total", kind="output", model="counted") == 40
    assert worker.total("headrace_cost_usd_total", model="counted") == pytest.approx(0.0008)
    assert worker.total("headrace_queue_wait_seconds_count", tier="default") == 5
    assert worker.total("headrace_overhead_seconds_count", format="chat") == 5
    assert worker.total("headrace_provider_call_seconds_count", provider="fake") == 5
    assert worker.total("headrace_group_commit_items_sum", statement="finish") == 4
    assert api.total("headrace_group_commit_items_sum", statement="accept") == 4
    for part in (api, worker):
        assert part.total("headrace_store_up", store="postgres") == 1
        assert part.total("headrace_store_up", store="redis") == 1
        assert part.total("headrace_store_seconds_count", store="postgres") > 0
        assert part.total("process_resident_memory_bytes") > 0


async def test_the_api_counts_open_streams_and_event_loops_their_lag(
    measured: tuple[Service, dict[str, int]], provider: Provider
) -> None:
    service, ports = measured
    gate = Gate()
    provider.script("counted", stream(chunk("a"), gate, chunk("b", finish="stop")))
    async with connect(service, BOOTSTRAP_KEY) as client:
        job_id = await submit(client, "counted")
        async with client.stream("GET", f"/jobs/{job_id}/events") as events:
            assert await anext(events.aiter_lines())
            assert scrape(ports["api"]).total("headrace_subscribers") == 1
            gate.release()
    until(lambda: scrape(ports["api"]).total("headrace_subscribers") == 0, "the end of the stream")
    for port in ports.values():
        until(lambda port=port: scrape(port).total("headrace_event_loop_lag_seconds_count") > 0, "a tick")  # type: ignore[misc]


async def test_no_label_has_what_a_client_wrote(measured: tuple[Service, dict[str, int]], model: str) -> None:
    service, ports = measured
    async with connect(service, BOOTSTRAP_KEY) as client:
        for path in (f"/{model}", f"/jobs/{model}", f"/responses/{model}", f"/batches/{model}?a={model}"):
            assert (await client.get(path, headers={"x-request-id": model})).status_code in {400, 404}
        answer = await client.post("/chat/completions", json=chat(model, model, user=model, metadata={"a": model}))
        assert answer.status_code == 200
        described = (await client.get(f"{service.base_url}/openapi.json")).json()["paths"]
    until(lambda: scrape(ports["worker"]).total("headrace_jobs_ended_total", model="other") > 0, "the job's end")
    templates = {path.removeprefix("/api/v1") for path in described}
    for part in PARTS:
        told = scrape(ports[part])
        assert model.lower() not in told.text.lower()
        assert told.values("route") <= templates | {"(no endpoint)", "fake/counted", "fake/other"}
        assert told.values("provider") <= {"fake"}
        assert told.values("model") <= {"counted", "other"}
        assert told.values("status") <= {"1xx", "2xx", "3xx", "4xx", "5xx", "none"} | {state.value for state in State}


async def test_the_scheduler_measures_the_queues(measured: tuple[Service, dict[str, int]]) -> None:
    service, ports = measured
    service.processes["worker"].kill()
    try:
        async with connect(service, BOOTSTRAP_KEY) as client:
            job_id = await submit(client, "fake-waiting")
            until(lambda: scrape(ports["scheduler"]).total("headrace_queue_jobs", tier="default") == 1, "a queued job")
            until(lambda: scrape(ports["scheduler"]).total("headrace_queue_oldest_seconds") > 0, "its age")
            assert scrape(ports["scheduler"]).total("headrace_scheduler_leads") == 1
            assert (await client.post(f"/jobs/{job_id}/cancel")).status_code == 200
        until(lambda: scrape(ports["scheduler"]).total("headrace_queue_jobs") == 0, "an empty queue")
        ended = scrape(ports["api"]).total("headrace_jobs_ended_total", status="cancelled", model="other")
        assert ended == 1
    finally:
        service.launch("worker", HEADRACE_METRICS_PORT=str(ports["worker"]))
        until(lambda: health(ports["worker"], "/readyz") is not None, "the worker's next start")


@pytest.mark.parametrize("part", PARTS)
def test_names_and_labels_are_the_documented_ones(measured: tuple[Service, dict[str, int]], part: str) -> None:
    declared = {metric.name.removesuffix("_total"): set(metric.labels) for metric in METRICS if part in metric.parts}
    told = scrape(measured[1][part]).labels()
    assert told.keys() == declared.keys()
    assert all(labels <= declared[name] for name, labels in told.items())


def test_every_query_of_the_board_and_the_alerts_finds_its_metric(measured: tuple[Service, dict[str, int]]) -> None:
    served = set[str]().union(*(scrape(port).names() for port in measured[1].values()))
    made_by_prometheus = {"up", "ALERTS"}
    for query in queries():
        asked = {str(selector.name) for selector in selectors(parsed(query.text))}
        assert asked <= served | made_by_prometheus, query.place


@pytest.mark.parametrize("part", PARTS)
def test_each_process_serves_its_health(measured: tuple[Service, dict[str, int]], part: str) -> None:
    port = measured[1][part]
    until(lambda: health(port, "/readyz") is not None, "readiness")
    told = health(port, "/livez")
    assert told is not None
    assert (told["part"], told["alive"], told["ready"], told["draining"]) == (part, True, True, False)
    assert (told["postgres"], told["redis"]) == ("ok", "ok")
    assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 404


async def test_the_api_serves_its_metrics_to_a_key_with_the_scope(
    service: Service, anonymous: httpx.AsyncClient
) -> None:
    assert (await anonymous.get("/metrics")).status_code == 401
    for scope, wanted in ((None, 403), ("usage:read", 403), ("metrics:read", 200), ("admin", 200)):
        key = service.create_key("watched", *(() if scope is None else ("--scope", scope)))["key"]
        headers = {"authorization": f"Bearer {key}"}
        for path in ("/metrics", "/v1/metrics", "/api/v1/metrics"):
            told = await anonymous.get(f"{service.base_url}{path}", headers=headers)
            assert told.status_code == wanted, (scope, path)
            if wanted == 200:
                assert "headrace_jobs_submitted" in Scrape(told.text).labels()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_metrics_are_off_by_default(service: Service) -> None:
    assert Settings.model_fields["metrics_port"].default == 0
    for name in PARTS:
        for port in ports_of(service.processes[name].pid):  # the API's own, and the worker's for the demo models
            assert httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).status_code in {401, 404}


def ports_of(pid: int) -> set[int]:
    """Return the TCP ports on which a process listens."""
    opened = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    text = "".join(Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6"))
    lines = [line.split() for line in text.splitlines() if "local_address" not in line]
    listening = [line for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in opened]
    return {int(line[1].rpartition(":")[2], 16) for line in listening}


def test_a_port_that_is_taken_is_one_clear_line(measured: tuple[Service, dict[str, int]]) -> None:
    service, ports = measured
    for part in PARTS:
        told = service.command(part, HEADRACE_METRICS_PORT=str(ports["worker"]), HEADRACE_PORT=str(free_port()))
        assert told.returncode == 2
        assert "HEADRACE_METRICS_PORT" in told.stderr
        assert "Traceback" not in told.stderr
