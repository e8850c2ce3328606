"""Routes under two workers: limits that hold over both, circuits, and routes that are for one error only."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.jobs import chat, completed, refused, submit
from tests.fakes.provider import DONE, Exchange, Gate, Provider, answer, chunk, status, stream
from tests.service import BOOTSTRAP_KEY, Service, Stores, connect, running_service
from tests.waiting import eventually

CONFIG = """
[providers.limited]
kind = "openai"
base_url = "{limited}"
max_concurrency = 3

[providers.slow]
kind = "anthropic"
base_url = "{slow}"
requests_per_minute = 2

[providers.broken]
kind = "openai"
base_url = "{broken}"

[providers.only]
kind = "openai"
base_url = "{only}"

[providers.sound]
kind = "openai"
base_url = "{sound}"

[providers.other]
kind = "gemini"
base_url = "{sound}"

[models."limited-*"]
routes = ["limited/*"]

[models."slow-*"]
routes = ["slow/*"]

[models."circuit-*"]
routes = ["broken/*", "sound/*"]

[models."alone-*"]
routes = ["only/*"]

[models."small-*"]
routes = ["sound/*"]
context_window_fallbacks = ["large"]
content_filter_fallbacks = ["frank"]

[models.large]
routes = ["sound/large"]

[models.frank]
routes = ["other/frank"]
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, stores: Stores, provider: Provider) -> Iterator[Service]:
    """Two workers, whose circuits open after three failures."""
    config = CONFIG.format(
        **{name: provider.url(f"/{name}") for name in ("limited", "slow", "broken", "only", "sound")}
    )
    with running_service(
        tmp_path_factory.mktemp("routes"),
        stores.fresh(),
        config,
        "api",
        "worker",
        "worker-2",
        "scheduler",
        environment={"HEADRACE_CIRCUIT_FAILURES": "3"},
    ) as service:
        yield service


