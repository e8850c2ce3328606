"""Questions to the ledger: by clients over HTTP, each for its own account, and by operators with `headrace usage`."""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.rows import DictRow

from headrace.keys.queries import create_key
from headrace.stores import database as database_module
from headrace.stores.database import execute
from headrace.usage.queries import ask
from headrace.usage.question import GROUPS, Bucket, Question
from tests.e2e.jobs import chat, completed, refused, submit
from tests.fakes.provider import Json, Provider, answer, chunk, stream, usage_of
from tests.service import Service, connect

Database = psycopg.AsyncConnection[DictRow]

AMOUNTS = (
    *("requests", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "total_tokens"),
    *("estimated_requests", "unpriced_requests", "discarded_tokens", "cost"),
)
OTHER_AMOUNTS = frozenset(
    {"cache_write_tokens", "prompt_audio_tokens", "completion_audio_tokens", "streamed_requests", "discarded_attempts"}
    | {"queue_ms", "discarded_cost"}
)


def at(text: str) -> int:
    """Return a time of UTC in Unix seconds."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


@dataclass
class Account:
    """An account of a test's own, with whatever it has in the ledger."""

    name: str
    key_id: str
    client: httpx.AsyncClient
    database: Database

    async def spend(self, created_at: float, **columns: Any) -> None:
        """Put a row into the ledger: ten tokens and a dollar at a time in Unix seconds, but for `columns`."""
        row = {
            "job_id": f"job_{secrets.token_hex(16)}",
            "attempt": 1,
            "kind": "counted",
            "key_id": self.key_id,
            "model": "fake-a",
            "provider": "fake",
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "cached_tokens": 0,
            "reasoning_tokens": 0,
            "estimated": False,
            "cost": Decimal(1),
            **columns,
        }
        await self.database.execute(
            f"INSERT INTO usage (account_id, created_at, {', '.join(row)}) SELECT account_id, to_timestamp(%(at)s),"
            f" {', '.join(f'%({name})s' for name in row)} FROM api_keys WHERE id = %(whose)s",
            {**row, "at": created_at, "whose": self.key_id},
        )

    async def usage(self, **parameters: str | int) -> list[Json]:
        """Return what the API answers."""
        response = await self.client.get("/usage", params=parameters)
        assert response.status_code == 200, response.text
        body = response.json()
        assert body.keys() == {"object", "data", "has_more", "next_page"}
        assert body["object"] == "list"
        data: list[Json] = body["data"]
        return data


@contextlib.asynccontextmanager
async def connected(service: Service) -> AsyncIterator[database_module.Database]:
    """Connect as a process of the service does."""
    ours = database_module.Database.connect(service.stores.database_url, connections=1)
    try:
        yield ours
    finally:
        await ours.close()


@pytest.fixture
async def account(service: Service, database: Database) -> AsyncIterator[Account]:
    name = f"usage-{secrets.token_hex(6)}"
    async with connected(service) as ours:
        key_id, key = await create_key(ours, account=name, scopes=["usage:read"])
    async with connect(service, key) as client:
        yield Account(name, key_id, client, database)


async def test_a_finished_job_is_in_it_at_once(account: Account, provider: Provider, model: str) -> None:
    usage = usage_of(
        100, 40, prompt_tokens_details={"cached_tokens": 30}, completion_tokens_details={"reasoning_tokens": 25}
    )
    provider.script(model, answer("ok", usage=usage))
    before = int(time.time())
    assert (await account.client.post("/chat/completions", json=chat(model))).status_code == 200
    (line,) = await account.usage(group_by="model,provider,key,agent")
    assert line["end_time"] - line["start_time"] == 30 * 86_400
    assert line.pop("start_time") < before < line.pop("end_time")
    assert line.pop("queue_ms") >= 0
    assert line == {
        **dict.fromkeys(OTHER_AMOUNTS - {"queue_ms"}, 0),
        "discarded_cost": "0",
        "model": model,
        "provider": "fake",
        "key": account.key_id,
        "agent": None,
        "requests": 1,
        "prompt_tokens": 100,
        "completion_tokens": 40,
        "cached_tokens": 30,
        "reasoning_tokens": 25,
        "total_tokens": 140,
        "estimated_requests": 0,
        "unpriced_requests": 0,
        "discarded_tokens": 0,
        "cost": "0.00065",  # 100 tokens at 2.50 USD a million and 40 at 10.00
    }


