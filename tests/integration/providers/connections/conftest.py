"""A client on each kind of loop: workers run on uvloop, commands on asyncio's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from headrace.providers.client import ProviderClient


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run each test on both loops."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def client() -> AsyncIterator[ProviderClient]:
    """A client with two connections."""
    client = ProviderClient(connections=2)
    yield client
    await client.close()