@pytest.fixture
async def ours(own: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(own, BOOTSTRAP_KEY) as client:
        yield client


async def test_calls_under_way_are_limited_over_all_workers(ours: httpx.AsyncClient, provider: Provider) -> None:
    model = f"limited-{secrets.token_hex(6)}"
    running = most = 0
    gates = [Gate() for _ in range(12)]

    def counted(gate: Gate) -> Any:
        async def behave(exchange: Exchange) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await gate.pass_through()
            running -= 1  # before the answer: the next call may come before this end knows that it is sent
            await answer("Through.")(exchange)

        return behave

    provider.script(model, *map(counted, gates))
    jobs = await asyncio.gather(*(submit(ours, model) for _ in gates))

    async def full() -> bool:
        return running == 3 or len(provider.calls_for(model)) == len(gates)

    for gate in gates:
        await eventually(full, "the limit to be reached, or every call to be under way")
        gate.release()
    for job_id in jobs:
        job = await completed(ours, job_id)
        assert len(job["attempts"]) == 1, "waiting is no attempt"
    assert most == 3


async def test_what_waits_for_a_limit_can_be_cancelled(ours: httpx.AsyncClient, provider: Provider) -> None:
    model = f"slow-{secrets.token_hex(6)}"
    for _ in range(2):
        await completed(ours, await submit(ours, model))
    waiting = await submit(ours, model)
    assert (await ours.post(f"/jobs/{waiting}/cancel")).is_success
    job = (await ours.get(f"/jobs/{waiting}", params={"wait": 10})).json()
    assert job["status"] == "cancelled"
    assert job["usage"] is None
    assert len(provider.calls_for(model)) == 2


async def test_a_provider_that_keeps_failing_is_left_alone(ours: httpx.AsyncClient, provider: Provider) -> None:
    model = f"circuit-{secrets.token_hex(6)}"
    well = False

    async def behave(exchange: Exchange) -> None:
        failing = exchange.call.path.startswith("/broken") and not well
        await (status(503) if failing else answer())(exchange)

    provider.always(model, behave)

    async def tried() -> list[str]:
        job = await completed(ours, await submit(ours, model))
        return [attempt["provider"] for attempt in job["attempts"]]

    assert (await tried())[-1] == "sound"

    async def left_alone() -> bool:
        return await tried() == ["sound"]

    await eventually(left_alone, "it to be left alone")
    well = True

    async def called_again() -> bool:
        return await tried() == ["broken"]

    await eventually(called_again, "the circuit to be probed and closed")


async def test_a_stream_that_has_begun_closes_the_circuit(ours: httpx.AsyncClient, provider: Provider) -> None:
    model = f"circuit-{secrets.token_hex(6)}"
    well, gate = False, Gate()
    begun = stream(chunk({"role": "assistant", "content": "a"}), gate, chunk(finish="stop"), DONE)

    async def behave(exchange: Exchange) -> None:
        broken = exchange.call.path.startswith("/broken")
        await (answer() if not broken else begun if well else status(503))(exchange)

    provider.always(model, behave)

    async def left_alone() -> bool:
        job = await completed(ours, await submit(ours, model))
        return [attempt["provider"] for attempt in job["attempts"]] == ["sound"]

    await eventually(left_alone, "it to be left alone")
    well, before = True, len(provider.calls_for(model))
    jobs = []

    async def called_by_all() -> bool:
        """Whether it gets more calls than one of each worker to see if it answers again."""
        jobs.append(await submit(ours, model))
        return sum(call.path.startswith("/broken") for call in provider.calls_for(model)[before:]) >= 5

    await eventually(called_by_all, "calls beside a stream that has begun")
    gate.release()
    for job_id in jobs:
        await completed(ours, job_id)


async def test_a_job_without_another_route_waits_for_it(
    own: Service, ours: httpx.AsyncClient, provider: Provider
) -> None:
    model, failing = (f"alone-{secrets.token_hex(6)}" for _ in range(2))
    begun, well, others = time.monotonic(), False, list[str]()

    async def behave(exchange: Exchange) -> None:
        await (answer() if well else status(503))(exchange)

    provider.always(failing, behave)

    def opened(worker: str) -> list[float]:
        """Return for how many seconds a worker has made no call of it, each time that it began to."""
        log = own.processes[worker].log.read_text()
        return [float(found) for found in re.findall(r"the circuit of only opened.*? for ([0-9.]+) s", log)]

    async def left_alone() -> bool:
        """Submit what fails until neither worker makes another call."""
        others.append(await submit(ours, failing))
        return bool(opened("worker") and opened("worker-2"))

    await eventually(left_alone, "it to be left alone by both workers")
    well = True
    job = await completed(ours, await submit(ours, model))
    assert [attempt["status"] for attempt in job["attempts"]] == ["completed"], "waiting is no attempt"
    [call] = provider.calls_for(model)
    shortest = min(opened("worker")[0], opened("worker-2")[0])
    assert call.arrived_at >= begun + shortest - 0.1, "it came while neither worker made a call"
    await asyncio.gather(*(ours.post(f"/jobs/{job_id}/cancel") for job_id in others))


def too_long() -> Any:
    error = {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded", "param": None}
    return status(400, {"error": error})


async def test_what_is_too_long_goes_to_the_larger_window(ours: httpx.AsyncClient, provider: Provider) -> None:
    model = f"small-{secrets.token_hex(6)}"
    provider.script(model, too_long())
    job = await completed(ours, await submit(ours, model))
    assert [attempt["model"] for attempt in job["attempts"]] == [model, "large"]
    assert job["attempts"][0]["error"]["code"] == "context_length_exceeded"


async def test_what_is_withheld_goes_where_it_is_not(ours: httpx.AsyncClient, provider: Provider) -> None:
    model = f"small-{secrets.token_hex(6)}"
    provider.script(model, answer("", finish="content_filter"))
    response = await ours.post("/chat/completions", json=chat(model))
    assert response.status_code == 200, response.text
    (job,) = (await ours.get("/jobs", params={"model": model})).json()["data"]
    assert [attempt["provider"] for attempt in job["attempts"]] == ["sound", "other"]
    assert job["attempts"][0]["error"]["code"] == "content_filter"


async def test_another_refusal_goes_nowhere(ours: httpx.AsyncClient, provider: Provider) -> None:
    model = f"small-{secrets.token_hex(6)}"
    provider.script(model, status(400))
    refused(await ours.post("/chat/completions", json=chat(model)), 400)
    assert len(provider.calls_for(model)) == 1
