"""A TCP proxy between two parts, which stalls, cuts, refuses or slows what goes through it when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from enum import StrEnum
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class Mode(StrEnum):
    """The state of a link."""

    PASS = "pass"
    STALL = "stall"
    """Connections stay and nothing goes through, in either way, their ends too: half-open, as behind a dead router."""
    DEAD = "dead"
    """The connections that there are stall, and new ones pass: as connections do whose router died."""
    CUT = "cut"
    """Every connection is reset, once; new ones pass."""
    REFUSE = "refuse"
    """Connections are reset, and new ones too."""
    SLOW = "slow"
    """A kilobyte at a time, 20 ms apart."""


_SLOW_BYTES = 1024
_SLOW_SECONDS = 0.02
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds


class Link:
    """One proxy, on a loop in a thread of its own. It goes to a port of this machine or to a Unix socket."""

    def __init__(self, target: int | Path) -> None:
        """Listen on a free port."""
        self._target = target
        self._mode = Mode.PASS
        self._gates: set[asyncio.Event] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    def be(self, mode: Mode) -> None:
        """Change the link's state."""
        asyncio.run_coroutine_threadsafe(self._be(mode), self._loop).result()

    def close(self) -> None:
        """Cut everything and end the thread."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _close(self) -> None:
        self._server.close()
        await self._be(Mode.REFUSE)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _be(self, mode: Mode) -> None:
        self._mode = Mode.PASS if mode is Mode.CUT else mode
        for gate in self._gates:
            if mode in {Mode.STALL, Mode.DEAD}:
                gate.clear()
            else:
                gate.set()
        if mode in {Mode.CUT, Mode.REFUSE}:
            for writer in list(self._writers):
                _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode is Mode.REFUSE:
            await _end(writer)
            return
        gate = asyncio.Event()
        if self._mode is not Mode.STALL:
            gate.set()
        self._gates.add(gate)
        try:
            # asyncio reports a connection's task that was cancelled as an error: it ends by itself.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._carry(gate, reader, writer)
        finally:
            self._gates.discard(gate)
            await _end(writer)

    async def _carry(self, gate: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        if isinstance(self._target, Path):
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._target))
        else:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(self._pump(gate, reader, far_writer), self._pump(gate, far_reader, writer))
        except OSError:
            await gate.wait()
        finally:
            self._writers -= {writer, far_writer}
            await _end(far_writer)

    async def _pump(self, gate: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await gate.wait()
            if self._mode is not Mode.SLOW:
                writer.write(data)
            else:
                for at in range(0, len(data), _SLOW_BYTES):
                    writer.write(data[at : at + _SLOW_BYTES])
                    await asyncio.sleep(_SLOW_SECONDS)
            await writer.drain()
        await gate.wait()
        with contextlib.suppress(OSError):
            writer.write_eof()


def postgres_socket(database_url: str) -> Path:
    """Return the socket of an embedded Postgres, as a link's target."""
    [directory] = parse_qs(urlsplit(database_url).query)["host"]
    return Path(directory) / ".s.PGSQL.5432"


async def _end(writer: asyncio.StreamWriter) -> None:
    """Reset a connection, and return once its socket is closed: a socket open at the loop's end is an error."""
    _reset(writer)
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket | None = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        if connection is not None and connection.family == socket.AF_INET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
