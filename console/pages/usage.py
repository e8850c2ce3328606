"""Usage over time: a plot, a table beside it, and the same as CSV. The choice is in the URL."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.client import Api, ApiError, Parameters
from console.downloads import CSV, attachment, download
from console.plots import MOST_SERIES, OTHER, Stacked, draw
from console.render import money, number, page, short_money, short_number
from console.security import Reading, SignedIn
from console.sessions import Session
from console.streams import PassedOn

router = APIRouter()

_DAYS = {"7d": 7, "30d": 30, "90d": 90}
RANGES = {"24h": "24 hours", "7d": "7 days", "30d": "30 days", "90d": "90 days"}
MEASURES = {"cost": "Cost", "total_tokens": "Tokens", "requests": "Requests"}
GROUPS = {
    "model": "Model",
    "key": "Key",
    "user": "User",
    "provider": "Provider",
    "agent": "Agent",
    "tier": "Tier",
    "account": "Account",
}
"""The groups that usage can be split into. Only administrators see accounts."""

# The groups that the API has percentiles of, for any time.
_TIMED = frozenset({"model", "key", "provider", "account"})
# The months that the page offers, the current one included.
_MONTHS = 13
# The most groups that the API lists at once, and that the table shows.
_MOST_GROUPS = 10_000
_MOST_ROWS = 100
# The header of a page of CSV that names the next.
_NEXT_PAGE = "x-headrace-next-page"
_TOO_LONG = "The API adds this up for 31 days at most: choose a shorter time or another group."
# The most keys whose names are looked up.
_MOST_KEYS = 100


@dataclass(frozen=True, slots=True)
class Choice:
    """What a page shows: a time, a measure, and the groups that usage is split into."""

    range: str
    by: str
    show: str
    account: str
    """The name of an account that an administrator chose, or nothing for all of them."""
    start: int
    end: int | None
    """Unix seconds, exclusive; None for now."""
    columns: Sequence[int]
    """When each bucket begins, in Unix seconds."""

    @classmethod
    def of(cls, query: Mapping[str, str], session: Session, now: datetime) -> Choice:
        """Read a page's query. What it does not say, or says wrongly, is the default."""
        groups = [name for name in GROUPS if name != "account" or _sees_all(session)]
        by, show, range_ = query.get("by", ""), query.get("show", ""), query.get("range", "")
        account = query.get("account", "") if _sees_all(session) else ""
        if range_ not in RANGES and range_ not in months(now):
            range_ = "30d"
        start, end = _span(range_, now)
        step = timedelta(hours=1) if range_ == "24h" else timedelta(days=1)
        columns = []
        at = start
        while at < min(end or now, now):
            columns.append(int(at.timestamp()))
            at += step
        return cls(
            range_,
            by if by in groups else "model",
            show if show in MEASURES else "cost",
            account,
            int(start.timestamp()),
            None if end is None else int(end.timestamp()),
            columns,
        )

    @property
    def bucket(self) -> str:
        """How long a column lasts."""
        return "hour" if self.range == "24h" else "day"

    def asked(self) -> dict[str, Any]:
        """Return the parameters of `GET /usage` for whose usage, and from when to when."""
        return {"start": self.start, "end": self.end, "account": self.account}

    def label(self, column: int) -> str:
        """Return the name of a column, in UTC."""
        return datetime.fromtimestamp(column, UTC).strftime("%H:%M" if self.bucket == "hour" else "%d %b")


def months(now: datetime) -> list[str]:
    """Return the months that may be chosen, newest first, as 2026-11."""
    first = now.year * 12 + now.month - 1
    return [f"{(first - back) // 12}-{(first - back) % 12 + 1:02}" for back in range(_MONTHS)]


@dataclass(frozen=True, slots=True)
class _Sums:
    """What the API answers: the whole, by group with the largest first, and by bucket."""

    whole: Mapping[str, Any]
    groups: Sequence[Mapping[str, Any]]
    buckets: Sequence[Mapping[str, Any]]
    incomplete: bool
    """Whether there are more groups."""
    timed: bool
    """Whether groups have percentiles."""


