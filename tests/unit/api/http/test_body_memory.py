"""The memory for large bodies: taken as they arrive, given back, and shared between accounts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.http import body_memory
from api.http.body_memory import BodyMemory
from api.http.request import ApiRequest
from headrace.errors import RateLimitError, UnavailableError

MIB = 1024 * 1024


def request_of(account_id: str) -> ApiRequest:
    state: dict[str, Any] = {"account_id": account_id}
    return ApiRequest({"type": "http", "headers": [], "state": state})


async def test_an_account_has_half_of_the_memory_at_most() -> None:
    memory, one, other = BodyMemory(4 * MIB), request_of("a"), request_of("a")
    await memory.take(one, 2 * MIB)
    with pytest.raises(RateLimitError):
        await memory.take(other, MIB)
    await memory.take(request_of("b"), 2 * MIB)
    memory.give_back(one)
    await memory.take(other, 2 * MIB)


async def test_a_body_waits_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, first = BodyMemory(4 * MIB), request_of("a")
    await memory.take(first, 2 * MIB)
    await memory.take(request_of("b"), 2 * MIB)
    waiting = asyncio.create_task(memory.take(request_of("c"), MIB))
    await asyncio.sleep(0)
    memory.give_back(first)
    await waiting
    monkeypatch.setattr(body_memory, "_PATIENCE_SECONDS", 0.05)
    await memory.take(request_of("d"), MIB)
    with pytest.raises(UnavailableError):
        await memory.take(request_of("e"), MIB)


async def test_small_bodies_take_none() -> None:
    memory = BodyMemory(2 * MIB)
    await asyncio.gather(*(memory.take(request_of("a"), 64 * 1024) for _ in range(100)))
    await memory.take(request_of("a"), MIB)
