"""Requests in every slot wait for a provider that takes no more calls: those for others are answered all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from tests.e2e.jobs import chat
from tests.e2e.streams import chunks_of
from tests.fakes.provider import Gate, Provider, answer
from tests.service import BOOTSTRAP_KEY, Stores, connect, running_service

SLOTS = 4
FEW_SLOTS = {"HEADRACE_WORKER_SLOTS": str(SLOTS), "HEADRACE_RESEND_SECONDS": "3600"}


async def streamed(client: httpx.AsyncClient, model: str) -> str:
    """Return the text of a streamed answer."""
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        chunks = await chunks_of(response)
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def whole(client: httpx.AsyncClient, model: str) -> str:
    """Return the text of a whole answer."""
    response = await client.post("/chat/completions", json=chat(model))
    return str(response.json()["choices"][0]["message"]["content"])


async def test_a_request_for_an_idle_provider_is_answered_and_those_that_wait_get_their_answers_later(
    tmp_path: Path, stores: Stores, config: str, provider: Provider, model: str
) -> None:
    narrow = f"narrow-{model}"
    catalogue = f"""
{config}
[providers.narrow]
kind = "openai"
base_url = "{provider.url()}"
api_key = "env:TESTS_PROVIDER_KEY"
max_concurrency = 1

[models."{narrow}"]
routes = ["narrow/{narrow}"]
"""
    gate = Gate()
    provider.script(narrow, answer("Here.", hold=gate))
    provider.always(narrow, answer("Here."))
    provider.always(model, answer("At once."))
    with running_service(tmp_path, stores.fresh(), catalogue, environment=FEW_SLOTS) as service:
        async with connect(service, BOOTSTRAP_KEY) as client:
            waiting = [asyncio.create_task(ask(client, narrow)) for ask in (streamed, whole) * SLOTS]
            await provider.call(narrow)
            assert await whole(client, model) == await streamed(client, model) == "At once."
            assert len(provider.calls_for(narrow)) == 1
            gate.release()
            assert await asyncio.gather(*waiting) == ["Here."] * 2 * SLOTS
    assert len(provider.calls_for(narrow)) == 2 * SLOTS
