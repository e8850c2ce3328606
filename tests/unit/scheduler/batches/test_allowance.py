"""How many lines budgets pay for, without a ledger: the money left is the budget minus the money spent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.catalogue.file import CatalogueFile
from headrace.catalogue.models import Catalogue
from headrace.stores.connections import Row
from headrace.stores.database import Database
from scheduler.batches import allowance
from scheduler.batches.allowance import Allowances, Estimate, outstanding

NO_DATABASE = cast("Database", None)
NO_CATALOGUE = cast("Catalogue", None)
CENT = Decimal("0.01")


@dataclass
class Batch:
    """The columns of a batch's row that allowances read. Each of its lines costs the same."""

    id: str
    key_id: str = "key_a"
    price: Decimal = CENT
    total: int = 100
    native_route: str | None = None
    account_id: str = "acct"
    state: str = "in_progress"
    fed: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    overdue: bool = False

    @property
    def cost(self) -> Decimal | None:
        """The cost of the lines that have ended."""
        return self.completed * self.price if self.completed else None

    @property
    def row(self) -> Row:
        """The batch as a row, for functions that take rows."""
        return cast("Row", self)

    @property
    def running(self) -> int:
        """How many lines run."""
        return outstanding(self.row)


@dataclass
class World:
    """Batches, and budgets of their keys and their account."""

    budgets: dict[str, Decimal]
    batches: list[Batch]
    spent: dict[str, Decimal] = field(default_factory=dict)
    now: float = 0

    def __post_init__(self) -> None:
        self.allowances = Allowances(NO_DATABASE, cast("CatalogueFile", SimpleNamespace(current=NO_CATALOGUE)))

    async def find_left(self, database: Database, keys: Iterable[str]) -> dict[str, Decimal]:
        """Stand in for the question to the ledger."""
        del database
        known = {"acct", *keys}
        return {name: left - self.spent.get(name, 0) for name, left in self.budgets.items() if name in known}

    async def look(self) -> None:
        """Look at those batches that have not ended."""
        await self.allowances.look([batch.row for batch in self.batches if batch.completed < batch.total])

    def lines(self) -> list[float]:
        """Return how many lines of each batch may run."""
        return [self.allowances.lines(batch.row) for batch in self.batches]

    def feed(self, batch: Batch) -> None:
        """Let as many lines run as may."""
        lines = min(self.allowances.lines(batch.row), batch.running + batch.total - batch.fed)
        batch.fed += max(0, int(lines) - batch.running)

    def end(self, batch: Batch, lines: int) -> None:
        """Let so many lines end."""
        lines = min(lines, batch.running)
        batch.completed += lines
        for name in (batch.key_id, batch.account_id):
            self.spent[name] = self.spent.get(name, Decimal()) + lines * batch.price

    def committed(self, name: str) -> Decimal:
        """Return the money that a budget has spent, with the price of the lines that run."""
        running = sum(batch.running * batch.price for batch in self.batches if name in (batch.key_id, "acct"))
        return self.spent.get(name, Decimal()) + running


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A world without batches, whose budgets a test gives."""
    world = World({}, [])
    govern(world, monkeypatch)
    return world


def govern(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer questions to the ledger, the input and the clock from a world."""

    async def estimate(
        database: Database, catalogue: Catalogue, batch: Any, *, most: int, money: Decimal | None = None, ahead: Any = 0
    ) -> Estimate:
        del database, catalogue, ahead
        lines = most if money is None else min(most, int(money / batch.price))
        return Estimate(lines, lines * batch.price)

    monkeypatch.setattr(allowance, "find_left", world.find_left)
    monkeypatch.setattr(allowance, "estimate", estimate)
    monkeypatch.setattr(allowance, "time", SimpleNamespace(monotonic=lambda: world.now))


async def test_without_a_budget_any_number_of_lines_runs(world: World) -> None:
    world.batches.append(Batch("b"))
    await world.look()
    assert world.lines() == [float("inf")]


async def test_at_first_one_line_runs_and_then_what_is_left_pays_for(world: World) -> None:
    world.budgets["key_a"] = Decimal(1)
    world.batches.append(batch := Batch("b", total=1000))
    for running, ended in ((1, 1), (99, 50), (49, 49)):
        await world.look()
        world.feed(batch)
        assert batch.running == running
        world.end(batch, ended)
    await world.look()
    assert world.lines() == [0]
    assert world.spent["key_a"] == Decimal(1)