@router.get("/usage")
async def show_usage(request: Request, session: SignedIn, api: Reading) -> Response:
    """Plot usage over time, and show what it comes to."""
    now = datetime.now(UTC)
    choice = Choice.of(request.query_params, session, now)
    names, accounts = await asyncio.gather(_key_names(session, api, choice), _account_names(session, api))
    shown: dict[str, Any] = {"sums": None, "refusal": None}
    try:
        sums = await _sums(api, choice, timed=choice.by in _TIMED and (session.may("usage:read") or choice.by == "key"))
        plot = await _plot(api, choice, sums, names)
    except ApiError as error:
        if error.status not in {400, 404}:
            raise
        # The API keeps no sums of a few combinations, and adds up their rows for a month at most.
        shown["refusal"] = _TOO_LONG if error.param == "start" else error.message
    else:
        exact, short = (money, short_money) if choice.show == "cost" else (number, short_number)
        shown |= {"sums": sums, "plot": plot, "drawing": draw(plot, short), "exact": exact}
    return page(
        request,
        "usage.html",
        **shown,
        choice=choice,
        most_rows=_MOST_ROWS,
        name_of=lambda group: name_of(choice.by, group, names),
        ranges=RANGES,
        months=months(now),
        groups={name: text for name, text in GROUPS.items() if name != "account" or _sees_all(session)},
        measures=MEASURES,
        accounts=accounts,
    )


async def _sums(api: Api, choice: Choice, *, timed: bool) -> _Sums:
    whole, groups, buckets = await asyncio.gather(
        api.get("/usage", **choice.asked(), latency=True),
        api.get("/usage", **choice.asked(), group_by=choice.by, latency=timed, limit=_MOST_GROUPS),
        api.get("/usage", **choice.asked(), bucket=choice.bucket, limit=_MOST_GROUPS),
    )
    return _Sums(
        whole["data"][0],
        sorted(groups["data"], key=lambda row: (-float(row[choice.show]), -row["requests"])),
        buckets["data"],
        groups["has_more"],
        timed,
    )


@router.get("/usage.csv")
async def send_csv(request: Request, session: SignedIn, api: Reading) -> Response:
    """Send the same as CSV, with a row for each bucket and group."""
    choice = Choice.of(request.query_params, session, datetime.now(UTC))
    asked = {**choice.asked(), "bucket": choice.bucket, "group_by": choice.by, "format": "csv", "limit": _MOST_GROUPS}
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(api.stream("/usage", params=asked))
        held = stack.pop_all()
    return PassedOn(
        _rows(api, asked, first.aiter_bytes(), first.headers.get(_NEXT_PAGE)),
        held,
        headers=attachment(f"usage-{choice.range}-by-{choice.by}.csv"),
        media_type=CSV,
    )


@router.get("/usage/statement.csv")
async def send_statement(request: Request, session: SignedIn, api: Reading) -> Response:
    """Send a month's statement: its sum equals the ledger's to the last digit."""
    choice = Choice.of(request.query_params, session, datetime.now(UTC))
    params = {"month": choice.range, "account": choice.account}
    name = f"statement-{choice.range}.csv"
    return await download(request, api, "/usage/statement", params=params, filename=name, media_type=CSV)


async def _rows(
    api: Api, asked: Parameters, first: AsyncIterator[bytes], following: str | None
) -> AsyncIterator[bytes]:
    """Yield all pages of rows, of which `first` is open already, with the line of names once."""
    async for piece in first:
        yield piece
    while following:
        async with api.stream("/usage", params={**asked, "page": following}) as answer:
            yield (await answer.aread()).partition(b"\n")[2]
            following = answer.headers.get(_NEXT_PAGE)