async def test_what_a_thrown_away_attempt_spent_is_kept_apart(
    account: Account, provider: Provider, model: str, database: Database
) -> None:
    half = stream(chunk({"role": "assistant", "content": "half of an answer"}))
    provider.script(model, half, answer("whole", usage=usage_of(100, 40)))
    job = await completed(account.client, await submit(account.client, model))
    assert job["attempt"] == 2
    (line,) = await account.usage()
    assert (line["requests"], line["total_tokens"], line["cost"]) == (1, 140, "0.00065")
    assert line["estimated_requests"] == 0
    cursor = await database.execute(
        "SELECT prompt_tokens + completion_tokens AS tokens FROM usage WHERE job_id = %s AND kind = 'discarded'",
        [job["id"]],
    )
    row = await cursor.fetchone()
    assert row is not None
    assert line["discarded_tokens"] == row["tokens"] > 0


async def test_requests_without_a_price_or_a_report_are_counted(
    account: Account, provider: Provider, model: str
) -> None:
    provider.script(model, answer("ok", report_usage=False))
    for name in (model, "renamed"):
        await completed(account.client, await submit(account.client, name))
    lines = {line["model"]: line for line in await account.usage(group_by="model")}
    assert lines.keys() == {model, "renamed"}
    assert (lines[model]["estimated_requests"], lines[model]["unpriced_requests"]) == (1, 0)
    assert (lines["renamed"]["estimated_requests"], lines["renamed"]["unpriced_requests"]) == (0, 1)
    assert lines["renamed"]["cost"] == "0"
    assert lines["renamed"]["total_tokens"] > 0


async def test_without_usage_the_whole_is_zero_and_its_parts_are_none(account: Account) -> None:
    (line,) = await account.usage(start=1000, end=2000)
    nothing = {**dict.fromkeys({*AMOUNTS, *OTHER_AMOUNTS}, 0), "cost": "0", "discarded_cost": "0"}
    assert line == {"start_time": 1000, "end_time": 2000, **nothing}
    assert await account.usage(group_by="model") == []
    assert await account.usage(bucket="day") == []


async def test_the_start_is_counted_and_the_end_is_not(account: Account) -> None:
    for moment in (999.999999, 1000, 1999.999999, 2000):
        await account.spend(moment)
    (line,) = await account.usage(start=1000, end=2000)
    assert line["requests"] == 2


async def test_by_default_the_last_30_days_are_counted(account: Account) -> None:
    now = time.time()
    for days in (0, 29, 31):
        await account.spend(now - days * 86_400)
    assert [line["requests"] for line in await account.usage()] == [2]
    assert [line["requests"] for line in await account.usage(end=int(now - 3600))] == [1]
    assert [line["requests"] for line in await account.usage(start=0)] == [3]


@pytest.mark.parametrize(
    ("bucket", "moments", "buckets"),
    [
        (
            "minute",
            ["2026-03-01T12:00:00", "2026-03-01T12:00:59.999999", "2026-03-01T12:02:00"],
            [("2026-03-01T12:00", "2026-03-01T12:01", 2), ("2026-03-01T12:02", "2026-03-01T12:03", 1)],
        ),
        (
            "hour",
            ["2026-03-01T23:59:59", "2026-03-02T00:00:00"],
            [("2026-03-01T23:00", "2026-03-02T00:00", 1), ("2026-03-02T00:00", "2026-03-02T01:00", 1)],
        ),
        (
            "day",
            # On these days clocks are changed, in Europe and in America: no day of UTC is 23 or 25 hours long.
            ["2026-03-29T00:00:00", "2026-03-29T23:59:59", "2026-03-08T12:00:00"],
            [("2026-03-08", "2026-03-09", 1), ("2026-03-29", "2026-03-30", 2)],
        ),
        (
            "month",
            ["2024-02-29T23:59:59", "2024-03-01T00:00:00", "2025-12-31T23:59:59", "2025-02-01T00:00:00"],
            [
                ("2024-02-01", "2024-03-01", 1),
                ("2024-03-01", "2024-04-01", 1),
                ("2025-02-01", "2025-03-01", 1),
                ("2025-12-01", "2026-01-01", 1),
            ],
        ),
    ],
)
async def test_buckets_are_those_of_utc(
    account: Account, bucket: str, moments: list[str], buckets: list[tuple[str, str, int]]
) -> None:
    for moment in moments:
        await account.spend(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp())
    span = {"minute": ("2026-03-01", "2026-03-02")}.get(bucket, ("2026-03-01", "2026-04-01"))
    start, end = ("2024-01-01", "2026-04-01") if bucket == "month" else span
    lines = await account.usage(bucket=bucket, start=at(start), end=at(end))
    assert [(line["start_time"], line["end_time"], line["requests"]) for line in lines] == [
        (at(first), at(last), requests) for first, last, requests in buckets
    ]


