"""Columns of the rows that a statement writes. One declaration gives both the statement's text and its parameters.

A new column of a job takes two edits: a field of the record in `headrace/jobs/records.py`, and a `Column` in the
declaration beside the statement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, TypeVar

from headrace.stores.arrays import ARRAYS

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Column(Generic[Record]):
    """A column that a statement writes, and where its value is from."""

    name: str
    """Of the table's column, and of the statement's parameter."""
    type: str
    """The parameter's type in Postgres."""
    get: Callable[[Record], Any] | None = None
    """Returns a record's parameter. Without it, the parameter is the record's attribute of the column's name."""
    value: str = "{}"
    """SQL that makes the column's value; `{}` stands for the parameter."""


class Columns(Generic[Record]):
    """Columns of the rows that a statement writes, one row a record. The texts are made at import, not at each call."""

    def __init__(self, *columns: Column[Record]) -> None:
        self._columns = columns
        self._getters = [(column.name, column.get or attrgetter(column.name)) for column in columns]
        self._arrays = [ARRAYS.get(column.type, list) for column in columns]
        self.names = ", ".join(column.name for column in columns)
        """The columns' names, for the list of an INSERT."""
        self.arrays = ", ".join(f"%({column.name})b::{column.type}[]" for column in columns)
        """The parameters that `for_all` returns, for `unnest`."""
        self.scalars = ", ".join(f"%({column.name})t::{column.type}" for column in columns)
        """The parameters that `for_one` returns, for `one_row`."""
        self.single = ", ".join(column.value.format(f"%({column.name})s::{column.type}") for column in columns)
        """The values of a statement that writes one row, made of the parameters that `for_one` returns."""

    def values(self, row: str) -> str:
        """Return the values that an INSERT selects. `row` is the alias that `unnest` gave the parameters."""
        return ", ".join(column.value.format(f"{row}.{column.name}") for column in self._columns)

    def parameters(self, row: str) -> str:
        """Return the parameters themselves, for a RETURNING. `row` is the alias that `unnest` gave them."""
        return ", ".join(f"{row}.{column.name}" for column in self._columns)

    def assignments(self, row: str) -> str:
        """Return what an UPDATE sets. `row` is the alias that `unnest` gave the parameters."""
        return ", ".join(f"{column.name} = {column.value.format(f'{row}.{column.name}')}" for column in self._columns)

    def for_all(self, records: Sequence[Record | None]) -> dict[str, list[Any]]:
        """Return the parameters of a statement that writes a row for each record: an array for each column.

        The items of a record that is None are NULL.
        """
        return {
            name: array([None if record is None else get(record) for record in records])
            for (name, get), array in zip(self._getters, self._arrays, strict=True)
        }

    def for_one(self, record: Record | None) -> dict[str, Any]:
        """Return the parameters of a statement that writes one row. Those of a record that is None are NULL."""
        return {name: None if record is None else get(record) for name, get in self._getters}


def unnest(row: str, *columns: Columns[Any]) -> str:
    """Return the item of a FROM clause that makes rows, with the alias `row`, of the arrays of all these columns."""
    return f"unnest({', '.join(each.arrays for each in columns)}) AS {row} ({_names(columns)})"


def one_row(row: str, *columns: Columns[Any]) -> str:
    """Return the item of a FROM clause that makes one row of what `for_one` returns.

    A process spends a quarter less CPU on it than on `unnest` with arrays of one item.
    """
    return f"(SELECT {', '.join(each.scalars for each in columns)}) AS {row} ({_names(columns)})"


def _names(columns: Sequence[Columns[Any]]) -> str:
    return ", ".join(each.names for each in columns)
