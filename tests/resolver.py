"""A resolver of host names in place of the machine's, with a name server that does not answer."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock


class Resolver:
    """Finds every host on loopback. A host whose name has `hanging` in it is found once `answered` is set."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answered = threading.Event()
        self._real = socket.getaddrinfo

    def look_up(self, host: str, port: int | None, *, type: int, flags: int = 0) -> list[Any]:  # noqa: A002
        """Return what `socket.getaddrinfo` does."""
        if flags & socket.AI_NUMERICHOST:
            return self._real(host, port, type=type, flags=flags)
        self.asked.append(host)
        if "hanging" in host:
            self.answered.wait()
        return self._real("127.0.0.1", port, type=type)


@contextlib.contextmanager
def resolving() -> Iterator[Resolver]:
    """Replace the machine's resolver. What hangs is answered at the end."""
    resolver = Resolver()
    with mock.patch.object(socket, "getaddrinfo", resolver.look_up):
        try:
            yield resolver
        finally:
            resolver.answered.set()
