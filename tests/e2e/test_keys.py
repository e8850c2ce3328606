"""API keys: the API admits valid keys, and refuses all others with the same error."""

from __future__ import annotations

import asyncio
import json
import secrets
from decimal import Decimal
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.rows import DictRow

from tests.e2e.jobs import chat, refused, submit
from tests.fakes.provider import Gate, Provider, answer, settled
from tests.service import BOOTSTRAP_KEY, Service, connect
from tests.waiting import eventually

Database = psycopg.AsyncConnection[DictRow]
Json = dict[str, Any]

UNKNOWN = "key_" + "0" * 32


def unknown_key() -> str:
    return f"hr_{secrets.token_urlsafe(32)}"


@pytest.fixture
async def expired_key(service: Service, database: Database) -> str:
    created = service.create_key("expiring")
    await database.execute("UPDATE api_keys SET expires_at = now() - interval '1 s' WHERE id = %s", [created["id"]])
    return str(created["key"])


@pytest.fixture
def revoked_key(service: Service) -> str:
    created = service.create_key("revoked")
    service.run("keys", "revoke", created["id"])
    return str(created["key"])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {BOOTSTRAP_KEY}"},
        {"authorization": BOOTSTRAP_KEY},
        {"authorization": f"Bearer {BOOTSTRAP_KEY} {BOOTSTRAP_KEY}"},
        {"authorization": "Bearer x"},
        {"authorization": "Bearer hr_'; DROP TABLE api_keys; --"},
        {"authorization": b"Bearer hr_\xff\xfe\xc3\x28"},
        {"authorization": f"Bearer {'hr_' + 'x' * 7000}"},
        {"authorization": f"Bearer {BOOTSTRAP_KEY[:-1]}"},
        {"authorization": f"Bearer {BOOTSTRAP_KEY}x"},
        {"x-api-key": ""},
        {"x-api-key": "x"},
        {"x-api-key": f"Bearer {BOOTSTRAP_KEY}"},
    ],
    ids=lambda headers: repr(headers).replace(BOOTSTRAP_KEY, "KEY").replace(BOOTSTRAP_KEY[:-1], "KE")[:60],
)
async def test_a_missing_or_malformed_key_is_refused(
    anonymous: httpx.AsyncClient, model: str, headers: dict[str, str]
) -> None:
    response = await anonymous.post("/chat/completions", json=chat(model), headers=headers)
    refused(response, 401, code="invalid_api_key")
    assert BOOTSTRAP_KEY not in response.text


async def test_an_unknown_a_revoked_and_an_expired_key_are_told_the_same(
    service: Service, model: str, expired_key: str, revoked_key: str
) -> None:
    answers = set()
    for key in (unknown_key(), revoked_key, expired_key):
        async with connect(service, key) as client:
            response = await client.post("/chat/completions", json=chat(model))
        refused(response, 401, code="invalid_api_key")
        assert key not in response.text
        headers = {name for name in response.headers if name != "x-request-id"}
        answers.add((response.text, frozenset(headers)))
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/jobs"),
        ("POST", "/jobs"),
        ("GET", "/jobs/job_" + "0" * 32),
        ("DELETE", "/jobs/job_" + "0" * 32),
        ("POST", "/jobs/job_" + "0" * 32 + "/cancel"),
        ("GET", "/jobs/job_" + "0" * 32 + "/events"),
        ("POST", "/chat/completions"),
        ("GET", "/chat/completions/chatcmpl-" + "0" * 32),
        ("GET", "/models"),
        ("GET", "/models/renamed"),
        ("GET", "/api-keys"),
        ("POST", "/api-keys"),
        ("GET", f"/api-keys/{UNKNOWN}"),
        ("POST", f"/api-keys/{UNKNOWN}"),
        ("POST", f"/api-keys/{UNKNOWN}/rotate"),
        ("DELETE", f"/api-keys/{UNKNOWN}"),
        ("GET", "/account"),
        ("POST", "/account"),
    ],
)
async def test_every_path_asks_for_a_key(anonymous: httpx.AsyncClient, method: str, path: str) -> None:
    refused(await anonymous.request(method, path), 401, code="invalid_api_key")
    wrong = {"authorization": f"Bearer {unknown_key()}"}
    refused(await anonymous.request(method, path, headers=wrong), 401, code="invalid_api_key")


async def test_the_key_is_asked_for_before_the_body_is_read(anonymous: httpx.AsyncClient) -> None:
    refused(await anonymous.post("/chat/completions", content=b"{not json"), 401)
    refused(await anonymous.post("/chat/completions", content=b"x" * 1024 * 1024), 401)


