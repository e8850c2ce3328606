"""One connection for plain SQL, and the statements that it keeps prepared.

psycopg's cursor takes a third of the CPU of a short statement: at each call it looks at the text, decides whether to
prepare it, and makes a new adapter of parameters. The statements of the hot path are few and never change. So they are
read at import, and a connection prepares each at its first use and keeps its adapter. All other statements go through
the cursor.

Postgres plans a prepared statement once for all values (a generic plan), or anew for the values of each call (a custom
plan), as it estimates which is cheaper: ten rows for an array that it does not know, one for an array of one id. Once
`jobs` is large, it would plan each claim of one job anew, which takes as long as the claim itself. The hot path's
statements find rows by indexes whatever the values are, so they run with generic plans alone. Such a plan may be made
while a table is empty and kept while it grows, so it may not read a whole table. All other statements are left to
Postgres's choice.
"""

from __future__ import annotations

import asyncio
import functools
import re
import select
from collections import namedtuple
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Self, TypeVar

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import InvalidSqlStatementName, error_from_result
from psycopg.generators import execute
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import namedtuple_row
from psycopg.waiting import Ready, Wait

Result = TypeVar("Result")
RowMaker = Callable[[Sequence[Any]], Any]

# The event of a socket whose other end is closed. Systems that lack it report POLLHUP, which needs no asking for.
_HUNG_UP = getattr(select, "POLLRDHUP", 0)
# What a session is set to for prepared statements, and for others.
_PLANNING = {
    True: b"SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off",
    False: b"RESET plan_cache_mode; RESET enable_seqscan",
}

# A placeholder of psycopg's style, an escaped percent sign, or a percent sign that is neither.
_PLACEHOLDER = re.compile(r"%(?:\((\w+)\)([sbt])|(%)|)")


class Prepared(str):
    """A statement that every connection for plain SQL keeps prepared, as it runs often and its text never changes.

    It is written like any other, and goes through the cursor wherever a transaction runs it.
    """

    __slots__ = ("formats", "is_text", "names", "query")

    query: bytes
    """The text with libpq's placeholders."""
    names: Sequence[str]
    """The parameters, in the order of their placeholders."""
    formats: Sequence[PyFormat]
    is_text: bool
    """Whether all parameters go as text. Then Postgres takes their types from the statement's casts, so that numbers of
    any size, and NULL, are the same statement."""

    def __new__(cls, text: str) -> Self:
        """Read the text.

        Raises:
            ValueError: It has a percent sign that is neither a placeholder's nor escaped.
        """
        self = super().__new__(cls, text)
        found: dict[str, PyFormat] = {}

        def numbered(match: re.Match[str]) -> str:
            name, form, escaped = match.groups()
            if escaped:
                return "%"
            if not name:
                raise ValueError(f"a percent sign in a statement: {text[match.start() :][:40]!r}")
            found.setdefault(name, PyFormat(form))
            return f"${list(found).index(name) + 1}"

        self.query = _PLACEHOLDER.sub(numbered, text).encode()
        self.names, self.formats = tuple(found), list(found.values())
        self.is_text = all(form is PyFormat.TEXT for form in self.formats)
        return self


