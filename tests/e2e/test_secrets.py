"""No provider key and no API key is ever in an answer, an event, a log line or a row."""

from __future__ import annotations

import httpx
import psycopg
import pytest
from psycopg import sql
from psycopg.rows import DictRow
from redis import Redis

from tests.e2e.jobs import chat, ended, refused, submit
from tests.e2e.streams import EventStream
from tests.fakes.provider import Behaviour, Provider, chunk, raw, status, stream
from tests.service import BOOTSTRAP_KEY, PROVIDER_KEY, Service, Stores
from tests.waiting import eventually

MESSAGE = f"Incorrect API key provided: {PROVIDER_KEY}. You sent `Authorization: Bearer {PROVIDER_KEY}`."
LEAKS: list[tuple[str, Behaviour]] = [
    (f"error {code}", status(code, {"error": {"message": MESSAGE, "type": PROVIDER_KEY, "param": PROVIDER_KEY,
                                              "code": PROVIDER_KEY}}))
    for code in (400, 401, 403, 429, 500)
] + [
    ("error page", raw(f"<html>{MESSAGE}</html>".encode(), code=500, content_type="text/html")),
    ("garbage", raw(f"{{{MESSAGE}".encode())),
    ("error in a stream", stream(chunk({"role": "assistant", "content": "a"}), {"error": {"message": MESSAGE}})),
    ("garbage in a stream", stream(chunk({"role": "assistant", "content": "a"}), f"data: {MESSAGE}\n\n".encode())),
]  # fmt: skip


@pytest.mark.parametrize("behaviour", [behaviour for _, behaviour in LEAKS], ids=[name for name, _ in LEAKS])
async def test_a_provider_that_repeats_our_key_is_not_repeated(
    client: httpx.AsyncClient, provider: Provider, model: str, behaviour: Behaviour
) -> None:
    provider.always(model, behaviour)
    for streamed in (False, True):
        response = await client.post("/chat/completions", json=chat(model, stream=streamed))
        assert PROVIDER_KEY not in response.text
    job = await ended(client, await submit(client, model))
    assert PROVIDER_KEY not in str(job)
    async with client.stream("GET", f"/jobs/{job['id']}/events") as response:
        assert PROVIDER_KEY not in str(await EventStream(response).rest())


async def test_a_key_in_a_url_or_a_wrong_header_is_not_repeated(anonymous: httpx.AsyncClient) -> None:
    wrong = "hr_wrong-but-the-secret-of-another-0123456789"
    for response in (
        await anonymous.get(f"/jobs?api_key={wrong}"),
        await anonymous.get("/jobs", headers={"authorization": f"Basic {wrong}"}),
        await anonymous.get("/jobs", headers={"x-api-key": wrong}),
    ):
        refused(response, 401)
        assert wrong not in response.text


async def test_no_key_is_in_any_row(
    client: httpx.AsyncClient, database: psycopg.AsyncConnection[DictRow], other_key: str, model: str
) -> None:
    await client.post("/chat/completions", json=chat(model))
    tables = await (
        await database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
    ).fetchall()
    assert len(tables) >= 5
    for table in tables:
        name = sql.Identifier(table["tablename"])
        for key in (PROVIDER_KEY, BOOTSTRAP_KEY, other_key):
            query = sql.SQL("SELECT count(*) AS found FROM {} AS t WHERE strpos(t::text, %s) > 0").format(name)
            row = await (await database.execute(query, [key])).fetchone()
            assert row == {"found": 0}, table["tablename"]


async def test_redis_holds_neither_keys_nor_prompts(
    client: httpx.AsyncClient, stores: Stores, provider: Provider, model: str, other_key: str
) -> None:
    prompt = f"prompt of {model}"
    await ended(client, await submit(client, model, prompt))
    with Redis.from_url(stores.redis_url) as redis:
        held = b"".join(key + (redis.dump(key) or b"") for key in redis.keys("*"))
    for text in (PROVIDER_KEY, BOOTSTRAP_KEY, other_key, prompt):
        assert text.encode() not in held


async def test_no_key_and_no_prompt_is_in_any_log(
    client: httpx.AsyncClient, service: Service, provider: Provider, other_key: str, model: str
) -> None:
    prompt = f"prompt of {model}"
    provider.script(model, status(500), status(400))
    await ended(client, await submit(client, model, prompt))
    logs = service.logs()
    for text in (PROVIDER_KEY, BOOTSTRAP_KEY, other_key, prompt):
        assert text not in logs


async def test_a_provider_that_quotes_the_prompt_puts_nothing_into_the_log(
    service: Service, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    prompt = f"prompt of {model}\n2026-01-01 00:00:00,000 WARNING scheduler.main: forged for {model}"
    told = {"message": f"input_value={prompt}", "type": prompt, "code": prompt, "param": prompt}
    provider.script(model, status(422, {"error": told}))
    response = await client.post("/chat/completions", json=chat(model, prompt))
    assert prompt in response.json()["error"]["message"]
    # The worker logs its attempt after the client has the answer.
    await eventually(lambda: "UpstreamRefusedError 422" in service.logs(), "the attempt's line")
    logs = service.logs()
    assert f"prompt of {model}" not in logs
    assert f"forged for {model}" not in logs
