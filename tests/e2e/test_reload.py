"""A changed configuration, taken up on SIGHUP while jobs run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.jobs import chat, completed, submit
from tests.fakes.provider import Gate, Provider, answer
from tests.service import BOOTSTRAP_KEY, Service, Stores, connect, running_service
from tests.waiting import until


@pytest.fixture
def own(tmp_path: Path, stores: Stores, config: str) -> Iterator[Service]:
    with running_service(tmp_path / "service", stores.fresh(), config) as service:
        yield service


def reload(service: Service, config: str) -> None:
    """Change the file and tell API and worker; return when both have logged the result."""
    service.mark()
    (service.directory / "models.toml").write_text(config)
    for name in ("api", "worker"):
        os.kill(service.processes[name].pid, signal.SIGHUP)
    until(lambda: service.tail().count("the configuration") == 2, "both to have read the configuration")


async def test_a_new_model_is_served_and_no_job_is_dropped(own: Service, provider: Provider, config: str) -> None:
    gate = Gate()
    provider.script("fake-held", answer("Held.", hold=gate))
    async with connect(own, BOOTSTRAP_KEY) as client:
        held = await submit(client, "fake-held")
        await provider.call("fake-held")
        assert (await client.post("/chat/completions", json=chat("brand-new"))).status_code == 404
        reload(own, config.replace('[models."renamed"]', '[models."brand-new"]'))
        response = await client.post("/chat/completions", json=chat("brand-new"))
        assert response.status_code == 200, response.text
        assert (await client.post("/chat/completions", json=chat("renamed"))).status_code == 404
        gate.release()
        job = await completed(client, held)
    assert job["attempt"] == 1
    assert job["result"]["choices"][0]["message"]["content"] == "Held."


async def test_a_wrong_file_changes_nothing(own: Service, config: str) -> None:
    async with connect(own, BOOTSTRAP_KEY) as client:
        for text in ("before", "after"):
            response = await client.post("/chat/completions", json=chat("fake", text))
            assert response.status_code == 200, response.text
            if text == "before":  # and the worker is there to hear of it
                reload(own, config.replace("timeout = 120", "timeuot = 120"))
                assert "timeuot" in own.tail()
