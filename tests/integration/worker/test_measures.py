"""What a worker's attempts at a real provider add to its metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import worker.run
from headrace.dev.valkey import EmbeddedValkey
from headrace.jobs.state import State
from headrace.settings import Settings
from headrace.telemetry import metrics
from tests.fakes.provider import Gate, Provider, answer, chunk, stream
from tests.integration.job_rows import Jobs
from tests.integration.worker.test_executor import Rig, collected, executing  # noqa: F401
from tests.metrics import Rise, values
from tests.service import free_port
from tests.waiting import eventually

CATALOGUE = """
[providers.narrow]
kind = "openai"
base_url = "{url}"
max_concurrency = 1

[providers.absent]
kind = "openai"
base_url = "http://127.0.0.1:{port}/v1"
connect_timeout = 1

[models."{model}"]
routes = ["narrow/{model}"]
input_price = 2.00
output_price = 8.00

[models."lost"]
routes = ["absent/lost"]

[models."any-*"]
routes = ["narrow/*"]
"""


@pytest.fixture
def settings(database_url: str, valkey: EmbeddedValkey, provider: Provider, model: str, tmp_path: Path) -> Settings:
    path = tmp_path / "headrace.toml"
    path.write_text(CATALOGUE.format(url=provider.url(), port=free_port(), model=model))
    options: dict[str, Any] = {
        "DATABASE_URL": database_url,
        "REDIS_URL": valkey.url,
        "config": path,
        "drain_seconds": 0,
        "circuit_failures": 1,
        "attempts_per_route": 1,
        "worker_slots": 7,
    }
    return Settings(**options)


@pytest.fixture
async def rig(settings: Settings, jobs: Jobs, model: str) -> AsyncIterator[Rig]:
    async with executing(settings, jobs, model) as rig:
        yield rig


async def test_a_stream_counts_its_waits_its_first_delta_and_its_groups(
    rig: Rig, provider: Provider, model: str
) -> None:
    provider.script(model, stream(chunk("a"), chunk("b", finish="stop")))
    rises = {
        instrument: Rise(instrument)
        for instrument in (
            metrics.QUEUE_WAIT,
            metrics.OVERHEAD,
            metrics.TIME_TO_FIRST_DELTA,
            metrics.CALL_SECONDS,
            metrics.THROTTLE_WAIT,
            metrics.GROUP_COMMIT,
        )
    }
    assert await rig.ended(await rig.run(streamed=True)) is State.COMPLETED
    assert values(metrics.WORKER_SLOTS) == {(): 7}
    await eventually(lambda: values(metrics.WORKER_SLOTS_TAKEN) == {(): 0}, "the slot to be free")
    risen = {instrument: rise() for instrument, rise in rises.items()}
    groups = risen.pop(metrics.GROUP_COMMIT)
    assert groups.keys() >= {("claim",), ("finish",)}
    assert risen == {
        metrics.QUEUE_WAIT: {("default",): 1},
        metrics.OVERHEAD: {("chat",): 1},
        metrics.TIME_TO_FIRST_DELTA: {("narrow",): 1},
        metrics.CALL_SECONDS: {("narrow",): 1},
        metrics.THROTTLE_WAIT: {("narrow",): 1},
    }


async def test_deltas_that_are_kept_while_a_call_goes_on_count_as_a_group(
    rig: Rig, provider: Provider, model: str
) -> None:
    gate, groups = Gate(), Rise(metrics.GROUP_COMMIT)
    provider.script(model, stream(chunk("a"), gate, chunk("b", finish="stop")))
    job_id = await rig.run(streamed=True)
    await eventually(lambda: groups().get(("deltas",)) == 1, "the first delta to be kept")
    assert values(metrics.WORKER_SLOTS_TAKEN) == {(): 1}
    gate.release()
    assert await rig.ended(job_id) is State.COMPLETED


async def test_a_job_that_finds_no_room_at_its_provider_counts_as_busy(
    rig: Rig, provider: Provider, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.run, "_PATIENCE_SECONDS", 0.01)
    gate, throttled = Gate(), Rise(metrics.THROTTLED)
    provider.script(model, answer("One.", hold=gate))
    first = await rig.run()
    await provider.call(model)
    await rig.run(background=True)
    await eventually(lambda: ("narrow", "busy") in throttled(), "the second to be put back")
    gate.release()
    assert await rig.ended(first) is State.COMPLETED


async def test_an_open_circuit_shows_and_counts_the_jobs_that_it_keeps_back(rig: Rig, jobs: Jobs) -> None:
    throttled, attempts = Rise(metrics.THROTTLED), Rise(metrics.ATTEMPTS)
    for _ in range(2):
        job_id = await jobs.submit(model="lost", request='{"model": "lost", "messages": []}', background=True)
        await rig.executor.take([job_id], tier="default")
        await eventually(lambda: attempts() == {("absent", "lost", "failed", "absent/lost"): 1}, "the failed call")
        await eventually(lambda: values(metrics.CIRCUIT_OPEN).get(("absent",)) == 1, "the circuit to show")
    await eventually(lambda: ("absent", "circuit") in throttled(), "a job that may not call")


async def test_no_label_has_what_a_client_wrote(rig: Rig, jobs: Jobs, provider: Provider, model: str) -> None:
    name = f"any-{model}"
    provider.always(name, answer("One."))
    ended, attempts, tokens = Rise(metrics.JOBS_ENDED), Rise(metrics.ATTEMPTS), Rise(metrics.TOKENS)
    job_id = await jobs.submit(model=name, request=f'{{"model": "{name}", "messages": [], "user": "{model}"}}')
    await rig.executor.take([job_id], tier="default")
    assert await rig.ended(job_id) is State.COMPLETED
    await eventually(lambda: ended() == {("completed", "default", "other"): 1}, "its end to count")
    await eventually(lambda: attempts() == {("narrow", "other", "completed", "narrow/other"): 1}, "its attempt")
    assert tokens().keys() == {("input", "other"), ("output", "other")}