async def test_a_key_that_is_revoked_stops_working(service: Service) -> None:
    created = service.create_key("short-lived")
    async with connect(service, created["key"]) as client:
        assert (await client.get("/jobs")).status_code == 200
        service.run("keys", "revoke", created["id"])

        async def refused_now() -> bool:
            return (await client.get("/jobs")).status_code == 401

        await eventually(refused_now, "the key to be refused")


async def test_a_key_that_expires_stops_working(service: Service, database: Database) -> None:
    created = service.create_key("short-lived")
    async with connect(service, created["key"]) as client:
        assert (await client.get("/jobs")).status_code == 200
        await database.execute("UPDATE api_keys SET expires_at = now() WHERE id = %s", [created["id"]])

        async def refused_now() -> bool:
            return (await client.get("/jobs")).status_code == 401

        await eventually(refused_now, "the key to be refused")


async def test_what_is_open_ends_with_its_key(
    service: Service, provider: Provider, database: Database, model: str
) -> None:
    gate = Gate()
    provider.always(model, answer("Never read.", hold=gate))
    created = service.create_key("watching")
    batch = {"requests": [{"custom_id": "1", "body": chat(model)}]}
    async with connect(service, created["key"]) as watcher:
        job_id = await submit(watcher, model)
        batch_id = (await watcher.post("/batches", json=batch)).json()["id"]
        await settled(gate.reached)

        async def read(path: str) -> str:
            async with watcher.stream("GET", path) as response:
                assert response.status_code == 200
                opened.release()
                return (await response.aread()).decode()

        async def all_run() -> bool:
            count = "SELECT count(*) AS n FROM jobs WHERE model = %s AND state = 'running'"
            row = await (await database.execute(count, [model])).fetchone()
            return row is not None and row["n"] == 4

        opened = asyncio.Semaphore(0)
        watching = [
            asyncio.create_task(read(path))
            for path in (
                f"/jobs/{job_id}/events",
                f"/batches/{batch_id}/events",
                f"/chat/completions/chatcmpl-{job_id.removeprefix('job_')}?stream=true",
            )
        ]
        for _ in watching:
            await opened.acquire()
        polling = asyncio.create_task(watcher.get(f"/jobs/{job_id}", params={"wait": 60}))
        asking = [
            asyncio.create_task(watcher.post("/chat/completions", json=chat(model, stream=stream)))
            for stream in (False, True)
        ]
        await eventually(all_run, "the requests to run")
        service.run("keys", "revoke", created["id"])
        for text in await asyncio.gather(*watching):
            assert "invalid_api_key" in text.strip().split("\n\n")[-1]
        refused(await polling, 401, code="invalid_api_key")
        whole, streamed = await asyncio.gather(*asking)
        refused(whole, 401, code="invalid_api_key")
        assert "invalid_api_key" in streamed.text
    gate.release()


async def test_a_job_whose_key_is_revoked_still_runs_to_its_end(
    service: Service, provider: Provider, database: Database, model: str
) -> None:
    gate = Gate()
    provider.script(model, answer("Done.", hold=gate))
    created = service.create_key("leaving")
    async with connect(service, created["key"]) as client:
        job_id = await submit(client, model)
        await settled(gate.reached)
    service.run("keys", "revoke", created["id"])
    gate.release()

    async def done() -> bool:
        row = await (await database.execute("SELECT state FROM jobs WHERE id = %s", [job_id])).fetchone()
        return row is not None and row["state"] == "completed"

    await eventually(done, "the job's end")


async def test_the_command_shows_a_key_once_and_the_database_never_has_it(service: Service, database: Database) -> None:
    created = service.create_key("listed")
    assert created["key"].startswith("hr_")
    listed = service.run("keys", "list")
    assert created["id"] in listed
    assert created["key"] not in listed
    assert created["key"] not in service.run("keys", "list", "--json")
    rows = await (await database.execute("SELECT api_keys::text AS text FROM api_keys")).fetchall()
    assert rows
    for row in rows:
        assert created["key"] not in row["text"]
        assert BOOTSTRAP_KEY not in row["text"]


async def test_two_keys_of_one_account_see_the_same_jobs(service: Service, model: str) -> None:
    keys = [service.create_key("shared")["key"] for _ in range(2)]
    async with connect(service, keys[0]) as first, connect(service, keys[1]) as second:
        job_id = await submit(first, model)
        assert (await second.get(f"/jobs/{job_id}")).status_code == 200


@pytest.mark.parametrize(
    "arguments",
    [
        ("revoke", UNKNOWN),
        ("show", UNKNOWN),
        ("update", UNKNOWN, "--name", "x"),
        ("rotate", UNKNOWN),
        ("list", "--account", "unknown-account"),
        ("limit-account", "unknown-account", "--rpm", "1"),
        ("create", "--account", ""),
        ("create", "--scope", "root"),
        ("create", "--rpm", "0"),
        ("create", "--monthly-budget", "-1"),
        ("create", "--daily-budget", "much"),
        ("create", "--days", "0"),
    ],
    ids=" ".join,
)
async def test_what_cannot_be_done_is_told_plainly(service: Service, arguments: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError, match="Error: ") as failed:
        service.run("keys", *arguments)
    assert "Traceback" not in str(failed.value)


