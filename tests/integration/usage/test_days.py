"""Days and months where clocks are set at midnight: those of Postgres against those of Python, day by day."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from headrace.errors import InvalidRequestError
from headrace.stores.database import Database, execute
from headrace.usage.queries import ask
from headrace.usage.question import Bucket, Question
from headrace.usage.rollups import rebuild_rollups
from tests.integration.job_rows import Owner
from tests.integration.ledger import Entry, write

# In the first three some day has no midnight, in the next two some day has it twice; Nuuk skips the hour before it, and
# Santiago and Beirut have that one twice. Hours of the last two are not those of UTC.
ZONES = (
    *("Africa/Cairo", "America/Santiago", "Asia/Beirut", "America/Havana", "Atlantic/Azores", "America/Nuuk"),
    *("Europe/Berlin", "UTC", "Australia/Lord_Howe", "Asia/Kathmandu"),
)
STEP = timedelta(hours=1)
DAY = 86_400
FIRST, LAST = datetime(2026, 2, 20, tzinfo=UTC), datetime(2026, 11, 20, tzinfo=UTC)

Line = tuple[int, int, int]


@pytest.fixture
async def every_hour(database: Database, owner: Owner) -> Owner:
    """An account with a row each hour, half of them in roll-ups."""
    await execute(database.durable, "TRUNCATE usage_rollups, usage_latencies, usage_mark")
    for first, last in ((FIRST, datetime(2026, 7, 1, tzinfo=UTC)), (datetime(2026, 7, 1, tzinfo=UTC), LAST)):
        await execute(
            database.durable,
            "INSERT INTO usage (job_id, attempt, kind, account_id, model, provider, prompt_tokens, completion_tokens,"
            " cached_tokens, reasoning_tokens, estimated, duration_ms, created_at) SELECT 'job_' || at, 1, 'counted',"
            " %(id)s, 'fake', 'fake', 1, 1, 0, 0, false, 900, at"
            " FROM generate_series(%(first)s::timestamptz, %(last)s, interval '1 hour') AS at",
            {"id": owner.account_id, "first": first, "last": last - STEP},
        )
        if first == FIRST:
            await rebuild_rollups(database, metadata_keys=[])
    return owner


def firsts(bucket: Bucket, zone: ZoneInfo) -> Iterator[datetime]:
    """Yield the beginnings of the days or months of a zone: of two midnights Python takes the first, of none the end
    of the gap.
    """
    day = datetime(2026, 2, 1, tzinfo=zone)
    while day < LAST + timedelta(days=40):
        if bucket is Bucket.DAY or day.day == 1:
            yield day.astimezone(UTC)
        day += timedelta(days=1)  # on the calendar: hours do not count


def lines(bucket: Bucket, zone: ZoneInfo, start: datetime, end: datetime) -> list[Line]:
    """Return start, end and requests of each bucket that has any, by Python's calendar."""
    found: list[Line] = []
    for first, last in pairwise(firsts(bucket, zone)):
        first, last = max(first, start), min(last, end)  # noqa: PLW2901  (cut where the question is)
        requests = (FIRST - first) // STEP - (FIRST - last) // STEP
        if first < last and requests:
            found.append((int(first.timestamp()), int(last.timestamp()), requests))
    return found


async def told(database: Database, question: Question, *, latency: bool = False) -> Sequence[Line]:
    rows = await ask(database, question, limit=1000, latency=latency)
    assert not latency or all(row["duration_seconds"]["p50"] is not None for row in rows)
    return [(row["start_time"], row["end_time"], row["requests"]) for row in rows]


async def test_days_and_months_are_those_of_the_calendar_wherever(database: Database, every_hour: Owner) -> None:
    start, end = FIRST + timedelta(hours=7, minutes=10), LAST - timedelta(hours=5)
    for zone in map(ZoneInfo, ZONES):
        for bucket in (Bucket.DAY, Bucket.MONTH):
            question = Question([every_hour.account_id], int(start.timestamp()), int(end.timestamp()), bucket, zone)
            expected = lines(bucket, zone, start, end)
            for latency in (False, True):
                assert await told(database, question, latency=latency) == expected, (zone.key, bucket)
            assert [line[1] for line in expected[:-1]] == [line[0] for line in expected[1:]]


# When such days begin, in UTC, and how many hours they have.
SET_AT_MIDNIGHT = [
    ("Africa/Cairo", "2026-04-23T22:00", 23),  # its midnight does not exist: it begins at one
    ("America/Santiago", "2026-09-06T04:00", 23),
    ("Asia/Beirut", "2026-03-28T22:00", 23),
    ("America/Havana", "2026-11-01T04:00", 25),  # from its first midnight; there is another one an hour later
    ("Atlantic/Azores", "2026-10-25T00:00", 25),
    ("America/Santiago", "2026-04-04T03:00", 25),  # its last hour comes twice
]


async def test_a_day_on_which_clocks_are_set_at_midnight_is_whole(database: Database, every_hour: Owner) -> None:
    for name, start, hours in SET_AT_MIDNIGHT:
        begun = int(datetime.fromisoformat(start).replace(tzinfo=UTC).timestamp())
        question = Question(
            [every_hour.account_id], begun - 3 * DAY, begun + 4 * DAY, Bucket.DAY, ZoneInfo(name), groups=["model"]
        )
        assert (begun, begun + hours * 3600, hours) in await told(database, question), name


async def test_a_zone_that_postgres_does_not_know_is_refused(database: Database, owner: Owner) -> None:
    class Newer(ZoneInfo):
        """One of a newer edition of the zones' database than Postgres has."""

        key = "Mars/Olympus"

    await write(database, [Entry(owner.account_id, datetime(1970, 1, 1, tzinfo=UTC))])
    question = Question([owner.account_id], 0, 86_400, Bucket.DAY, Newer.no_cache("Asia/Kathmandu"))
    with pytest.raises(InvalidRequestError) as refused:
        await ask(database, question, limit=10)
    assert refused.value.param == "time_zone"
    assert "Mars/Olympus" in refused.value.message
