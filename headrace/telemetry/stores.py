"""Measures of this process's stores: how long statements and commands take, and whether the stores answer."""

from __future__ import annotations

from headrace.telemetry.metrics import STORE_SECONDS, STORE_UP


class StoreMeasure:
    """One store, as this process sees it."""

    def __init__(self, store: str) -> None:
        """Know nothing of the store yet."""
        self.up: bool | None = None
        """Whether the store answered the last time; None before the first."""
        self._store = store
        self._seconds = STORE_SECONDS.labels(store)

    def answered(self, seconds: float) -> None:
        """Note an answer, and how long it took."""
        self._seconds.observe(seconds)
        if not self.up:
            self._note(up=True)

    def unavailable(self) -> None:
        """Note that the store did not answer."""
        if self.up is not False:
            self._note(up=False)

    def _note(self, *, up: bool) -> None:
        self.up = up
        STORE_UP.labels(self._store).set(up)


POSTGRES = StoreMeasure("postgres")
REDIS = StoreMeasure("redis")
