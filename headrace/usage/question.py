"""What may be asked of the ledger, checked. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache, cached_property
from zoneinfo import ZoneInfo, available_timezones

from headrace.errors import InvalidRequestError, invalid_parameter, shorten
from headrace.usage.views import Grain, Segment, find_view, has_whole_hours, split

MOST_BUCKETS = 10_000
"""Buckets of one answer."""
# Seconds of the longest time that is read from the ledger row by row, where no roll-up has what is asked.
_LONGEST_OF_ROWS = 31 * 86_400
# Names in one `group_by`.
_MOST_GROUPS = 5
# Characters of a key of metadata.
_LONGEST_KEY = 64
_METADATA = "metadata."

GROUPS = {
    "account": "account_id",
    "key": "key_id",
    "model": "model",
    "answered_model": "answered_model",
    "provider": "provider",
    "agent": "agent_id",
    "batch": "batch_id",
    "tier": "tier",
    "user": "end_user",
}
"""The groups that usage can be split into, besides `metadata.<key>`, and the column of each."""


class Bucket(StrEnum):
    """A stretch of time that usage is added up over. Its limits are those of the clock and the calendar in a zone."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"

    def spans(self, start: int, end: int) -> int:
        """Return how many lie wholly or partly between two times in Unix seconds, or one more; of months, at most."""
        seconds = {"minute": 60, "hour": 3600, "day": 86_400, "month": 28 * 86_400}[self]
        return -(-end // seconds) - start // seconds


@dataclass(frozen=True)
class Question:
    """A question about usage: accounts, time (Unix seconds, `end` excluded), groups and filters.

    `account_ids` of None are all accounts. The values of `only` are those that count, by the names of groups.
    """

    account_ids: Sequence[str] | None
    start: int
    end: int
    bucket: Bucket | None = None
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    groups: Sequence[str] = ()
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    metadata_keys: Sequence[str] = ()
    """Those that roll-ups know."""

    @cached_property
    def names(self) -> list[str]:
        """All groups that the answer depends on."""
        return list(dict.fromkeys([*self.groups, *self.only]))

    def view(self, *, latency: bool = False) -> str | None:
        """Return which roll-ups answer this, or None if only the ledger itself does."""
        if self.bucket is Bucket.MINUTE or not self._has_whole_hours:
            return None
        metadata = [name for name in self.names if is_metadata(name)]
        if metadata:
            alone = len(metadata) == 1 and all(name in {metadata[0], "account"} for name in self.names)
            known = metadata_key(metadata[0]) in self.metadata_keys
            return "metadata" if alone and known and not latency else None
        return find_view({GROUPS[name] for name in self.names} - {"account_id"}, latency=latency)

    def segments(self, view: str | None) -> list[Segment]:
        """Return the stretches of time that roll-ups are read for; the rest is read from the ledger."""
        if view is None:
            return []
        return split(datetime.fromtimestamp(self.start, UTC), datetime.fromtimestamp(self.end, UTC), self._grains)

    @cached_property
    def _has_whole_hours(self) -> bool:
        return self.is_utc or has_whole_hours(
            self.zone, datetime.fromtimestamp(self.start, UTC), datetime.fromtimestamp(self.end, UTC)
        )

    @property
    def is_utc(self) -> bool:
        """Whether its buckets are those of UTC."""
        return self.zone.key == "UTC"

    @property
    def _grains(self) -> tuple[Grain, ...]:
        if self.bucket is None or (self.bucket is Bucket.MONTH and self.is_utc):
            return ("hour", "day", "month")
        return ("hour", "day") if self.bucket is Bucket.DAY and self.is_utc else ("hour",)

    def check(self, *, latency: bool = False) -> None:
        """Check that a client can wait for the answer, with percentiles if `latency` is set.

        Raises:
            InvalidRequestError: The end is not after the start, or there are too many buckets or rows in between.
        """
        if self.start >= self.end:
            raise invalid_parameter("end", "the end is not after the start")
        if self.bucket is not None and self.bucket.spans(self.start, self.end) > MOST_BUCKETS:
            raise invalid_parameter(
                "bucket", f"from start to end there are more than {MOST_BUCKETS} of a {self.bucket}"
            )
        if self.end - self.start <= _LONGEST_OF_ROWS:
            return
        if self.view() is None:
            raise _too_long("no roll-up has this combination of groups and filters, or the time zone's hours")
        if latency and self.view(latency=True) is None:
            raise _too_long("no roll-up has percentiles for this combination of groups and filters")


def _too_long(reason: str) -> InvalidRequestError:
    return invalid_parameter("start", f"{reason}; such a query may span at most 31 days")


def is_metadata(name: str) -> bool:
    """Return whether a group is that of a metadata key."""
    return name.startswith(_METADATA)


def metadata_key(name: str) -> str:
    """Return the metadata key that a group is of."""
    return name.removeprefix(_METADATA)


def parse_groups(names: Sequence[str]) -> list[str]:
    """Return these groups, each once.

    Raises:
        InvalidRequestError: There is no such group, or there are too many.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in GROUPS and not _is_metadata_group(name):
            supported = ", ".join(GROUPS)
            raise invalid_parameter("group_by", f"'{shorten(name)}'. Supported values are: {supported}, metadata.<key>")
    if len(names) > _MOST_GROUPS:
        raise invalid_parameter("group_by", f"there are more than {_MOST_GROUPS}")
    return names


def _is_metadata_group(name: str) -> bool:
    return is_metadata(name) and 0 < len(metadata_key(name)) <= _LONGEST_KEY and "\0" not in name


@cache  # they are looked for in files
def _zones() -> frozenset[str]:
    """Return the names that Postgres understands as Python does.

    Those without a slash are often an offset to it, such as `CET`, which has no summer; and `localtime` is nothing.
    """
    return frozenset({"UTC", *(name for name in available_timezones() if "/" in name)})


def parse_zone(name: str | None) -> ZoneInfo:
    """Return the time zone of that name, UTC without one.

    Raises:
        InvalidRequestError: There is no such zone.
    """
    if name is None:
        return ZoneInfo("UTC")
    if name not in _zones():
        raise unknown_zone(name)
    return ZoneInfo(name)


def unknown_zone(name: str) -> InvalidRequestError:
    """Return the error for a time zone that does not exist."""
    return invalid_parameter("time_zone", f"'{shorten(name)}'. Expected a name such as 'Europe/Berlin'")