async def _plot(api: Api, choice: Choice, sums: _Sums, names: Mapping[str, str]) -> Stacked:
    """Return the plot of the largest groups. All others together are what is left of each bucket's sum.

    So it takes a bounded number of rows, however many groups there are.
    """
    counted = [row for row in sums.groups if float(row[choice.show])]
    largest = [row[choice.by] for row in counted if row[choice.by] is not None]
    largest = largest[: MOST_SERIES if len(counted) <= MOST_SERIES else MOST_SERIES - 1]
    series = {group: [0.0] * len(choice.columns) for group in largest}
    position = {column: index for index, column in enumerate(choice.columns)}
    for row in await _rows_of(api, choice, largest):
        if row["start_time"] in position:
            series[row[choice.by]][position[row["start_time"]]] = float(row[choice.show])
    named = {name_of(choice.by, group, names): values for group, values in series.items()}
    others = [row[choice.by] for row in counted if row[choice.by] not in series]
    if others:
        rest = [0.0] * len(choice.columns)
        for bucket in sums.buckets:
            if bucket["start_time"] in position:
                rest[position[bucket["start_time"]]] = float(bucket[choice.show])
        for values in series.values():
            rest = [max(0.0, left - value) for left, value in zip(rest, values, strict=True)]
        name = name_of(choice.by, None, names) if others == [None] else OTHER
        named[f"{name} (several)" if name in named else name] = rest
    title = f"{MEASURES[choice.show]} by {choice.bucket} and {GROUPS[choice.by].lower()}"
    return Stacked(title, [choice.label(column) for column in choice.columns], named)


async def _rows_of(api: Api, choice: Choice, groups: Sequence[str]) -> list[dict[str, Any]]:
    """Return the usage of these groups, by bucket."""
    asked: dict[str, Any] = {"bucket": choice.bucket, "group_by": choice.by, "limit": _MOST_GROUPS, **choice.asked()}
    if choice.by == "account":  # of which the API's filter takes one
        answers = await asyncio.gather(*(api.get("/usage", **{**asked, "account": name}) for name in groups))
    else:
        answers = [await api.get("/usage", **asked, **{choice.by: groups})] if groups else []
    return [row for answer in answers for row in answer["data"]]


def name_of(by: str, group: str | None, names: Mapping[str, str]) -> str:
    """Return how the page calls a group: a key by its name where that is known."""
    if group is None:
        return f"no {GROUPS[by].lower()}"
    return f"{names[group]} (…{group[-6:]})" if group in names else group


async def _key_names(session: Session, api: Api, choice: Choice) -> dict[str, str]:
    """Return the names of keys by their ids, where the page shows keys and the session's key may list them."""
    if choice.by != "key" or not session.may("keys:write") or session.reading is not None:
        return {}
    try:
        listed = await api.get("/api-keys", include_revoked=True, limit=_MOST_KEYS, account=choice.account)
    except ApiError:
        return {}  # ids are names too
    return {key["id"]: key["name"] for key in listed["data"] if key["name"]}


async def _account_names(session: Session, api: Api) -> list[str]:
    """Return the names of the accounts that an administrator may choose from."""
    if not _sees_all(session):
        return []
    try:
        return sorted(account["name"] for account in (await api.get("/accounts", limit=_MOST_KEYS))["data"])
    except ApiError as error:
        if error.status != 404:
            raise
        return []  # an API of an earlier release


def _sees_all(session: Session) -> bool:
    """Return whether the page shows all accounts together."""
    return session.is_admin and session.reading is None


def _span(range_: str, now: datetime) -> tuple[datetime, datetime | None]:
    """Return when a range begins and ends; None for now. Days and months are those of UTC."""
    if range_ == "24h":
        return now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=23), None
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if range_ in _DAYS:
        return midnight - timedelta(days=_DAYS[range_] - 1), None
    first = datetime.strptime(range_, "%Y-%m").replace(tzinfo=UTC)
    following = (first + timedelta(days=32)).replace(day=1)
    return first, following if following <= now else None