async def test_while_all_fail_no_more_run_than_have_ended(world: World) -> None:
    world.budgets["key_a"] = Decimal(1)
    world.batches.append(batch := Batch("b"))
    running = []
    for _ in range(5):
        await world.look()
        world.feed(batch)
        running.append(batch.running)
        batch.failed += batch.running
    assert running == [1, 1, 2, 4, 8]


async def test_two_keys_share_what_is_left_of_their_account(world: World) -> None:
    world.budgets |= {"acct": Decimal(1), "key_b": Decimal("0.1")}
    world.batches += [Batch("a", "key_a", completed=1, fed=1), Batch("b", "key_b", completed=1, fed=1)]
    await world.look()
    assert world.lines() == [50, 10]
    for batch in world.batches:
        world.feed(batch)
    await world.look()
    assert world.lines() == [50 + 40 // 2, 10], "what the second cannot use is shared again"


async def test_the_oldest_has_a_line_where_shares_are_less_than_one(world: World) -> None:
    world.budgets["acct"] = Decimal("0.025")
    world.batches += [Batch(name, completed=1, fed=1) for name in "abcd"]
    await world.look()
    assert world.lines() == [1, 1, 0, 0]


async def test_what_is_left_is_spent_by_one_line_alone(world: World) -> None:
    world.budgets["acct"] = Decimal("0.005")
    world.batches += [Batch("a"), Batch("b", "key_b")]
    await world.look()
    assert world.lines() == [1, 0]
    world.feed(world.batches[0])
    await world.look()
    assert world.lines() == [1, 0]
    world.end(world.batches[0], 1)
    await world.look()
    assert world.lines() == [0, 0]


async def test_a_provider_is_handed_what_the_budget_pays_for(world: World) -> None:
    world.budgets["acct"] = Decimal("0.30")
    world.batches += [native := Batch("n", native_route="p/m"), beside := Batch("b", "key_b", completed=1, fed=1)]
    await world.look()
    with world.allowances.purse(native.row) as purse:
        assert await purse.take(NO_DATABASE, NO_CATALOGUE, native.row, 100) == 15
        await world.look()
        assert world.allowances.lines(beside.row) == 15, "what the other takes is gone"
    native.fed = 15
    world.feed(beside)
    for _ in range(2):
        await world.look()
        with world.allowances.purse(native.row) as purse:
            assert await purse.take(NO_DATABASE, NO_CATALOGUE, native.row, 85) == 0
        world.now += 10
    world.end(native, 15)
    world.end(beside, 15)
    assert world.spent["acct"] == Decimal("0.30")


async def test_what_a_provider_has_is_estimated_again_by_the_next_scheduler(world: World) -> None:
    world.budgets["acct"] = Decimal("0.30")
    world.batches += [Batch("n", native_route="p/m", fed=20), Batch("b", "key_b", completed=1, fed=1)]
    await world.look()
    assert world.lines()[1] == 10 // 2


async def test_a_small_budget_still_hands_one_line_over(world: World) -> None:
    world.budgets["acct"] = Decimal("0.001")
    world.batches.append(native := Batch("n", native_route="p/m"))
    await world.look()
    assert world.allowances.lines(native.row) == 1
    with world.allowances.purse(native.row) as purse:
        assert await purse.take(NO_DATABASE, NO_CATALOGUE, native.row, 100) == 1


STEP = st.tuples(st.integers(0, 3), st.integers(0, 20), st.sampled_from([0.1, 0.1, 0.1, 3.0]))


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    budgets=st.fixed_dictionaries(
        {"acct": st.integers(0, 200)}, optional={"key_a": st.integers(0, 100), "key_b": st.integers(0, 100)}
    ),
    prices=st.lists(st.integers(0, 30), min_size=4, max_size=4),
    steps=st.lists(STEP, min_size=10, max_size=60),
)
def test_no_budget_is_exceeded_by_more_than_a_line(
    monkeypatch: pytest.MonkeyPatch, budgets: dict[str, int], prices: list[int], steps: list[tuple[int, int, float]]
) -> None:
    world = World(
        {name: budget * CENT for name, budget in budgets.items()},
        [Batch(f"b{n}", "key_a" if n < 2 else "key_b", price * CENT, 30) for n, price in enumerate(prices)],
    )
    govern(world, monkeypatch)

    async def run() -> None:
        for place, lines, pause in steps:
            await world.look()
            for batch in world.batches:
                world.feed(batch)
            for name, budget in world.budgets.items():
                dearest = max(batch.price for batch in world.batches if name in (batch.key_id, "acct"))
                assert world.committed(name) <= budget + dearest
            world.end(world.batches[place], lines)
            world.now += pause

    asyncio.run(run())
