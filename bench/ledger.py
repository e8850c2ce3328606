"""`python -m bench.ledger`: the cost of questions to a long ledger, of its roll-ups, and of limits.

The ledger is made up: ten million rows over ninety days, of 20 accounts with 200 keys, 20 models, users, customers,
agents and batches. Each shape of question in docs/reference/api.md is asked many times, for changing accounts and
times, of the roll-ups and of the rows themselves. It takes about fifteen minutes, and writes `bench/ledger.md` if the
ledger has all rows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import psutil
import psycopg
from redis.asyncio import Redis

from bench.finishing import measure_finishing
from headrace.dev.postgres import EmbeddedPostgres
from headrace.dev.scratch import scratch_dir
from headrace.dev.valkey import EmbeddedValkey
from headrace.ids import new_id
from headrace.quotas.gate import Demand, Gate, Scope
from headrace.quotas.queries import Spent
from headrace.quotas.rules import Limits
from headrace.stores.database import Database, execute
from headrace.stores.migrate import migrate
from headrace.stores.redis import connect_redis
from headrace.usage.partitions import ensure_partitions
from headrace.usage.queries import ask
from headrace.usage.question import Bucket, Question
from headrace.usage.rollups import rebuild_rollups

RESULTS = Path(__file__).resolve().parent / "ledger.md"
_ROWS = 10_000_000
_DAYS = 90
_ACCOUNTS, _KEYS, _MODELS = 20, 200, 20
_GOAL_MS = 50.0
_REPETITIONS = 40
_PROVIDERS = ("openai", "anthropic", "gemini")
_UTC, _BERLIN, _KOLKATA = ZoneInfo("UTC"), ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kolkata")
_ADMISSIONS = 4000


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of question. `latest` is the first second after the ledger's last row."""

    title: str
    days: float
    groups: tuple[str, ...] = ()
    bucket: Bucket | None = None
    zone: ZoneInfo = _UTC
    only: str | None = None
    everybody: bool = False
    latency: bool = False
    rolled: bool = True

    def draw(self, chance: random.Random, latest: int) -> Question:
        """Return a question of this shape, of some account and some time."""
        account = chance.randrange(_ACCOUNTS)
        values = {
            "key": [_key(account, chance.randrange(_KEYS // _ACCOUNTS))],
            "model": [f"model-{chance.randrange(_MODELS)}"],
            "agent": [f"agent_{chance.randrange(40)}"],
        }
        end = latest - chance.randrange(2 * 86_400)
        return Question(
            None if self.everybody else [f"acct_{account}"],
            end - int(self.days * 86_400),
            end,
            self.bucket,
            self.zone,
            self.groups,
            {} if self.only is None else {self.only: values[self.only]},
            metadata_keys=["customer"],
        )


SHAPES = (
    Shape("a key's own, 30 days by day", 30, bucket=Bucket.DAY, only="key"),
    Shape("a key's own, 7 days by hour and model", 7, ("model",), Bucket.HOUR, only="key"),
    Shape("an account, 30 days", 30),
    Shape("an account, 30 days by day and model", 30, ("model",), Bucket.DAY),
    Shape("an account, 90 days by month", 88, bucket=Bucket.MONTH),
    Shape("an account, 30 days by key", 30, ("key",)),
    Shape("an account, 30 days by day, key and model", 30, ("key", "model"), Bucket.DAY),
    Shape("an account, 7 days by hour", 7, bucket=Bucket.HOUR),
    Shape("an account, 30 days by day of Berlin and model", 30, ("model",), Bucket.DAY, _BERLIN),
    Shape("an account, 30 days by provider and the model that answered", 30, ("provider", "answered_model")),
    Shape("an account, 30 days by user", 30, ("user",)),
    Shape("an account, 30 days by day and user", 30, ("user",), Bucket.DAY),
    Shape("an account, 30 days by metadata.customer", 30, ("metadata.customer",)),
    Shape("an account, 30 days by agent", 30, ("agent",)),
    Shape("an account, 30 days by batch", 30, ("batch",)),
    Shape("an account, 30 days by tier", 30, ("tier",)),
    Shape("an account, 30 days by five at once", 30, ("key", "model", "provider", "agent", "tier")),
    Shape("an account, one agent, 30 days by day", 30, bucket=Bucket.DAY, only="agent"),
    Shape("an account, 30 days by model, percentiles", 30, ("model",), latency=True),
    Shape("an account, 7 days by hour, percentiles", 7, bucket=Bucket.HOUR, latency=True),
    Shape("everybody, 30 days by account", 30, ("account",), everybody=True),
    Shape("everybody, 88 days by day", 88, bucket=Bucket.DAY, everybody=True),
    Shape("everybody, 88 days by day and model", 88, ("model",), Bucket.DAY, everybody=True),
    Shape("everybody, 30 days by key", 30, ("key",), everybody=True),
    Shape("everybody, one model, 30 days by account", 30, ("account",), only="model", everybody=True),
    Shape("an account, 60 minutes by minute", 1 / 24, bucket=Bucket.MINUTE, rolled=False),
    Shape("an account, a day by user and model", 1, ("user", "model"), rolled=False),
    Shape("an account, a day by hour of Kolkata", 1, bucket=Bucket.HOUR, zone=_KOLKATA, rolled=False),
)


class _OfRows(Question):
    """A question that no roll-up answers."""

    def view(self, *, latency: bool = False) -> str | None:  # noqa: ARG002
        return None


@dataclass(slots=True)
class Measured:
    """Times of one shape, in milliseconds."""

    title: str
    rolled: bool
    p50: float
    p95: float
    rows: float = float("inf")
    """The time of the same question to the ledger's rows; infinite where Postgres gave up."""


@dataclass(slots=True)
class Ledger:
    """All measurements."""

    rows: int
    cells: int = 0
    copy_seconds: float = 0.0
    rebuild_seconds: float = 0.0
    shapes: list[Measured] = field(default_factory=list)
    finishing: dict[str, float] = field(default_factory=dict)
    limiter: dict[str, float] = field(default_factory=dict)

    def markdown(self) -> str:
        """Return the page."""
        lines = [
            "# The ledger",
            "",
            (
                f"Written by `python -m bench.ledger`: {self.rows:,} rows over {_DAYS} days, {_ACCOUNTS} accounts, "
                f"{_KEYS} keys, {_MODELS} models; {self.cells:,} sums. Times are in ms, of the whole answer in Python; "
                f"the goal is {_GOAL_MS:g} at p95."
            ),
            "",
            "| question | p50 | p95 | the same of the rows | |",
            "| --- | ---: | ---: | ---: | --- |",
        ]
        for shape in self.shapes:
            rows = "—" if not shape.rolled else f"{shape.rows:,.0f}" if shape.rows < float("inf") else "over 30,000"
            verdict = "met" if shape.p95 <= _GOAL_MS else "**missed**"
            source = "" if shape.rolled else " (read from the rows)"
            lines.append(f"| {shape.title}{source} | {shape.p50:,.1f} | {shape.p95:,.1f} | {rows} | {verdict} |")
        finishing, limiter = self.finishing, self.limiter
        lines += [
            "",
            "| | | goal |",
            "| --- | ---: | ---: |",
            f"| what roll-ups add to the statement that ends a job | {finishing['added']:+.1%} | 10 % |",
            f"| that statement, ms | {finishing['with_ms']:.3f} | |",
            f"| folding a row into all roll-ups later, µs of Postgres's CPU | {finishing['fold_us']:,.0f} | |",
            f"| what limits add to a request, ms of the API's CPU | {limiter['cpu_ms']:.3f} | 0.15 |",
            f"| … and of Redis's | {limiter['redis_cpu_ms']:.3f} | |",
            f"| … one request at a time, ms of the API's CPU | {limiter['alone_cpu_ms']:.3f} | |",
            "",
            (
                f"Rows came by COPY in {self.copy_seconds:,.0f} s; their roll-ups were rebuilt in "
                f"{self.rebuild_seconds:,.0f} s, {self.rebuild_seconds / self.rows * 1e6:.0f} µs a row."
            ),
            "",
        ]
        return "\n".join(lines)


def _key(account: int, number: int) -> str:
    return f"key_{account}_{number}"


def _lines(rows: int, start: datetime, chance: random.Random) -> Iterator[tuple[object, ...]]:
    """Yield rows in order of time. The first keys of an account have most of its usage, and a key uses few models."""
    step = timedelta(days=_DAYS) / rows
    uses = {
        (account, number): [chance.randrange(_MODELS) for _ in range(4)]
        for account in range(_ACCOUNTS)
        for number in range(_KEYS // _ACCOUNTS)
    }
    run = f"{chance.getrandbits(64):016x}"
    for number in range(rows):
        draw = chance.random
        account, key = int(draw() ** 2 * _ACCOUNTS), int(draw() ** 2 * (_KEYS // _ACCOUNTS))
        model = uses[account, key][int(draw() * 4)]
        prompt, completion = int(draw() * 4000) + 1, int(draw() * 1000)
        at = start + step * number
        odd = draw()
        agent = f"agent_{int(draw() * 40)}" if odd < 0.05 else None
        batch = f"batch_{number // 50_000}_{account}" if 0.05 < odd < 0.25 else None
        first = int(200 + draw() * 800)
        yield (
            f"job_{run}{number:016x}",
            1,
            "counted",
            f"acct_{account}",
            _key(account, key),
            f"model-{model}",
            f"model-{model}-2026",
            _PROVIDERS[model % 3],
            agent,
            batch,
            "batch" if batch else "priority" if odd > 0.98 else "default",
            f"user-{account}-{int(draw() ** 2 * 50)}",
            f'{{"customer": "customer-{int(draw() ** 2 * 20)}"}}',
            batch is None and odd > 0.5,
            prompt,
            completion,
            prompt // 3,
            completion // 4,
            False,
            f"{prompt * 25 + completion * 100}e-7",
            5,
            first,
            first + completion * 12,
            at,
        )


_COLUMNS = (
    "job_id, attempt, kind, account_id, key_id, model, answered_model, provider, agent_id, batch_id, tier, end_user, "
    "metadata, streamed, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, estimated, cost, queue_ms, "
    "first_token_ms, duration_ms, created_at"
)


async def _fill(url: str, database: Database, rows: int, latest: datetime) -> None:
    start = latest - timedelta(days=_DAYS)
    for days in range(0, _DAYS + 1, 30):
        await ensure_partitions(database, now=start + timedelta(days=days))
    for account in range(_ACCOUNTS):
        await execute(
            database.relaxed,
            "INSERT INTO accounts (id, name) VALUES (%(id)s, %(id)s)",
            {"id": f"acct_{account}"},
        )
    async with await psycopg.AsyncConnection.connect(url) as connection, connection.cursor() as cursor:
        async with cursor.copy(f"COPY usage ({_COLUMNS}) FROM STDIN") as copy:
            for line in _lines(rows, start, random.Random(7)):
                await copy.write_row(line)
        await connection.commit()
        await connection.set_autocommit(True)
        await cursor.execute("VACUUM ANALYZE")


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1000


async def _measure_shape(database: Database, shape: Shape, latest: int) -> Measured:
    chance = random.Random(shape.title)
    times = []
    for number in range(_REPETITIONS + 3):
        question = shape.draw(chance, latest)
        taken = await _timed(lambda: ask(database, question, limit=1000, latency=shape.latency))  # noqa: B023
        if number >= 3:  # the first ones read from the disk
            times.append(taken)
    times.sort()
    return Measured(shape.title, shape.rolled, statistics.median(times), times[int(len(times) * 0.95)])


async def _measure_rows(database: Database, shape: Shape, latest: int) -> float:
    """Measure a question of this shape to the ledger's rows. The result is infinite where Postgres gives up."""
    drawn = shape.draw(random.Random(shape.title), latest)
    of_rows = _OfRows(**{name: getattr(drawn, name) for name in drawn.__dataclass_fields__})
    try:
        return min([await _timed(lambda: ask(database, of_rows, limit=1000, latency=shape.latency)) for _ in "12"])
    except Exception as error:  # noqa: BLE001
        print(f"{shape.title}: {type(error).__name__}", file=sys.stderr)
        return float("inf")


async def _measure_limiter(database: Database, redis: Redis, valkey_pid: int) -> dict[str, float]:
    """Measure the CPU time to admit and settle a request, for a key and an account with every limit."""
    await execute(database.relaxed, "INSERT INTO accounts (id, name) VALUES ('acct_l', 'l') ON CONFLICT DO NOTHING")
    await execute(
        database.relaxed,
        "INSERT INTO api_keys (id, account_id, name, hash, hint) VALUES ('key_l', 'acct_l', '', sha256('l'), '') "
        "ON CONFLICT DO NOTHING",
    )
    limits = Limits(
        requests_per_minute=10**9,
        tokens_per_minute=10**12,
        jobs_in_flight=10**6,
        daily_budget=Decimal(10**6),
        monthly_budget=Decimal(10**6),
    )
    scopes = [Scope("key_l", limits), Scope("acct_l", limits)]
    gate = Gate(redis, database, open_without_redis=False)

    async def one() -> None:
        job_id = new_id("job")
        await gate.admit(scopes, Demand(job_id, background=False, tokens=500, cost=Decimal("0.01")))
        await gate.settle_ended(scopes, job_id, Spent(job_id, 400, Decimal("0.008")))

    async def many(concurrency: int) -> tuple[float, float]:
        async def some() -> None:
            for _ in range(_ADMISSIONS // concurrency):
                await one()

        valkey = psutil.Process(valkey_pid)
        before, own = sum(valkey.cpu_times()[:2]), time.process_time()
        await asyncio.gather(*(some() for _ in range(concurrency)))
        spent, theirs = time.process_time() - own, sum(valkey.cpu_times()[:2]) - before
        return spent / _ADMISSIONS * 1000, theirs / _ADMISSIONS * 1000

    await one()
    (alone, _), (crowded, theirs) = await many(1), await many(32)
    return {"alone_cpu_ms": alone, "cpu_ms": crowded, "redis_cpu_ms": theirs}


async def _measure(rows: int, postgres: EmbeddedPostgres, valkey: EmbeddedValkey) -> Ledger:
    found = Ledger(rows)
    latest = datetime.now(UTC).replace(microsecond=0)
    database = Database.connect(postgres.url)
    try:
        print(f"copying {rows:,} rows", file=sys.stderr)
        found.copy_seconds = await _timed(lambda: _fill(postgres.url, database, rows, latest)) / 1000
        print("adding them up", file=sys.stderr)
        found.rebuild_seconds = await _timed(lambda: rebuild_rollups(database, metadata_keys=["customer"])) / 1000
        for table in ("usage_rollups", "usage_latencies"):
            async with await psycopg.AsyncConnection.connect(postgres.url, autocommit=True) as connection:
                await connection.execute(f"VACUUM ANALYZE {table}")
        found.cells = (await execute(database.relaxed, "SELECT count(*) FROM usage_rollups"))[0][0]
        for shape in SHAPES:
            found.shapes.append(await _measure_shape(database, shape, int(latest.timestamp())))
            last = found.shapes[-1]
            print(f"{shape.title}: {last.p50:.1f} / {last.p95:.1f}", file=sys.stderr)
        # Afterwards, as such questions fill the memory with the ledger.
        for shape, measured in zip(SHAPES, found.shapes, strict=True):
            if shape.rolled:
                measured.rows = await _measure_rows(database, shape, int(latest.timestamp()))
        print("ending jobs", file=sys.stderr)
        found.finishing = await measure_finishing(database)
        print("limits", file=sys.stderr)
        redis = connect_redis(valkey.url)
        assert valkey.pid is not None
        found.limiter = await _measure_limiter(database, redis, valkey.pid)
        await redis.aclose()
    finally:
        await database.close()
    return found


def main() -> int:
    """Measure, print, and write the page if the ledger has all rows."""
    parser = argparse.ArgumentParser(prog="python -m bench.ledger", description="Measure a long ledger, and limits.")
    parser.add_argument("--rows", type=int, default=_ROWS, help="rows of the ledger (10,000,000)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = stack.enter_context(scratch_dir())
        # The measured statements only read, so filling the ledger need not wait for the disk.
        postgres = stack.enter_context(EmbeddedPostgres(directory / "postgres", {"fsync": "off"}))
        valkey = stack.enter_context(EmbeddedValkey(directory / "valkey"))
        migrate(postgres.url)
        found = asyncio.run(_measure(options.rows, postgres, valkey))
    print(json.dumps(asdict(found), indent=2) if options.json else found.markdown())
    if options.rows == _ROWS:
        RESULTS.write_text(found.markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