class PlainConnection:
    """A connection for plain SQL, which runs one statement at a time."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], *, timeout: float) -> None:
        """Take a connection; `timeout` is the patience, in seconds, to which its `statement_timeout` is set."""
        self.connection = connection
        self.timeout = timeout
        self._for_prepared = False
        """Whether the session is set for prepared statements."""
        self._cursor = connection.cursor(row_factory=namedtuple_row)
        self._adapter = Transformer(connection)
        self._names: dict[tuple[str, tuple[int, ...]], bytes] = {}
        """The prepared statements, by their texts and the types of their parameters."""
        self._row_makers: dict[bytes, RowMaker] = {}
        """By the names of the prepared statements."""
        self._loop = asyncio.get_running_loop()
        self._end = select.poll()
        self._end.register(connection.fileno(), _HUNG_UP)

    @property
    def closed(self) -> bool:
        """Whether the connection was closed, by either end."""
        return self.connection.closed

    @property
    def has_ended(self) -> bool:
        """Whether Postgres has ended the session since the last statement.

        A statement that is sent then would fail, and nothing would show that Postgres never had it. This costs 0.3 µs.
        """
        return bool(self._end.poll(0))

    def suits(self, statement: str) -> bool:
        """Return whether the session is set for the statement. If not, `run` sets it, which is one more round trip."""
        return self._for_prepared is isinstance(statement, Prepared)

    async def run(self, statement: str, parameters: Mapping[str, Any] | None) -> list[Any]:
        """Run one statement, and return its rows if it has any.

        Raises:
            psycopg.Error: Postgres refused the statement or is unavailable.
        """
        if parameters is not None:
            if not self.suits(statement):
                await self._cursor.execute(_PLANNING[not self._for_prepared], prepare=False)
                self._for_prepared = not self._for_prepared
            if isinstance(statement, Prepared):
                try:
                    return await self._run_prepared(statement, parameters)
                except InvalidSqlStatementName:
                    # psycopg's cursor has Postgres forget all statements after one that drops or alters something.
                    self._names.clear()
                    self._row_makers.clear()
                    return await self._run_prepared(statement, parameters)
        await self._cursor.execute(statement, parameters)
        # The cursor's `description` would make an object of each column.
        result = self._cursor.pgresult
        return await self._cursor.fetchall() if result is not None and result.nfields else []

    async def close(self) -> None:
        """Close the connection."""
        await self.connection.close()

    async def _run_prepared(self, statement: Prepared, parameters: Mapping[str, Any]) -> list[Any]:
        adapter, libpq = self._adapter, self.connection.pgconn
        values = adapter.dump_sequence([parameters[name] for name in statement.names], statement.formats)
        types, formats = () if statement.is_text else adapter.types or (), adapter.formats
        name = self._names.get((statement, types))
        if name is None:
            name = f"headrace_{len(self._names)}".encode()
            libpq.send_prepare(name, statement.query, types)
            await self._result()
            self._names[statement, types] = name
        libpq.send_query_prepared(name, values, formats)
        result = await self._result()
        if not result.nfields:
            return []
        adapter.set_pgresult(result)
        make_row = self._row_makers.get(name)
        if make_row is None:
            self._row_makers[name] = make_row = _row_maker(*map(result.fname, range(result.nfields)))
        rows: list[Any] = adapter.load_rows(0, result.ntuples, make_row)
        adapter.set_pgresult(None)  # a row may hold a large request
        return rows

    async def _result(self) -> PGresult:
        """Return the result of what was sent.

        Raises:
            psycopg.Error: Postgres refused it, or the connection broke.
        """
        results: list[PGresult] = await self._drive(execute(self.connection.pgconn))
        if results[-1].status == ExecStatus.FATAL_ERROR:
            raise error_from_result(results[-1])
        return results[-1]

    async def _drive(self, exchange: Generator[Wait, Ready, Result]) -> Result:
        """Resume libpq's exchange whenever the socket is ready for it, and return its result."""
        try:
            wanted = next(exchange)
            while True:
                wanted = exchange.send(await self._ready(wanted))
        except StopIteration as ended:
            result: Result = ended.value
            return result

    async def _ready(self, wanted: Wait) -> Ready:
        """Wait for the socket.

        The event loop watches it no longer than that: libpq may close it whenever it runs, and the next connection gets
        its number. A watch that outlived the socket would leave that connection deaf.
        """
        waiter: asyncio.Future[Ready] = self._loop.create_future()
        socket = self.connection.fileno()
        self._loop.add_reader(socket, _wake, waiter, Ready.R)
        if wanted != Wait.R:
            self._loop.add_writer(socket, _wake, waiter, Ready.W)  # its buffer is full
        try:
            return await waiter
        finally:
            self._loop.remove_reader(socket)
            if wanted != Wait.R:
                self._loop.remove_writer(socket)


def _wake(waiter: asyncio.Future[Ready], ready: Ready) -> None:
    if not waiter.done():
        waiter.set_result(ready)


@functools.cache
def _row_maker(*columns: bytes | None) -> RowMaker:
    """Return what makes a named tuple of a row's values."""
    fields = " ".join((column or b"").decode().replace(" ", "_") for column in columns)
    row: Any = namedtuple("Row", fields, rename=True)  # type: ignore[misc]  # noqa: PYI024  (known only now)
    make: RowMaker = row._make
    return make
