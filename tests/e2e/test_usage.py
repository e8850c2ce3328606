"""The ledger: one counted row a job, with what the provider said or our estimate, marked as such."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.rows import DictRow

from tests.e2e.jobs import chat, completed, ended, submit
from tests.e2e.streams import chunks_of
from tests.fakes.provider import DONE, Provider, answer, chunk, status, stream, usage_of

Database = psycopg.AsyncConnection[DictRow]


async def rows_of(database: Database, job_id: str) -> list[DictRow]:
    return await (await database.execute("SELECT * FROM usage WHERE job_id = %s ORDER BY attempt", [job_id])).fetchall()


async def run(client: httpx.AsyncClient, model: str, use: str) -> str:
    """Ask in one of the three ways and return the job's id."""
    if use == "background":
        job_id = await submit(client, model)
        await completed(client, job_id)
        return job_id
    if use == "whole":
        body = (await client.post("/chat/completions", json=chat(model))).json()
        return str(body["id"]).replace("chatcmpl-", "job_")
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        chunks = await chunks_of(response)
    job_id = str(chunks[0]["id"]).replace("chatcmpl-", "job_")
    await completed(client, job_id)
    return job_id


@pytest.mark.parametrize("use", ["whole", "streamed", "background"])
async def test_a_job_has_one_row_with_every_kind_of_token_and_its_cost(
    client: httpx.AsyncClient, provider: Provider, model: str, database: Database, use: str
) -> None:
    usage = usage_of(
        100, 40, prompt_tokens_details={"cached_tokens": 30}, completion_tokens_details={"reasoning_tokens": 25}
    )
    provider.script(model, answer("ok", usage=usage))
    job_id = await run(client, model, use)
    (row,) = await rows_of(database, job_id)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (100, 40)
    assert (row["cached_tokens"], row["reasoning_tokens"]) == (30, 25)
    assert not row["estimated"]
    assert row["kind"] == "counted"
    assert row["provider"] == "fake"
    assert row["model"] == model
    # 100 tokens at 2.50 USD a million and 40 at 10.00; no price for cached ones is set.
    assert row["cost"] == Decimal("0.00065")
    job = await completed(client, job_id)
    assert Decimal(job["cost"]) == Decimal("0.00065")
    assert job["usage"]["prompt_tokens"] == 100
    assert job["usage"]["completion_tokens"] == 40


@pytest.mark.parametrize("use", ["whole", "streamed", "background"])
async def test_tokens_that_the_provider_does_not_report_are_estimated_and_marked(
    client: httpx.AsyncClient, provider: Provider, model: str, database: Database, use: str
) -> None:
    provider.script(model, answer("a dozen words or so, which is some number of tokens", report_usage=False))
    (row,) = await rows_of(database, await run(client, model, use))
    assert row["estimated"]
    assert row["prompt_tokens"] > 0
    assert 5 <= row["completion_tokens"] <= 50
    assert row["cost"] > 0


@pytest.mark.parametrize(
    "usage",
    [
        {},
        None,
        {"prompt_tokens": "many", "completion_tokens": None},
        {"prompt_tokens": -5, "completion_tokens": -1},
        {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 99}},
        {"prompt_tokens": 10, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 99}},
        {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": None},
        {"prompt_tokens": 10**30, "completion_tokens": 2},
        {"prompt_tokens": 10.5, "completion_tokens": 2},
        "seven",
    ],
    ids=str,
)
async def test_usage_that_makes_no_sense_loses_no_job(
    client: httpx.AsyncClient, provider: Provider, model: str, database: Database, usage: Any
) -> None:
    provider.always(
        model, stream(chunk({"role": "assistant", "content": "ok"}), chunk(finish="stop", usage=usage), DONE)
    )
    job_id = await submit(client, model)
    assert (await ended(client, job_id))["status"] == "completed"
    (row,) = await rows_of(database, job_id)
    assert row["prompt_tokens"] >= row["cached_tokens"] >= 0
    assert row["completion_tokens"] >= row["reasoning_tokens"] >= 0


async def test_a_refused_request_costs_nothing(
    client: httpx.AsyncClient, provider: Provider, model: str, database: Database
) -> None:
    provider.script(model, status(400))
    job = await ended(client, await submit(client, model))
    assert sum(row["completion_tokens"] for row in await rows_of(database, job["id"])) == 0
    assert job["cost"] is None or Decimal(job["cost"]) == 0


async def test_the_ledger_and_the_jobs_say_the_same(
    client: httpx.AsyncClient, provider: Provider, model: str, database: Database
) -> None:
    provider.script(model, answer("ok"), status(500), status(500), answer("ok"))
    await asyncio.gather(*[run(client, model, use) for use in ("whole", "streamed", "background") for _ in range(5)])
    jobs = (await client.get("/jobs", params={"model": model, "limit": 100})).json()["data"]
    assert len(jobs) == 15
    cursor = await database.execute(
        "SELECT count(*) AS rows, sum(prompt_tokens) AS prompt, sum(completion_tokens) AS completion, sum(cost) AS cost"
        " FROM usage WHERE model = %s AND kind = 'counted'",
        [model],
    )
    ledger = await cursor.fetchone()
    assert ledger is not None
    assert ledger["rows"] == 15
    assert ledger["prompt"] == sum(job["usage"]["prompt_tokens"] for job in jobs)
    assert ledger["completion"] == sum(job["usage"]["completion_tokens"] for job in jobs)
    assert ledger["cost"] == sum(Decimal(job["cost"]) for job in jobs)


async def test_a_model_without_a_price_has_usage_and_no_cost(client: httpx.AsyncClient, database: Database) -> None:
    job = await completed(client, await submit(client, "renamed"))
    (row,) = await rows_of(database, job["id"])
    assert row["cost"] is None
    assert job["cost"] is None
    assert job["usage"]["completion_tokens"] == row["completion_tokens"] > 0
