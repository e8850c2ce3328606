"""A stored completion as its reader gets it: with its job's metadata, and as it was stored otherwise."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import orjson

from api.resources.stored import _render
from headrace.runtime.offload import LARGE_BYTES


def row(response: str) -> Any:
    return SimpleNamespace(response=response, metadata={"customer": "1"})


async def text_of(response: str) -> str:
    return orjson.dumps(await _render(row(response))).decode()


async def test_metadata_of_the_provider_are_replaced() -> None:
    stored = orjson.dumps({"id": "a", "metadata": {"theirs": 1}, "usage": {"metadata": 2}}).decode()
    assert orjson.loads(await text_of(stored)) == {"id": "a", "metadata": {"customer": "1"}, "usage": {"metadata": 2}}


async def test_a_completion_that_only_says_metadata_is_not_parsed() -> None:
    said = orjson.dumps({"content": '"metadata":', "token": "metadata", "text": 'the "metadata'}).decode()
    stored = f'{{"exact":1.50,"said":{said}}}'
    assert await text_of(stored) == f'{stored[:-1]},"metadata":{{"customer":"1"}}}}'


async def test_a_large_completion_is_parsed_beside_the_event_loop() -> None:
    stored = orjson.dumps({"text": LARGE_BYTES * "x", "usage": {"metadata": 2}}).decode()
    rendering = asyncio.create_task(_render(row(stored)))
    await asyncio.sleep(0)
    assert not rendering.done()
    assert orjson.loads(orjson.dumps(await rendering)) == {**orjson.loads(stored), "metadata": {"customer": "1"}}
