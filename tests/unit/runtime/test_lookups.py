from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from headrace.runtime.lookups import Lookups, TooManyLookupsError
from tests.resolver import Resolver, resolving
from tests.waiting import PATIENCE, eventually


@pytest.fixture(autouse=True)
def resolver() -> Iterator[Resolver]:
    with resolving() as resolver:
        yield resolver


async def found(lookups: Lookups, host: str, port: int | None = None) -> list[object]:
    async with asyncio.timeout(PATIENCE):
        return [address[4] for address in await lookups.find(host, port)]


async def test_a_host_whose_lookup_hangs_delays_no_other(resolver: Resolver) -> None:
    lookups = Lookups()
    first, *others = [asyncio.create_task(lookups.find("hanging.invalid")) for _ in range(100)]
    await eventually(lambda: resolver.asked, "the lookup to hang")
    for task in others:
        task.cancel()
    await asyncio.wait(others)
    later = asyncio.create_task(lookups.find("hanging.invalid"))
    assert await found(lookups, "quick.invalid", 80) == [("127.0.0.1", 80)]
    assert not first.done()
    resolver.answered.set()
    assert await first == await later
    assert resolver.asked == ["hanging.invalid", "quick.invalid"], "all that wait for a host share its lookup"
    await lookups.find("hanging.invalid")
    assert len(resolver.asked) == 3, "no answer is kept"


async def test_each_port_has_its_own_addresses(resolver: Resolver) -> None:
    lookups = Lookups()
    one, other = (asyncio.create_task(lookups.find("hanging.invalid", port)) for port in (80, 443))
    await eventually(lambda: len(resolver.asked) == 2, "both lookups to hang")
    resolver.answered.set()
    assert [address[4] for address in (*await one, *await other)] == [("127.0.0.1", 80), ("127.0.0.1", 443)]


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", ("127.0.0.1", 80)), ("::1", ("::1", 80, 0, 0))])
async def test_an_address_needs_no_lookup(resolver: Resolver, host: str, address: object) -> None:
    assert await found(Lookups(most=0), host, 80) == [address]
    assert not resolver.asked


async def test_a_failure_reaches_all_that_wait(monkeypatch: pytest.MonkeyPatch, resolver: Resolver) -> None:
    lookups = Lookups()
    tasks = [asyncio.create_task(lookups.find("hanging.invalid")) for _ in range(3)]
    await eventually(lambda: resolver.asked, "the lookup to hang")
    monkeypatch.setattr(resolver, "_real", refuse)
    resolver.answered.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["[Errno -2] Name or service not known"] * 3


def refuse(*_: object, **__: object) -> list[object]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


async def test_lookups_that_hang_are_not_without_number(resolver: Resolver) -> None:
    lookups = Lookups(most=1)
    hanging = asyncio.create_task(lookups.find("hanging.invalid"))
    await eventually(lambda: resolver.asked, "the lookup to hang")
    with pytest.raises(TooManyLookupsError, match="Too many"):
        await lookups.find("quick.invalid")
    resolver.answered.set()
    await hanging
    await lookups.find("quick.invalid")


_ENDING = """
import asyncio
from headrace.runtime.lookups import Lookups
from tests.resolver import resolving
from tests.waiting import eventually
async def give_up():
    waiting = asyncio.create_task(Lookups().find("hanging.invalid"))
    await eventually(lambda: resolver.asked, "the lookup to hang")
    assert not waiting.done()
context = resolving()
resolver = context.__enter__()
asyncio.run(give_up())
"""


def test_a_lookup_that_hangs_does_not_keep_its_process() -> None:
    assert subprocess.run([sys.executable, "-c", _ENDING], check=False, timeout=PATIENCE).returncode == 0
