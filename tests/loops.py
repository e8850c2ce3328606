"""The kinds of event loop that tests run on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run each test on both loops. A directory's `conftest.py` imports this hook for its tests."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
