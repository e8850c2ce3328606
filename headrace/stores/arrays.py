"""Lists of one type as parameters of a statement, in Postgres's binary format of arrays.

psycopg finds out what a list holds at each call, by looking at its items. These lists know it, so each costs a fifth.

The format is that of `array_recv` in Postgres's source: the number of dimensions, whether an item is NULL, and the
items' type; for each dimension its length and its first index; for each item its length, or -1 for NULL, and its bytes.
All numbers have four bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

_EMPTY = struct.Struct("!iiI").pack
_HEAD = struct.Struct("!iiIii").pack
_LENGTH = struct.Struct("!i").pack
_NULL = _LENGTH(-1)


class TextArray(list[str | None]):
    """`text[]`."""


class IntArray(list[int | None]):
    """`int[]`."""


class BigIntArray(list[int | None]):
    """`bigint[]`."""


class FloatArray(list[float | None]):
    """`float8[]`."""


class BoolArray(list[bool | None]):
    """`bool[]`."""


class NumericArray(list[Decimal | None]):
    """`numeric[]`, which travels as texts: a statement's cast reads them."""


def _text(value: str) -> bytes:
    data = value.encode()
    return _LENGTH(len(data)) + data


def _as_text(value: object) -> bytes:
    return _text(str(value))


def _fixed(code: str) -> Callable[[Any], bytes]:
    packed = struct.Struct(f"!i{code}")
    size = packed.size - 4
    return lambda value: packed.pack(size, value)


def _dumper(oid_of_array: int, oid_of_item: int, render: Callable[[Any], bytes]) -> type[Dumper]:
    class ArrayDumper(Dumper):
        format = Format.BINARY
        oid = oid_of_array

        def dump(self, obj: list[Any]) -> bytes:
            if not obj:
                return _EMPTY(0, 0, oid_of_item)
            try:
                items = [_NULL if item is None else render(item) for item in obj]
            except struct.error as error:  # as Postgres does, so that only the row that has it fails
                raise psycopg.DataError(f"a parameter is out of range: {error}") from error
            return _HEAD(1, None in obj, oid_of_item, len(obj), 1) + b"".join(items)

    return ArrayDumper


for _kind, _own in (
    (TextArray, _dumper(1009, 25, _text)),
    (IntArray, _dumper(1007, 23, _fixed("i"))),
    (BigIntArray, _dumper(1016, 20, _fixed("q"))),
    (FloatArray, _dumper(1022, 701, _fixed("d"))),
    (BoolArray, _dumper(1000, 16, _fixed("?"))),
    (NumericArray, _dumper(1009, 25, _as_text)),
):
    psycopg.adapters.register_dumper(_kind, _own)

ARRAYS: Mapping[str, type[list[Any]]] = {
    "text": TextArray,
    "int": IntArray,
    "bigint": BigIntArray,
    "float8": FloatArray,
    "bool": BoolArray,
    "numeric": NumericArray,
}
"""The list of each type that has one."""
