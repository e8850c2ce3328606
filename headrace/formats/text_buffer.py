"""A text that comes in pieces."""

from __future__ import annotations

from collections.abc import Iterable

# Pieces that are joined at a time.
_TOGETHER = 32


class TextBuffer(list[str]):
    """A string that grows, as the list of its parts.

    Pieces are joined many at a time, as each takes 60 bytes more than its text. Adding each to one long string would
    copy that string each time.
    """

    __slots__ = ("_most",)

    def __init__(self, pieces: Iterable[str] = ()) -> None:
        super().__init__(pieces)
        self._most = _TOGETHER
        """How many parts there may be: those that are joined already, and so many pieces."""

    def add(self, piece: str) -> None:
        """Add a piece."""
        self.append(piece)
        if len(self) > self._most:
            self._join()

    def add_all(self, pieces: Iterable[str]) -> None:
        """Add pieces."""
        self += pieces
        if len(self) > self._most:
            self._join()

    def _join(self) -> None:
        joined = self._most - _TOGETHER
        self[joined:] = ["".join(self[joined:])]
        self._most += 1

    @property
    def text(self) -> str:
        """The string so far."""
        return "".join(self)
