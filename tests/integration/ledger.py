"""Rows of the ledger as tests write them, and the same sums done in Python."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from psycopg.types.json import Jsonb

from headrace.ids import new_id
from headrace.stores.database import Database, execute
from headrace.usage.question import Question

TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
COLUMNS = {"key": "key_id", "agent": "agent_id", "batch": "batch_id", "user": "end_user", "account": "account_id"}


@dataclass(frozen=True)
class Entry:
    """A row of the ledger."""

    account_id: str
    created_at: datetime
    kind: str = "counted"
    model: str = "fake"
    answered_model: str | None = "fake-1"
    provider: str = "fake"
    key_id: str | None = "key_1"
    agent_id: str | None = None
    batch_id: str | None = None
    end_user: str | None = None
    tier: str = "default"
    metadata: dict[str, str] | None = None
    streamed: bool = False
    estimated: bool = False
    prompt_tokens: int = 5
    completion_tokens: int = 3
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost: Decimal | None = Decimal("0.001")
    queue_ms: int | None = 3
    first_token_ms: int | None = 200
    duration_ms: int | None = 900
    note: str | None = None
    attempt: int = 1
    job_id: str = field(default_factory=lambda: new_id("job"))


async def write(database: Database, entries: Iterable[Entry]) -> None:
    """Add entries to the ledger, each by a transaction of its own."""
    for entry in entries:
        values = asdict(entry) | {"metadata": None if entry.metadata is None else Jsonb(entry.metadata)}
        columns = ", ".join(values)
        await execute(
            database.relaxed,
            f"INSERT INTO usage ({columns}) VALUES ({', '.join(f'%({name})s' for name in values)})",
            values,
        )


def draw(chance: random.Random, account_id: str, start: datetime, end: datetime) -> Entry:
    """Return an entry of a time from `start` to `end`, often one at the limit of an hour, a day or a month."""
    at = start + timedelta(microseconds=chance.randrange(int((end - start).total_seconds() * 1_000_000)))
    edge = chance.random()
    if edge < 0.15:
        at = at.replace(minute=0, second=0, microsecond=0)
    elif edge < 0.3:
        at = at.replace(hour=0, minute=0, second=0, microsecond=0)
    elif edge < 0.4:
        at = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    at = at - timedelta(microseconds=1) if chance.random() < 0.1 else at
    prompt, completion = chance.randrange(100), chance.randrange(100)
    model = chance.choice(["fake", "fake-2", "other"])
    entry = Entry(
        account_id,
        max(at, start),
        kind=chance.choices(["counted", "discarded", "correction"], [8, 1, 1])[0],
        model=model,
        answered_model=chance.choice([f"{model}-1", None]),
        provider=chance.choice(["fake", "second"]),
        key_id=chance.choice(["key_1", "key_2", None]),
        agent_id=chance.choice(["agent_1", None]),
        batch_id=chance.choice(["batch_1", "batch_2", None]),
        end_user=chance.choice(["ann", "bob", "", None]),
        tier=chance.choice(["default", "batch"]),
        metadata=chance.choice([{"team": "a"}, {"team": "b", "customer": "ö"}, {}, None]),
        streamed=chance.random() < 0.5,
        estimated=chance.random() < 0.2,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=chance.randint(0, prompt),
        reasoning_tokens=chance.randint(0, completion),
        cost=chance.choice([Decimal(chance.randrange(10**9)) / 10**10, None]),
        first_token_ms=chance.choice([None, chance.randrange(1, 10_000)]),
        duration_ms=chance.choice([None, chance.randrange(1, 100_000)]),
    )
    if entry.kind == "correction":
        return replace(entry, note="because", prompt_tokens=-prompt, cost=-(entry.cost or Decimal()))
    return entry


def expected(entries: Sequence[Entry], question: Question) -> list[dict[str, Any]]:
    """Return the answer to a question, without groups' order, the ends of buckets and amounts not summed here."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entry in entries:
        if not question.start <= entry.created_at.timestamp() < question.end:
            continue
        if question.account_ids is not None and entry.account_id not in question.account_ids:
            continue
        if any(_value(entry, name) not in values for name, values in question.only.items()):
            continue
        groups = {name: _value(entry, name) for name in question.groups}
        key = (_bucket(entry.created_at, question), *groups.values())
        line = found.setdefault(key, {"start_time": key[0], **groups, **_nothing()})
        _add(line, entry)
    if not question.groups and question.bucket is None and not found:
        return [{"start_time": question.start, **_nothing()}]
    return list(found.values())


def _nothing() -> dict[str, Any]:
    counts = ("requests", *TOKENS, "estimated_requests", "unpriced_requests", "streamed_requests")
    discarded = ("discarded_attempts", "discarded_tokens", "queue_ms")
    return {**dict.fromkeys((*counts, *discarded), 0), "cost": Decimal(), "discarded_cost": Decimal()}


def _add(line: dict[str, Any], entry: Entry) -> None:
    if entry.kind == "discarded":
        line["discarded_attempts"] += 1
        line["discarded_tokens"] += entry.prompt_tokens + entry.completion_tokens
        line["discarded_cost"] += entry.cost or 0
        return
    for name in TOKENS:
        line[name] += getattr(entry, name)
    line["cost"] += entry.cost or 0
    if entry.kind == "counted":
        line["requests"] += 1
        line["estimated_requests"] += entry.estimated
        line["unpriced_requests"] += entry.cost is None
        line["streamed_requests"] += entry.streamed
        line["queue_ms"] += entry.queue_ms or 0


def _value(entry: Entry, name: str) -> Any:
    if name.startswith("metadata."):
        return (entry.metadata or {}).get(name.removeprefix("metadata."))
    return getattr(entry, COLUMNS.get(name, name))


def _bucket(at: datetime, question: Question) -> int:
    if question.bucket is None:
        return question.start
    if question.bucket in {"minute", "hour"}:
        offset = at.astimezone(question.zone).utcoffset() or timedelta()
        seconds = 60 if question.bucket == "minute" else 3600
        local = int(at.timestamp() // 1) + int(offset.total_seconds())
        return max(question.start, local - local % seconds - int(offset.total_seconds()))
    local_day = at.astimezone(question.zone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    first = local_day if question.bucket == "day" else local_day.replace(day=1)
    return max(question.start, int(first.astimezone(UTC).timestamp()))


ZONES = [
    ZoneInfo(name)
    for name in (
        *("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"),
        *("America/Havana", "Asia/Beirut", "America/Santiago"),  # clocks are set at midnight
    )
]
