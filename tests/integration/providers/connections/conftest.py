"""A client on each kind of loop: workers run on uvloop, commands on asyncio's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from headrace.providers.client import ProviderClient
from tests.loops import pytest_asyncio_loop_factories

__all__ = ["pytest_asyncio_loop_factories"]


@pytest.fixture
async def client() -> AsyncIterator[ProviderClient]:
    """A client with two connections."""
    client = ProviderClient(connections=2)
    yield client
    await client.close()
