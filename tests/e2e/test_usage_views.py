"""Which keys see whose usage, and in which shapes: CSV, percentiles, statements, and OpenAI's administration API."""

from __future__ import annotations

import csv
import io
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx
import openai
import psycopg
import pytest
from psycopg.rows import DictRow

from tests.e2e.jobs import chat, completed, refused, submit
from tests.fakes.provider import Provider, answer, usage_of
from tests.service import BOOTSTRAP_KEY, Service, connect
from tests.waiting import eventually

DAY = 86_400


@dataclass
class Keys:
    """An account of a test's own, with two keys and one that may see what both use."""

    account: str
    ids: list[str]
    first: httpx.AsyncClient
    second: httpx.AsyncClient
    reader: httpx.AsyncClient


@pytest.fixture
async def keys(service: Service) -> AsyncIterator[Keys]:
    account = f"views-{secrets.token_hex(6)}"
    made = [service.create_key(account), service.create_key(account)]
    made.append(service.create_key(account, "--scope", "usage:read"))
    async with (
        connect(service, made[0]["key"]) as first,
        connect(service, made[1]["key"]) as second,
        connect(service, made[2]["key"]) as reader,
    ):
        yield Keys(account, [key["id"] for key in made], first, second, reader)


@pytest.fixture
async def used(keys: Keys, provider: Provider, model: str) -> Keys:
    """The account after one request of the first key and two of the second, each of 100 tokens in and 40 out."""
    provider.always(model, answer("ok", usage=usage_of(100, 40)))
    for client, count in ((keys.first, 1), (keys.second, 2)):
        for number in range(count):
            body = chat(model, user=f"user-{number}", metadata={"team": "rivers"})
            assert (await client.post("/chat/completions", json=body)).status_code == 200
    return keys


async def usage(client: httpx.AsyncClient, **parameters: Any) -> list[dict[str, Any]]:
    response = await client.get("/usage", params=parameters)
    assert response.status_code == 200, response.text
    data: list[dict[str, Any]] = response.json()["data"]
    return data


async def test_a_key_sees_its_own_and_a_reader_the_accounts(used: Keys, client: httpx.AsyncClient) -> None:
    for of, expected in ((used.first, {used.ids[0]: 1}), (used.reader, {used.ids[0]: 1, used.ids[1]: 2})):
        assert {row["key"]: row["requests"] for row in await usage(of, group_by="key")} == expected
    assert await usage(used.first, group_by="key", key=used.ids[1]) == []
    [whole] = await usage(client, account=used.account)
    assert whole["requests"] == 3
    for everybodys in ({}, {"account": "all"}):
        rows = await usage(client, group_by="account,key", **everybodys)
        found = {(row["account"], row["key"]): row["requests"] for row in rows}
        assert (found[used.account, used.ids[0]], found[used.account, used.ids[1]]) == (1, 2)
    for whose in ("all", used.account, "default"):
        refused(await used.reader.get("/usage", params={"account": whose}), 403, param="account")
    refused(await client.get("/usage", params={"account": "nobody"}), 404, param="account")


async def test_users_metadata_and_tiers_are_told_apart(used: Keys, model: str) -> None:
    assert {row["user"]: row["requests"] for row in await usage(used.reader, group_by="user")} == {
        "user-0": 2,
        "user-1": 1,
    }
    [row] = await usage(used.reader, group_by="metadata.team,tier,model,answered_model")
    assert (row["metadata.team"], row["tier"], row["model"]) == ("rivers", "default", model)
    assert [found["requests"] for found in await usage(used.reader, user="user-1")] == [1]
    assert [found["requests"] for found in await usage(used.reader, **{"metadata[team]": "lakes"})] == [0]


async def test_percentiles_of_latency(used: Keys) -> None:
    for grouped in ("key", "user"):  # from roll-ups, and from the rows themselves
        rows = await usage(used.reader, group_by=grouped, latency="true")
        for row in rows:
            assert row["duration_seconds"].keys() == {"p50", "p90", "p95", "p99"}
            assert 0 < row["duration_seconds"]["p50"] <= row["duration_seconds"]["p99"] < 60


async def test_csv_has_the_same_rows(used: Keys) -> None:
    asked = {"group_by": "key", "bucket": "day", "latency": "true", "end": str(int(time.time()) + 60)}
    response = await used.reader.get("/usage", params={**asked, "format": "csv"})
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(response.text)))
    data = await usage(used.reader, **asked)
    assert [(row["key"], row["requests"], row["cost"]) for row in rows] == [
        (row["key"], str(row["requests"]), row["cost"]) for row in data
    ]
    assert float(rows[0]["duration_seconds_p50"]) > 0
    first = await used.reader.get("/usage", params={**asked, "format": "csv", "limit": "1"})
    following = await used.reader.get(
        "/usage", params={**asked, "format": "csv", "limit": "1", "page": first.headers["x-headrace-next-page"]}
    )
    assert len(list(csv.DictReader(io.StringIO(following.text)))) == 1
    assert "x-headrace-next-page" not in following.headers