def printed(service: Service, *arguments: str) -> Json:
    document: Json = json.loads(service.run("keys", *arguments, "--json"))
    return document


def without_key(document: Json) -> Json:
    return {name: value for name, value in document.items() if name != "key"}


async def test_the_commands_and_http_show_a_key_alike(service: Service, client: httpx.AsyncClient) -> None:
    created = printed(
        service,
        *("create", "--account", "scripted", "--name", "ci", "--scope", "usage:read", "--days", "30", "--rpm", "60"),
        *("--tpm", "1000", "--in-flight", "4", "--queued", "100", "--daily-budget", "2.50", "--monthly-budget", "25"),
        *("--model", "fake*", "--model", "demo", "--wait"),
    )
    assert created["scopes"] == ["usage:read"]
    assert created["limits"] == {
        "requests_per_minute": 60,
        "tokens_per_minute": 1000,
        "jobs_in_flight": 4,
        "jobs_queued": 100,
        "daily_budget": created["limits"]["daily_budget"],
        "monthly_budget": "25",
        "models": ["fake*", "demo"],
        "wait": True,
    }
    assert Decimal(created["limits"]["daily_budget"]) == Decimal("2.5")
    assert printed(service, "show", created["id"]) == without_key(created)
    assert (await client.get(f"/api-keys/{created['id']}")).json() == without_key(created)
    listed = json.loads(service.run("keys", "list", "--account", "scripted", "--json"))
    assert without_key(created) in listed


async def test_a_key_is_changed_rotated_and_revoked_by_commands(service: Service) -> None:
    created = printed(service, "create", "--account", "changing", "--admin", "--rpm", "60", "--queued", "5")
    assert created["scopes"] == ["admin"]
    changed = printed(service, "update", created["id"], "--name", "new", "--scope", "keys:write", "--rpm", "90")
    assert (changed["name"], changed["scopes"]) == ("new", ["keys:write"])
    assert changed["limits"] == {"requests_per_minute": 90, "jobs_queued": 5}
    fewer = printed(service, "update", created["id"], "--unlimited", "--model", "demo")
    assert fewer == {**changed, "limits": {"models": ["demo"]}}
    assert printed(service, "update", created["id"], "--unlimited")["limits"] == {}

    rotated = printed(service, "rotate", created["id"], "--overlap-hours", "0.5")
    assert rotated["id"] == created["id"]
    assert rotated["previous_expires_at"] is not None
    for key in (created["key"], rotated["key"]):
        async with connect(service, key) as client:
            assert (await client.get("/jobs")).status_code == 200

    service.run("keys", "revoke", created["id"])
    assert created["id"] not in service.run("keys", "list", "--account", "changing")
    assert created["id"] in service.run("keys", "list", "--account", "changing", "--all")
    for command in ("update", "rotate"):
        with pytest.raises(AssertionError, match="revoked"):
            service.run("keys", command, created["id"])


async def test_the_tables_show_limits_in_short(service: Service) -> None:
    created = printed(service, "create", "--account", "tabled", "--rpm", "1500", "--monthly-budget", "25")
    for shown in (service.run("keys", "list", "--account", "tabled"), service.run("keys", "show", created["id"])):
        assert "1,500 rpm, 25 USD a month" in shown
        assert created["key"] not in shown
    assert "never" in service.run("keys", "list", "--account", "tabled")


async def test_an_account_is_limited_by_a_command(service: Service, client: httpx.AsyncClient) -> None:
    service.create_key("bounded")
    assert service.run("keys", "limit-account", "bounded").strip() == "no limits"
    limited = printed(service, "limit-account", "bounded", "--monthly-budget", "100", "--in-flight", "8")
    assert limited == {"name": "bounded", "limits": {"monthly_budget": "100", "jobs_in_flight": 8}}
    more = printed(service, "limit-account", "bounded", "--rpm", "10")["limits"]
    assert more == {**limited["limits"], "requests_per_minute": 10}
    assert (await client.get("/account", params={"account": "bounded"})).json()["limits"] == more
    assert service.run("keys", "limit-account", "bounded", "--unlimited").strip() == "no limits"


async def test_the_bootstrap_key_is_not_rotated_by_a_command(service: Service) -> None:
    keys = json.loads(service.run("keys", "list", "--account", "default", "--json"))
    [bootstrap] = [key for key in keys if key["name"] == "bootstrap"]
    with pytest.raises(AssertionError, match="HEADRACE_BOOTSTRAP_KEY"):
        service.run("keys", "rotate", bootstrap["id"])
