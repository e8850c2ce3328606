"""Texts in chunks: pieces in a row, which nearly all chunks of a stream are, and those that were moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class PartText(str):
    """A text that stood among the parts of a content, and not in the field where it is now."""

    __slots__ = ()


@dataclass(slots=True)
class Texts:
    """Chunks that are like `chunk`, which came before them, each with one of `texts` as its content.

    `chunk` has one choice, and its delta has the content alone. Neither it nor a text is empty.
    """

    chunk: Mapping[str, Any]
    texts: Sequence[str]

    @property
    def index(self) -> int:
        """The choice that the texts are of. An exchange of several calls numbers the choice of `chunk` itself."""
        index: int = self.chunk["choices"][0]["index"]
        return index

    def chunks(self) -> list[dict[str, Any]]:
        """Return the chunks one by one."""
        [choice] = self.chunk["choices"]
        return [{**self.chunk, "choices": [{**choice, "delta": {"content": text}}]} for text in self.texts]