async def test_no_spreadsheet_takes_a_name_for_a_formula(keys: Keys, model: str) -> None:
    await completed(keys.first, await submit(keys.first, model, user='=cmd|" /C calc"!A0'))
    response = await keys.first.get("/usage", params={"group_by": "user", "format": "csv"})
    [row] = csv.DictReader(io.StringIO(response.text))
    assert row["user"].startswith("'=")


async def correct(database: psycopg.AsyncConnection[DictRow], key_id: str, cost: str) -> None:
    """Add a correction of a key's usage to the ledger."""
    await database.execute(
        "INSERT INTO usage (job_id, attempt, kind, account_id, key_id, model, provider, prompt_tokens,"
        " completion_tokens, cached_tokens, reasoning_tokens, estimated, cost, note)"
        " SELECT 'job_' || gen_random_uuid(), 1, 'correction', account_id, id, 'corrected', 'fake', 0, 0, 0, 0, false,"
        " %s::numeric, 'a test' FROM api_keys WHERE id = %s",
        [cost, key_id],
    )


async def test_a_negative_cost_is_a_number_in_csv_and_keeps_its_last_digit(
    used: Keys, database: psycopg.AsyncConnection[DictRow]
) -> None:
    await correct(database, used.ids[0], "-0.0001000000")
    await correct(database, used.ids[1], "0.00000001875")  # one cached token at 0.01875 USD a million
    month = time.strftime("%Y-%m", time.gmtime())
    for path, asked in (("/usage/statement", {"month": month}), ("/usage", {"group_by": "model,key", "format": "csv"})):
        response = await used.reader.get(path, params=asked)
        assert response.status_code == 200, response.text
        rows = list(csv.DictReader(io.StringIO(response.text)))
        assert sum(Decimal(row["cost"]) for row in rows) == Decimal("0.00185001875")
        assert {row["key"]: Decimal(row["cost"]) for row in rows if row["model"] == "corrected"} == {
            used.ids[0]: Decimal("-0.0001"),
            used.ids[1]: Decimal("0.00000001875"),
        }
    [row] = await usage(used.reader, model="corrected", key=used.ids[1])
    assert row["cost"] == "0.00000001875"


async def test_the_price_and_where_it_is_from_stay_in_the_ledger(
    used: Keys, database: psycopg.AsyncConnection[DictRow], model: str
) -> None:
    cursor = await database.execute("SELECT * FROM usage WHERE model = %s ORDER BY created_at", [model])
    for row in await cursor.fetchall():
        assert row["price"] == {
            "input": "2.5",
            "cached_input": "2.5",
            "cache_write": "2.5",
            "output": "10.0",
            "source": "headrace.toml",
        }
        assert row["cost"] == Decimal("0.00065")
        assert 0 <= row["queue_ms"] <= row["duration_ms"] < 60_000
        assert (row["kind"], row["tier"], row["streamed"], row["metadata"]) == (
            *("counted", "default", False),
            {"team": "rivers"},
        )


async def test_a_statement_sums_up_to_the_ledger(
    used: Keys,
    client: httpx.AsyncClient,
    other: httpx.AsyncClient,
    model: str,
    database: psycopg.AsyncConnection[DictRow],
) -> None:
    await completed(other, await submit(other, model))
    month = time.strftime("%Y-%m", time.gmtime())
    response = await used.reader.get("/usage/statement", params={"month": month})
    assert response.status_code == 200, response.text
    rows = list(csv.DictReader(io.StringIO(response.text)))
    cursor = await database.execute(
        "SELECT sum(cost) AS cost FROM usage JOIN accounts ON accounts.id = account_id WHERE name = %s", [used.account]
    )
    found = await cursor.fetchone()
    assert found is not None
    assert sum(Decimal(row["cost"]) for row in rows) == found["cost"] == Decimal("0.00195")
    assert {row["account"] for row in rows} == {used.account}
    for asked in ({}, {"account": "all"}):
        everybodys = (await client.get("/usage/statement", params={"month": month, **asked})).text
        assert set(response.text.splitlines()[1:]) < set(everybodys.splitlines())
    one = await client.get("/usage/statement", params={"month": month, "account": used.account})
    assert one.text == response.text
    refused(await used.first.get("/usage/statement", params={"month": month}), 403)
    empty = await used.reader.get("/usage/statement", params={"month": "2020-01"})
    assert empty.text.splitlines() == response.text.splitlines()[:1]
    for wrong in ("2026-13", "2026", "now", "0000-01"):
        refused(await used.reader.get("/usage/statement", params={"month": wrong}), 400, param="month")


