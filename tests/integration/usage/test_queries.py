"""Queries of the ledger: exact money, an error instead of half an answer, and corrections."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

import api.resources.organization
from api.http.errors import error_for
from headrace.catalogue.known import Rates
from headrace.errors import InvalidRequestError, PermissionDeniedError, UnavailableError
from headrace.formats.chat.usage import TokenUsage
from headrace.stores.database import Database, execute
from headrace.usage.queries import ask, correct_usage, render_amounts, render_cost, statement_of_month
from headrace.usage.question import Bucket, Question
from headrace.usage.rollups import fold_usage, verify_rollups
from headrace.usage.spent import SpentUsage
from tests.integration.job_rows import Jobs, Owner, end_of
from tests.integration.ledger import Entry, write
from tests.integration.usage.test_rollups import START

# A price of OpenAI's: one cached token costs eleven digits after the point.
RATES = Rates(0, Decimal("0.075"), Decimal("0.01875"), Decimal("0.075"), Decimal("0.3"), source="test")
COST = Decimal("0.00000001875")


@pytest.fixture(autouse=True)
async def empty(database: Database) -> None:
    await execute(database.durable, "TRUNCATE usage_rollups, usage_latencies, usage_mark")


async def test_a_cost_keeps_its_last_digit_all_the_way(database: Database, jobs: Jobs, owner: Owner) -> None:
    await fold_usage(database, metadata_keys=[])
    tokens = TokenUsage(1, 0, cached_tokens=1)
    assert RATES.cost(tokens) == COST
    job = await jobs.run()
    await jobs.finish(end_of(job, spent=SpentUsage("fake", "fake-1", tokens, RATES.cost(tokens))))
    [row] = await jobs.ledger(job.id)
    assert row.cost == COST
    question = Question([owner.account_id], 0, 2**33)
    for folded in (0, 1):
        [answer] = await ask(database, question, limit=1)
        assert answer["cost"] == COST
        assert render_amounts(answer)["cost"] == "0.00000001875"
        assert await fold_usage(database, metadata_keys=[]) == 1 - folded
    sums = await execute(database.relaxed, "SELECT DISTINCT cost FROM usage_rollups")
    assert [found.cost for found in sums] == [COST]
    month = f"{row.created_at:%Y-%m}"
    [line] = await statement_of_month(database, month, [owner.account_id])
    assert line["cost"] == COST
    await correct_usage(database, job.id, cost=-COST, note="it was free")
    assert [line["cost"] for line in await statement_of_month(database, month, None)] == [-COST, COST]
    [answer] = await ask(database, question, limit=1)
    assert (answer["cost"], render_amounts(answer)["cost"]) == (0, "0")
    assert (await verify_rollups(database)).differences == 0


@pytest.mark.parametrize(
    ("cost", "rendered"),
    [
        ("0", "0"),
        ("0E-11", "0"),
        ("100.00", "100"),
        ("1E+3", "1000"),
        ("-0.0001000000", "-0.0001"),
        ("1234567890123456789.01234567890123456789", "1234567890123456789.01234567890123456789"),
    ],
)
def test_money_is_rendered_to_the_last_digit(cost: str, rendered: str) -> None:
    assert render_cost(Decimal(cost)) == rendered


async def test_a_correction_is_of_every_sort_of_token(database: Database, jobs: Jobs, owner: Owner) -> None:
    job = await jobs.complete()
    question = Question([owner.account_id], 0, 2**33)
    [before] = await ask(database, question, limit=1)
    tokens = {
        "prompt_tokens": -1,
        "completion_tokens": 2,
        "cached_tokens": -3,
        "cache_write_tokens": 4,
        "reasoning_tokens": -5,
        "prompt_audio_tokens": 6,
        "completion_audio_tokens": -7,
    }
    assert await correct_usage(database, job.id, cost=Decimal(), note="miscounted", **tokens)
    [after] = await ask(database, question, limit=1)
    assert {name: after[name] - before[name] for name in tokens} == tokens


async def test_a_long_answer_has_its_percentiles_page_by_page(database: Database, owner: Owner) -> None:
    users = [None, "ann", "bob", "eve"]
    await write(database, [Entry(owner.account_id, START, end_user=user, duration_ms=1024) for user in users])
    await write(database, [Entry(owner.account_id, START, kind="correction", note="x", end_user="zoe")])
    question = Question([owner.account_id], 0, 2**33, groups=["user", "batch"])
    found: list[dict[str, Any]] = []
    for offset in range(6):
        found += await ask(database, question, limit=1, offset=offset, latency=True)
    assert [row["user"] for row in found] == [*users, "zoe"]
    assert [row["duration_seconds"]["p50"] for row in found] == [1.02, 1.02, 1.02, 1.02, None]


async def test_a_page_ends_before_the_bucket_that_would_be_too_much_and_none_is_left_out(
    database: Database, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.resources.organization, "_MOST_ROWS", 2)
    day = int(START.timestamp()) // 86_400 * 86_400
    question = Question([owner.account_id], day, day + 5 * 86_400, bucket=Bucket.DAY, groups=["model"])
    for days, model in ((0, "a"), (1, "b"), (1, "c")):
        await write(database, [Entry(owner.account_id, START + timedelta(days=days), model=model)])

    async def page(start: int) -> tuple[list[str], int]:
        rows, end = await api.resources.organization._rows(database, replace(question, start=start), 86_400)
        return [row["model"] for row in rows], end

    assert await page(day) == (["a"], day + 86_400)
    assert await page(day + 86_400) == (["b", "c"], question.end)
    await write(database, [Entry(owner.account_id, START + timedelta(days=1), model="d")])
    assert await page(day) == (["a"], day + 86_400)
    with pytest.raises(InvalidRequestError) as refused:
        await page(day + 86_400)
    assert refused.value.param == "group_by"


@pytest.mark.parametrize(
    ("asked", "visible", "expected"),
    [([], ["mine"], ["mine"]), (["mine"], ["mine"], ["mine"]), ([], None, None), (["any"], None, ["any"])],
)
def test_projects_that_may_be_seen_are_told(
    asked: list[str], visible: list[str] | None, expected: list[str] | None
) -> None:
    assert api.resources.organization._narrow_projects(asked, visible) == expected


def test_a_hidden_project_looks_like_one_that_does_not_exist() -> None:
    with pytest.raises(PermissionDeniedError) as refused:
        api.resources.organization._narrow_projects(["mine", "another"], ["mine"])
    assert refused.value.param == "project_ids"


async def test_a_statement_that_postgres_gives_up_is_told_to_be_tried_again(database: Database) -> None:
    with pytest.raises(DBAPIError) as cancelled:
        await execute(database.relaxed, "SELECT pg_cancel_backend(pg_backend_pid()) FROM generate_series(1, 1000)")
    assert getattr(cancelled.value.orig, "sqlstate", None) == "57014"  # as by its statement_timeout
    assert isinstance(error_for(cancelled.value), UnavailableError)
