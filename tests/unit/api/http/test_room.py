"""Room for large bodies: taken as they arrive, given back, and shared between accounts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import Request

from api.http import room as module
from api.http.room import Room
from headrace.errors import RateLimitError, UnavailableError

MIB = 1024 * 1024


def request_of(account_id: str) -> Request:
    state: dict[str, Any] = {"account_id": account_id}
    return Request({"type": "http", "headers": [], "state": state})


async def test_an_account_has_half_of_the_room_at_most() -> None:
    room, one, other = Room(4 * MIB), request_of("a"), request_of("a")
    await room.take(one, 2 * MIB)
    with pytest.raises(RateLimitError):
        await room.take(other, MIB)
    await room.take(request_of("b"), 2 * MIB)
    room.give_back(one)
    await room.take(other, 2 * MIB)


async def test_a_body_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    room, first = Room(4 * MIB), request_of("a")
    await room.take(first, 2 * MIB)
    await room.take(request_of("b"), 2 * MIB)
    waiting = asyncio.create_task(room.take(request_of("c"), MIB))
    await asyncio.sleep(0)
    room.give_back(first)
    await waiting
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.05)
    await room.take(request_of("d"), MIB)
    with pytest.raises(UnavailableError):
        await room.take(request_of("e"), MIB)


async def test_small_bodies_take_none() -> None:
    room = Room(2 * MIB)
    await asyncio.gather(*(room.take(request_of("a"), 64 * 1024) for _ in range(100)))
    await room.take(request_of("a"), MIB)