async def test_openais_client_asks_for_usage_and_costs(used: Keys, service: Service, model: str) -> None:
    start = int(time.time()) // DAY * DAY - DAY
    end = start + 2 * DAY
    async with openai.AsyncOpenAI(
        base_url=f"{service.base_url}/v1", api_key=BOOTSTRAP_KEY, admin_api_key=BOOTSTRAP_KEY, max_retries=0
    ) as client:
        page = await client.admin.organization.usage.completions(
            start_time=start,
            end_time=end,
            bucket_width="1d",
            models=[model],
            group_by=["model", "api_key_id", "batch"],
            limit=3,
        )
        results = [result for bucket in page.data for result in bucket.results]
        assert {(result.api_key_id, result.num_model_requests, result.input_tokens) for result in results} == {  # type: ignore[union-attr]
            (used.ids[0], 1, 100),
            (used.ids[1], 2, 200),
        }
        assert {(result.model, result.batch) for result in results} == {(model, False)}  # type: ignore[union-attr]
        assert len(page.data) == 2
        assert page.has_more is False
        page = await client.admin.organization.usage.completions(
            start_time=start, end_time=end, models=[model], group_by=["project_id"], limit=3
        )
        [project] = {result.project_id for bucket in page.data for result in bucket.results}
        assert isinstance(project, str)
        costs = await client.admin.organization.usage.costs(
            start_time=start, end_time=end, group_by=["line_item"], project_ids=[project], limit=5
        )
        [cost] = [result for bucket in costs.data for result in bucket.results]
        assert cost.line_item == model  # type: ignore[union-attr]
        assert cost.amount is not None and cost.amount.value == pytest.approx(0.00195)  # type: ignore[union-attr]  # noqa: PT018


async def test_projects_of_others_are_an_administrators_to_see(used: Keys, client: httpx.AsyncClient) -> None:
    start = int(time.time()) // DAY * DAY - DAY
    asked: dict[str, Any] = {"start_time": start, "group_by": "project_id,api_key_id", "api_key_ids": used.ids[0]}
    response = await client.get("/organization/usage/completions", params=asked)
    [project] = {result["project_id"] for bucket in response.json()["data"] for result in bucket["results"]}
    default = (await client.get("/account")).json()["id"]
    for path in ("usage/completions", "costs"):
        for who in (used.reader, used.first):
            own = await who.get(f"/organization/{path}", params={"start_time": start, "project_ids": project})
            assert [result for bucket in own.json()["data"] for result in bucket["results"]]
            for others in (default, "acct_nonsense", f"{project},acct_nonsense"):
                params = {"start_time": start, "project_ids": others}
                refused(await who.get(f"/organization/{path}", params=params), 403, param="project_ids")
        unknown = await client.get(
            f"/organization/{path}", params={"start_time": start, "project_ids": "acct_nonsense"}
        )
        assert not [result for bucket in unknown.json()["data"] for result in bucket["results"]]


async def test_a_page_of_other_projects_is_not_one_of_this_question(used: Keys) -> None:
    project = (await used.reader.get("/account")).json()["id"]
    asked: dict[str, Any] = {"start_time": int(time.time()) - 5 * 3600, "bucket_width": "1h", "limit": 1}
    page = (await used.reader.get("/organization/usage/completions", params=asked)).json()["next_page"]
    following = {**asked, "page": page, "project_ids": project}
    refused(await used.reader.get("/organization/usage/completions", params=following), 400, param="page")


