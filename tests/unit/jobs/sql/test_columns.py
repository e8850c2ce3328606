from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

import pytest

from headrace.formats.chat.usage import TokenUsage
from headrace.jobs.records import FinishedJob, NewJob, NewLine, Segment
from headrace.jobs.sql.accept import NEW_JOB
from headrace.jobs.sql.columns import Column, Columns, unnest
from headrace.jobs.sql.lines import NEW_LINE
from headrace.jobs.sql.run import FINISHED_JOB, SEGMENT
from headrace.jobs.sql.usage import SPENT
from headrace.jobs.state import State
from headrace.jobs.tables import job_deltas, jobs
from headrace.usage.spent import SpentUsage
from headrace.usage.tables import usage


@dataclass(frozen=True)
class Parcel:
    """A record before a column is added."""

    id: str
    seconds: float


@dataclass(frozen=True)
class HeavyParcel(Parcel):
    """The first edit: the record has one more field."""

    grams: int


ID: Column[Any] = Column("id", "text")
DUE_AT: Column[Any] = Column("due_at", "float8", attrgetter("seconds"), "now() + {} * '1 s'")


def test_a_column_is_added_by_a_field_and_a_declaration() -> None:
    before = Columns[Parcel](ID, DUE_AT)
    assert before.names == "id, due_at"
    assert before.values("new") == "new.id, now() + new.due_at * '1 s'"
    assert before.assignments("new") == "id = new.id, due_at = now() + new.due_at * '1 s'"
    assert before.single == "%(id)s::text, now() + %(due_at)s::float8 * '1 s'"
    assert unnest("new", before) == "unnest(%(id)b::text[], %(due_at)b::float8[]) AS new (id, due_at)"
    assert before.for_all([Parcel("a", 1), Parcel("b", 2)]) == {"id": ["a", "b"], "due_at": [1, 2]}

    after = Columns[HeavyParcel](ID, DUE_AT, Column("grams", "int"))  # the second edit
    assert after.names == "id, due_at, grams"
    assert after.values("new").endswith(", new.grams")
    assert after.assignments("new").endswith(", grams = new.grams")
    assert after.single.endswith(", %(grams)s::int")
    assert "%(grams)b::int[]) AS new (id, due_at, grams)" in unnest("new", after)
    assert after.for_all([HeavyParcel("a", 1, 500)]) == {"id": ["a"], "due_at": [1], "grams": [500]}


def test_columns_of_several_declarations_make_one_row() -> None:
    weight = Columns[HeavyParcel](Column("grams", "int"))
    assert unnest("new", Columns[Parcel](ID), weight) == "unnest(%(id)b::text[], %(grams)b::int[]) AS new (id, grams)"


def test_a_missing_record_has_nulls() -> None:
    columns = Columns[Parcel](ID, DUE_AT)
    assert columns.for_all([None, Parcel("b", 2)]) == {"id": [None, "b"], "due_at": [None, 2]}
    assert columns.for_one(None) == {"id": None, "due_at": None}
    assert columns.for_one(Parcel("b", 2)) == {"id": "b", "due_at": 2}


def test_every_column_is_one_of_its_table() -> None:
    for columns, table in (
        (NEW_JOB, jobs),
        (NEW_LINE, jobs),
        (FINISHED_JOB, jobs),
        (SEGMENT, job_deltas),
        (SPENT, usage),
    ):
        assert set(columns.names.split(", ")) <= set(table.columns.keys())


SPENT_USAGE = SpentUsage("P", "M", TokenUsage(1, 2, 3, 4, False, 5))


@pytest.mark.parametrize(
    ("record", "columns", "elsewhere"),
    [
        (NewJob, NEW_JOB, set[str]()),
        (NewLine, NEW_LINE, set[str]()),
        (Segment, SEGMENT, {"job_id", "attempt"}),
        (FinishedJob, FINISHED_JOB, {"id", "attempt", "segment", "spent", "turn", "followed"}),
        (SpentUsage, SPENT, {"provider"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_field_of_a_record_has_a_column(record: type, columns: Columns[Any], elsewhere: set[str]) -> None:
    read = set[str]()
    known: Mapping[str, Any] = {"state": State.COMPLETED, "record": "{}", "tokens": SPENT_USAGE.tokens}

    class Probe:
        def __getattr__(self, name: str) -> Any:
            read.add(name)
            return known.get(name)

    columns.for_one(Probe())
    assert read == {field.name for field in fields(record)} - elsewhere
