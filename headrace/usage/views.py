"""Which questions which roll-ups answer. Pure.

A roll-up of all dimensions would be nearly as long as the ledger; so there are several, each with what is asked for
together. What none of them has is answered from the ledger itself, which is as exact and takes longer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

VIEWS: dict[str, tuple[str, ...]] = {
    "total": (),
    "key": ("key_id",),
    "model": ("model", "answered_model", "provider"),
    "agent": ("agent_id",),
    "tier": ("tier",),
    "batch": ("batch_id",),
    "user": ("end_user",),
    "metadata": ("metadata_key", "metadata_value"),
    "key_model": ("model", "answered_model", "provider", "key_id"),
    "common": ("model", "answered_model", "provider", "key_id", "agent_id", "tier"),
}
"""The views and the dimensions of each, smaller ones first."""

LATENCY_VIEWS = ("total", "key", "model")
"""Those that also have how long answers took."""

Grain = Literal["hour", "day", "month"]

_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Segment:
    """Part of a stretch of time: whole hours, days or months in UTC, from `start` to just before `end`."""

    grain: Grain
    start: datetime
    end: datetime


def find_view(dimensions: Collection[str], *, latency: bool = False) -> str | None:
    """Return the smallest view that tells these dimensions apart, or None if no view does."""
    for view, has in VIEWS.items():
        if set(dimensions) <= set(has) and (view in LATENCY_VIEWS or not latency):
            return view
    return None


def has_whole_hours(zone: ZoneInfo, start: datetime, end: datetime) -> bool:
    """Return whether a zone's hours are those of UTC, from `start` to `end`."""
    at, step = start, timedelta(days=7)  # no zone changes its offset for less
    while at < end:
        if _offset(zone, at) % _HOUR:
            return False
        at += step
    return not _offset(zone, end) % _HOUR


def _offset(zone: ZoneInfo, at: datetime) -> timedelta:
    return at.astimezone(zone).utcoffset() or timedelta()


def split(start: datetime, end: datetime, grains: Sequence[Grain]) -> list[Segment]:
    """Return the whole hours from `start` to `end` as segments, of the longest of these grains wherever that fits.

    What is left at both ends is less than an hour each.
    """
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    return _split(
        _ceil(start, "hour"), _floor(end, "hour"), [grain for grain in ("month", "day", "hour") if grain in grains]
    )


def _split(start: datetime, end: datetime, grains: Sequence[Grain]) -> list[Segment]:
    if start >= end or not grains:
        return []
    grain, *finer = grains
    first, last = _ceil(start, grain), _floor(end, grain)
    if first >= last:
        return _split(start, end, finer)
    return [*_split(start, first, finer), Segment(grain, first, last), *_split(last, end, finer)]


def _floor(at: datetime, grain: Grain) -> datetime:
    hour = at.replace(minute=0, second=0, microsecond=0)
    if grain == "hour":
        return hour
    day = hour.replace(hour=0)
    return day if grain == "day" else day.replace(day=1)


def _ceil(at: datetime, grain: Grain) -> datetime:
    floor = _floor(at, grain)
    if floor == at:
        return at
    if grain == "month":
        return (floor + 32 * _DAY).replace(day=1)
    return floor + (_HOUR if grain == "hour" else _DAY)