async def test_a_user_may_have_a_comma(keys: Keys, model: str) -> None:
    await completed(keys.first, await submit(keys.first, model, user="Doe, Jane"))
    asked: dict[str, Any] = {"start_time": int(time.time()) // DAY * DAY - DAY, "user_ids[]": "Doe, Jane"}
    data = (await keys.first.get("/organization/usage/completions", params=asked)).json()["data"]
    assert [result["num_model_requests"] for bucket in data for result in bucket["results"]] == [1]


async def test_openais_pages_follow_one_another(used: Keys) -> None:
    start = int(time.time()) // 3600 * 3600 - 5 * 3600
    asked: dict[str, Any] = {"start_time": start + 600, "end_time": start + 6 * 3600, "group_by": "batch"}
    asked |= {"bucket_width": "1h", "limit": 2}
    pages: list[dict[str, Any]] = []
    while not pages or pages[-1]["has_more"]:
        more = {"page": pages[-1]["next_page"]} if pages else {}
        response = await used.reader.get("/organization/usage/completions", params={**asked, **more})
        assert response.status_code == 200, response.text
        pages.append(response.json())
    buckets = [bucket for page in pages for bucket in page["data"]]
    assert [len(page["data"]) for page in pages] == [2, 2, 2]
    assert [bucket["start_time"] for bucket in buckets] == [start + 600, *range(start + 3600, start + 6 * 3600, 3600)]
    results = [result for bucket in buckets for result in bucket["results"]]
    assert sum(result["num_model_requests"] for result in results) == 3
    assert {result["batch"] for result in results} == {False}
    minutes = await used.reader.get(
        "/organization/usage/completions", params={"start_time": int(time.time()) - 600, "bucket_width": "1m"}
    )
    found = [result for bucket in minutes.json()["data"] for result in bucket["results"]]
    assert sum(result["output_tokens"] for result in found) == 120


@pytest.mark.parametrize(
    ("path", "params", "param"),
    [
        ("usage/completions", {}, "start_time"),
        ("usage/completions", {"start_time": "x"}, "start_time"),
        ("usage/completions", {"start_time": "10", "end_time": "10"}, "end_time"),
        ("usage/completions", {"start_time": "10", "bucket_width": "1w"}, "bucket_width"),
        ("usage/completions", {"start_time": "10", "limit": "32"}, "limit"),
        ("usage/completions", {"start_time": "10", "limit": "0"}, "limit"),
        ("usage/completions", {"start_time": "10", "group_by": "colour"}, "group_by"),
        ("usage/completions", {"start_time": "10", "models[]": "a\0"}, "models"),
        ("usage/completions", {"start_time": "10", "page": "page_x"}, "page"),
        ("costs", {"start_time": "10", "bucket_width": "1h"}, "bucket_width"),
        ("costs", {"start_time": "10", "limit": "181"}, "limit"),
        ("costs", {"start_time": "10", "group_by[]": "model"}, "group_by"),
    ],
)
async def test_what_makes_no_sense_is_refused_as_well(
    client: httpx.AsyncClient, path: str, params: dict[str, str], param: str
) -> None:
    refused(await client.get(f"/organization/{path}", params=params), 400, param=param)


# The operator's commands.


def run(service: Service, *arguments: str, code: int = 0) -> str:
    ended = service.command(*arguments)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stdout


async def test_the_command_draws_days_and_prints_csv(used: Keys, service: Service, model: str) -> None:
    drawn = run(service, "usage", "--account", used.account, "--per", "day", "--by", "model", "--days", "2")
    assert "█" in drawn
    assert time.strftime("%Y-%m-%d", time.gmtime()) in drawn
    assert model in drawn
    rows = list(csv.DictReader(io.StringIO(run(service, "usage", "--account", used.account, "--by", "key", "--csv"))))
    assert {row["key"]: row["requests"] for row in rows} == {used.ids[0]: "1", used.ids[1]: "2"}
    run(service, "usage", "--per", "day", "--zone", "Mars/Olympus", code=2)


async def test_the_books_are_verified_and_corrected(used: Keys, service: Service, model: str) -> None:
    job = await completed(used.first, await submit(used.first, model))
    [before] = await usage(used.reader)
    run(service, "usage", "correct", job["id"], "--prompt-tokens", "-10", "--cost", "-0.0001", "--note", "a test")
    [after] = await usage(used.reader)
    assert after["prompt_tokens"] == before["prompt_tokens"] - 10
    assert Decimal(after["cost"]) == Decimal(before["cost"]) - Decimal("0.0001")
    run(service, "usage", "correct", "job_nonsense", "--note", "x", code=1)
    run(service, "usage", "correct", job["id"], "--cost", "much", "--note", "x", code=2)

    async def equal() -> bool:
        found = json.loads(run(service, "usage", "verify", "--json"))
        assert found["equal"]
        return bool(found["rows"])

    await eventually(equal, "the roll-ups to have rows")
    month = time.strftime("%Y-%m", time.gmtime())
    rows = list(csv.DictReader(io.StringIO(run(service, "usage", "statement", month, "--account", used.account))))
    assert {row["kind"] for row in rows} == {"counted", "correction"}
    assert sum(Decimal(row["cost"]) for row in rows) == Decimal(after["cost"])