async def test_the_time_zone_of_a_session_moves_no_bucket(
    account: Account, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator may have set one for the server, the database or the role, and Postgres's own days go by it."""
    await account.spend(at("2026-02-28T23:30:00"))
    cursor = await account.database.execute("SELECT account_id FROM api_keys WHERE id = %s", [account.key_id])
    (account_id,) = (await cursor.fetchone() or {}).values()
    monkeypatch.setenv("PGTZ", "Asia/Kathmandu")
    async with connected(service) as ours:
        assert (await execute(ours.relaxed, "SHOW timezone"))[0][0] == "Asia/Kathmandu"
        for bucket, start, end in (
            (Bucket.DAY, "2026-02-28", "2026-03-01"),
            (Bucket.MONTH, "2026-02-01", "2026-03-01"),
        ):
            question = Question([account_id], at("2026-01-01"), at("2026-04-01"), bucket)
            (row,) = await ask(ours, question, limit=10)
            assert (row["start_time"], row["end_time"]) == (at(start), at(end))


async def test_the_first_and_the_last_bucket_end_where_the_question_does(account: Account) -> None:
    start, end = at("2026-03-01T10:30:00"), at("2026-03-01T12:15:00")
    for moment in (start - 1, start, at("2026-03-01T11:00:00"), end - 1, end):
        await account.spend(moment)
    lines = await account.usage(bucket="hour", start=start, end=end)
    ten, eleven, noon = (at(f"2026-03-01T{hour}:00:00") for hour in (10, 11, 12))
    assert ten < start
    assert [(line["start_time"], line["end_time"]) for line in lines] == [(start, eleven), (eleven, noon), (noon, end)]
    assert [line["requests"] for line in lines] == [1, 1, 1]


@pytest.mark.parametrize("seed", range(3))
async def test_however_it_is_divided_the_parts_add_up_to_the_ledger(account: Account, seed: int) -> None:
    chance = random.Random(seed)
    day = at("2024-02-27")
    rows: list[dict[str, Any]] = []
    for _ in range(60):
        prompt, completion = chance.randrange(10**9), chance.randrange(10**9)
        rows.append(
            {
                "created_at": day + chance.randrange(4 * 86_400 * 10**6) / 10**6,
                "kind": chance.choice(["counted"] * 4 + ["discarded"]),
                "model": chance.choice(["fake-a", "fake-b", "fake-'\"[/b]%s"]),
                "provider": chance.choice(["fake", "second"]),
                "key_id": chance.choice([account.key_id, None]),
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "cached_tokens": chance.randrange(prompt + 1),
                "reasoning_tokens": chance.randrange(completion + 1),
                "estimated": chance.random() < 0.3,
                "cost": chance.choice([None, Decimal(chance.randrange(10**20)) / 10**10]),
            }
        )
        await account.spend(**rows[-1])
    start, end = day + chance.randrange(86_400), day + chance.randrange(2 * 86_400, 4 * 86_400)
    inside = [row for row in rows if start <= row["created_at"] < end]
    counted = [row for row in inside if row["kind"] == "counted"]

    def total(*names: str, of: list[dict[str, Any]] = counted) -> int:
        return sum(row[name] for row in of for name in names)

    expected = {
        "requests": len(counted),
        **{name: total(name) for name in AMOUNTS[1:5]},
        "total_tokens": total("prompt_tokens", "completion_tokens"),
        "estimated_requests": total("estimated"),
        "unpriced_requests": sum(row["cost"] is None for row in counted),
        "discarded_tokens": total(
            "prompt_tokens", "completion_tokens", of=[row for row in inside if row["kind"] != "counted"]
        ),
        "cost": sum((row["cost"] for row in counted if row["cost"] is not None), start=Decimal()),
    }
    for bucket in (None, "minute", "hour", "day", "month"):
        for group_by in (None, "model", "key", "provider,model,key", "model, model"):
            asked = {"bucket": bucket, "group_by": group_by}
            lines = await account.usage(
                start=start, end=end, **{name: value for name, value in asked.items() if value is not None}
            )
            sums: dict[str, Any] = {name: sum(line[name] for line in lines) for name in AMOUNTS[:-1]}
            assert {**sums, "cost": sum((Decimal(line["cost"]) for line in lines), start=Decimal())} == expected
            groups = [name.strip() for name in (group_by or "").split(",") if name]
            places = [(line["start_time"], *(line[name] for name in groups)) for line in lines]
            assert len(set(places)) == len(places)
            assert [place[0] for place in places] == sorted(place[0] for place in places)
            assert all(start <= line["start_time"] < line["end_time"] <= end for line in lines)


async def test_money_is_exact(account: Account) -> None:
    for cost in ("0.1", "0.2", "0.0000000001", "1234567890"):
        await account.spend(1000, cost=Decimal(cost))
    (line,) = await account.usage(start=0)
    assert line["cost"] == "1234567890.3000000001"
    await account.spend(5000, cost=Decimal("100.00"))
    (line,) = await account.usage(start=5000)
    assert line["cost"] == "100"


async def test_another_account_sees_none_of_it(account: Account, other: httpx.AsyncClient, model: str) -> None:
    await account.spend(time.time(), model=model)
    for params in ({"group_by": "model"}, {"group_by": "model,key", "bucket": "hour"}):
        assert model not in (await other.get("/usage", params=params)).text
        assert account.key_id not in (await other.get("/usage", params=params)).text


async def test_the_jobs_of_every_key_of_the_account_are_counted(account: Account, service: Service, model: str) -> None:
    second = service.create_key(account.name)
    async with connect(service, second["key"]) as client:
        await completed(client, await submit(client, model))
    await completed(account.client, await submit(account.client, model))
    assert [line["requests"] for line in await account.usage()] == [2]
    lines = await account.usage(group_by="key")
    assert {line["key"]: line["requests"] for line in lines} == {account.key_id: 1, second["id"]: 1}


async def test_usage_outlives_the_content_of_its_job(account: Account, model: str) -> None:
    job_id = await submit(account.client, model)
    await completed(account.client, job_id)
    before = await account.usage(start=0, end=2**33)
    assert (await account.client.delete(f"/jobs/{job_id}")).status_code == 200
    assert await account.usage(start=0, end=2**33) == before


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"group_by": "colour"}, "group_by"),
        ({"group_by": "model,metadata."}, "group_by"),
        ({"group_by": "metadata." + "x" * 65}, "group_by"),
        ({"group_by": "metadata.a\0"}, "group_by"),
        ({"group_by": "key,model,agent,batch,tier,user"}, "group_by"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"time_zone": "../../etc/passwd"}, "time_zone"),
        ({"time_zone": "\0"}, "time_zone"),
        ({"time_zone": "CET"}, "time_zone"),
        ({"time_zone": "localtime", "bucket": "day"}, "time_zone"),
        ({"model": "a\0"}, "model"),
        ({"limit": "0"}, "limit"),
        ({"limit": "10001"}, "limit"),
        ({"format": "xml"}, "format"),
        ({"page": "nonsense"}, "page"),
        ({"page": "WyJhIiwxLDFd"}, "page"),
        ({"start": "0", "end": "3000000", "group_by": "user,model"}, "start"),
        ({"start": "0", "end": "3000000", "group_by": "agent", "latency": "true"}, "start"),
        ({"start": "0", "end": "3000000", "time_zone": "Asia/Kolkata", "bucket": "day"}, "start"),
        ({"group_by": "model,"}, "group_by"),
        ({"group_by": ""}, "group_by"),
        ({"group_by": "model\0"}, "group_by"),
        ({"group_by": "x" * 5000}, "group_by"),
        ({"bucket": "week"}, "bucket"),
        ({"bucket": ""}, "bucket"),
        ({"start": "yesterday"}, "start"),
        ({"start": "1.5"}, "start"),
        ({"start": "-1"}, "start"),
        ({"start": str(10**30)}, "start"),
        ({"end": "2026-01-01"}, "end"),
        ({"end": str(2**33 + 1)}, "end"),
        ({"end": "0"}, "end"),
        ({"start": "2000", "end": "1000"}, "end"),
        ({"start": "2000", "end": "2000"}, "end"),
        ({"start": str(2**33)}, "start"),
        ({"start": "0", "end": "600001", "bucket": "minute"}, "bucket"),
        ({"start": "59", "end": "600001", "bucket": "minute"}, "bucket"),
        ({"start": "0", "end": str(2**33), "bucket": "hour"}, "bucket"),
        ({"start": "0", "end": str(2**33), "bucket": "day"}, "bucket"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(
    client: httpx.AsyncClient, params: dict[str, str], param: str
) -> None:
    error = refused(await client.get("/usage", params=params), 400, type="invalid_request_error", param=param)
    assert len(error["message"]) < 400


async def test_as_many_buckets_as_there_may_be_are_answered(account: Account) -> None:
    assert await account.usage(start=0, end=600_000, bucket="minute") == []
    assert await account.usage(start=0, end=2**33, bucket="month") == []


async def test_a_long_answer_comes_in_pages(account: Account, database: Database) -> None:
    await database.execute(
        "INSERT INTO usage (job_id, attempt, kind, account_id, model, provider, prompt_tokens, completion_tokens,"
        " cached_tokens, reasoning_tokens, estimated, created_at)"
        " SELECT 'job_' || gen_random_uuid(), 1, 'counted', account_id, 'm' || n, 'fake', 1, 1, 0, 0, false,"
        "        to_timestamp(1000) FROM generate_series(1, 10001) AS n, api_keys WHERE id = %s",
        [account.key_id],
    )
    asked: dict[str, str | int] = {"start": 0, "group_by": "model", "limit": 4000}
    pages: list[Json] = []
    while not pages or pages[-1]["has_more"]:
        more = {} if not pages else {"page": pages[-1]["next_page"]}
        response = await account.client.get("/usage", params={**asked, **more})
        assert response.status_code == 200, response.text
        pages.append(response.json())
    assert [len(page["data"]) for page in pages] == [4000, 4000, 2001]
    assert len({line["model"] for page in pages for line in page["data"]}) == 10_001
    assert {(line["start_time"], line["end_time"]) for page in pages for line in page["data"]} == {
        (0, pages[0]["data"][0]["end_time"])
    }
    elsewhere = {**asked, "group_by": "provider", "page": pages[0]["next_page"]}
    refused(await account.client.get("/usage", params=elsewhere), 400, param="page")
    (line,) = await account.usage(start=0)
    assert line["requests"] == 10_001


async def test_both_prefixes_answer_and_neither_without_a_key(
    service: Service, account: Account, anonymous: httpx.AsyncClient
) -> None:
    for prefix in ("/api/v1", "/v1"):
        url = f"{service.base_url}{prefix}/usage"
        assert (await account.client.get(url)).status_code == 200
        refused(await anonymous.get(url), 401, code="invalid_api_key")


async def test_the_answer_is_what_the_openapi_document_says(
    service: Service, account: Account, anonymous: httpx.AsyncClient
) -> None:
    document = (await anonymous.get(f"{service.base_url}/openapi.json")).json()
    operation = document["paths"]["/api/v1/usage"]["get"]
    assert {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"} == {
        *("start", "end", "bucket", "time_zone", "group_by", "account", "latency", "format", "limit", "page"),
        *("model", "provider", "key", "agent", "batch", "tier", "user", "metadata"),
    }
    schema = document["components"]["schemas"]["UsageBucket"]
    await account.spend(time.time())
    (whole,) = await account.usage()
    assert whole.keys() == set(schema["required"])
    found: set[str] = set()
    for groups in ("model,provider,key,agent", "answered_model,batch,tier,user,account"):
        (grouped,) = await account.usage(group_by=groups, latency="true")
        found |= grouped.keys()
    assert found == schema["properties"].keys()
    assert set(GROUPS) <= found
    assert schema["example"].keys() <= schema["properties"].keys()


# The operator's command.


def usage_of_all(service: Service, *options: str) -> list[Json]:
    rows: list[Json] = json.loads(service.run("usage", "--json", *options))
    return rows


async def test_the_command_adds_up_all_accounts(account: Account, other: httpx.AsyncClient, model: str) -> None:
    service = Service.running[0]
    for client in (account.client, account.client, other):
        await completed(client, await submit(client, model))
    everyone = {row["model"]: row for row in usage_of_all(service)}
    assert everyone[model]["requests"] == 3
    mine = usage_of_all(service, "--account", account.name)
    (asked,) = await account.usage(group_by="model")
    assert [{name: row[name] for name in ("model", *AMOUNTS)} for row in mine] == [
        {name: asked[name] for name in ("model", *AMOUNTS)}
    ]
    by_account = {row["account"]: row["requests"] for row in usage_of_all(service, "--by", "account")}
    assert by_account[account.name] == 2
    assert by_account["other"] >= 1
    rows = usage_of_all(service, "--by", "account", "--by", "key", "--by", "provider", "--account", account.name)
    assert [(row["account"], row["key"], row["provider"]) for row in rows] == [(account.name, account.key_id, "fake")]


async def test_the_command_shows_a_table_and_its_total(account: Account, service: Service) -> None:
    now = time.time()
    await account.spend(now, model="fake-dear", cost=Decimal("1000.5"))
    await account.spend(now, model="fake-cheap", cost=Decimal("0.25"), prompt_tokens=1_000_000)
    await account.spend(now, model="fake-free", cost=None, estimated=True)
    await account.spend(now, model="fake-free", kind="discarded")
    printed = service.run("usage", "--account", account.name).splitlines()
    heading, *rows, total = [line.split() for line in printed if line.strip()]
    assert heading[0] == "model"
    assert [row[0] for row in rows] == ["fake-dear", "fake-cheap", "fake-free"]
    assert rows[1] == ["fake-cheap", "1", "1,000,000", "0", "3", "0", "1,000,003", "0", "0", "0", "0.25"]
    assert total == ["total", "3", "1,000,014", "0", "9", "0", "1,000,023", "10", "1", "1", "1000.75"]


async def test_the_command_counts_so_many_days(account: Account, service: Service) -> None:
    for age in (0, 2, 40):
        await account.spend(time.time() - age * 86_400, prompt_tokens=1, completion_tokens=0)
    for days, requests in (("1", 1), ("30", 2), ("36500", 3)):
        (row,) = usage_of_all(service, "--account", account.name, "--days", days)
        assert row["requests"] == requests


async def test_what_clients_name_their_models_does_nothing_to_the_table(account: Account, service: Service) -> None:
    await account.spend(time.time(), model="fake[/b]\x1b[31m\n[red]x")
    printed = service.run("usage", "--account", account.name)
    assert "fake[/b]" in printed
    assert "[red]x" in printed
    assert "\x1b" not in printed


def test_without_usage_the_command_shows_zeros(service: Service) -> None:
    service.create_key("idle")
    assert usage_of_all(service, "--account", "idle") == []
    assert service.run("usage", "--account", "idle").split()[-11:] == ["total", *["0"] * 10]


@pytest.mark.parametrize("command", [["usage"], ["usage", "statement", "2026-11"], ["jobs", "list"]], ids=" ".join)
def test_an_account_that_does_not_exist_is_an_error(service: Service, command: list[str]) -> None:
    ended = service.command(*command, "--account", "tyop")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "No account found with name 'tyop'." in ended.stderr


@pytest.mark.parametrize(
    "options", [["--days", "0"], ["--days", "nan"], ["--days", "36501"], ["--by", "colour"], ["what"]], ids=" ".join
)
def test_the_command_refuses_what_makes_no_sense(service: Service, options: list[str]) -> None:
    ended = service.command("usage", *options)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
