"""Lists of one type, as Postgres reads them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from headrace.stores.arrays import ARRAYS
from headrace.stores.database import Database, execute

ITEMS: dict[str, list[Any]] = {
    "text": ["a", None, "", "ä 漢 🙂", "{,}\\", "x" * 100_000],
    "int": [0, None, -1, 2**31 - 1, -(2**31)],
    "bigint": [0, None, -1, 2**63 - 1, -(2**63)],
    "float8": [0.5, None, 3, -1e300, float("inf")],
    "bool": [True, None, False],
    "numeric": [Decimal("0.10"), None, Decimal("-1E-30"), Decimal("12345678901234567890.123456789"), Decimal(0)],
}


@pytest.mark.parametrize("kind", ARRAYS)
async def test_postgres_reads_what_a_list_holds(database: Database, kind: str) -> None:
    for items in (ITEMS[kind], ITEMS[kind][:1], [None, None], []):
        rows = await execute(database.relaxed, f"SELECT %(items)b::{kind}[]", {"items": ARRAYS[kind](items)})
        assert rows[0][0] == items


@pytest.mark.parametrize(("kind", "item"), [("int", 2**31), ("bigint", 2**63), ("text", "a\0b")])
async def test_an_item_that_postgres_has_no_place_for_is_refused(database: Database, kind: str, item: object) -> None:
    with pytest.raises(DBAPIError):
        await execute(database.relaxed, f"SELECT %(items)b::{kind}[]", {"items": ARRAYS[kind]([item])})
