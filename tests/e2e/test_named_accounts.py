"""An administrator's request reads the rows of the account that it names in the header `Headrace-Account`."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx
import pytest

from tests.e2e.jobs import chat, refused, submit
from tests.e2e.tenants import BODIES, OPERATIONS, PATHS, Json, make_everything
from tests.fakes.provider import Gate, Provider, answer, settled
from tests.service import Service, connect
from tests.waiting import eventually

HEADER = "Headrace-Account"
DAY = 86_400
TODAY = int(time.time()) // DAY * DAY
UNKNOWN = "acct_" + "0" * 32
# Reads that are not of one account's rows.
OTHER_READS = {"/account", "/accounts", "/status"}
# What other reads need to be asked for.
QUERIES: dict[str, Json] = {
    "/usage": {"start": 0, "end": 2**31},
    "/usage/statement": {"month": time.strftime("%Y-%m", time.gmtime())},
    "/organization/usage/completions": {"start_time": TODAY, "end_time": TODAY + 2 * DAY, "bucket_width": "1d"},
    "/organization/costs": {"start_time": TODAY, "end_time": TODAY + 2 * DAY},
}


def reads() -> list[str]:
    """Return the path of every GET that needs no id."""
    paths = [path.removeprefix("/api/v1") for path in PATHS if "get" in PATHS[path] and path.startswith("/api/")]
    return [path for path in paths if "{" not in path and path not in OTHER_READS]


@dataclass
class Clients:
    """Clients of the owner of the rows, of an administrator of another account, and of a key that is neither."""

    owner: httpx.AsyncClient
    admin: httpx.AsyncClient
    stranger: httpx.AsyncClient
    account_id: str
    own_account_id: str


@pytest.fixture
async def ids(service: Service, model: str) -> Json:
    return await make_everything(service, model)


@pytest.fixture
async def clients(service: Service, ids: Json, model: str) -> AsyncIterator[Clients]:
    scopes = [part for scope in ("usage:read", "keys:write", "webhooks:write") for part in ("--scope", scope)]
    keys = {
        "owner": service.create_key(f"owner-{model}", *scopes),
        "admin": service.create_key(f"administrators-{model}", "--admin"),
        "stranger": service.create_key(f"strangers-{model}", *scopes),
    }
    async with AsyncExitStack() as stack:
        owner, admin, stranger = [
            await stack.enter_async_context(connect(service, key["key"])) for key in keys.values()
        ]
        accounts = [(await client.get("/account")).json()["id"] for client in (owner, admin)]
        yield Clients(owner, admin, stranger, *accounts)


async def test_an_administrator_reads_what_an_id_of_the_named_account_leads_to(
    service: Service, clients: Clients, ids: Json
) -> None:
    named = {HEADER: clients.account_id}
    for method, path in OPERATIONS:
        url = path.format(**ids)
        if method == "GET":
            if not path.startswith("/api-keys"):
                refused(await clients.admin.get(url), 404)
                refused(await clients.admin.get(url, headers={HEADER: clients.own_account_id}), 404)
            found = await clients.admin.get(url, headers=named)
            assert found.status_code == 200, f"{path} {found.text}"
            assert (await clients.admin.head(url, headers=named)).status_code == 200, path
        else:
            body = BODIES.get(path, {}) if method == "POST" else None
            refused(await clients.admin.request(method, url, json=body, headers=named), 400, param=HEADER)
        refused(await clients.stranger.request(method, url, headers=named), 403, param=HEADER)
        refused(await clients.stranger.request(method, url, headers={HEADER: UNKNOWN}), 403, param=HEADER)
        refused(await clients.admin.get("/jobs", headers={HEADER: UNKNOWN}), 404, param=HEADER)
    both = f"account={clients.own_account_id} reads_account={clients.account_id}"
    await eventually(lambda: re.search(rf"GET /jobs/{{job_id}}: 200 .* {both}", service.logs()), "the request's line")


async def test_an_administrator_sees_the_lists_that_the_named_account_sees(clients: Clients) -> None:
    named = {HEADER: clients.account_id}
    for path in reads():

        async def same(path: str = path) -> bool:
            query = QUERIES.get(path, {})
            own = await clients.owner.get(path, params=query)
            assert own.status_code == 200, f"{path} {own.text}"
            through = await clients.admin.get(path, params=query, headers=named)
            return through.text == own.text

        await eventually(same, f"{path} to be the same for both")
    account = (await clients.admin.get("/account", headers=named)).json()
    assert account["id"] == clients.account_id
    assert account["key"]["account_id"] == clients.own_account_id


@pytest.mark.parametrize("account", ["", "acct_", "default", "acct_" + "g" * 32, "acct_" + "0" * 32, "x" * 1000])
async def test_a_name_that_is_no_account_is_refused(client: httpx.AsyncClient, account: str) -> None:
    refused(await client.get("/jobs", headers={HEADER: account}), 404, param=HEADER)


async def test_the_header_and_the_parameter_do_not_go_together(client: httpx.AsyncClient) -> None:
    account_id = (await client.get("/account")).json()["id"]
    for path in ("/account", "/api-keys", "/usage"):
        answered = await client.get(path, params={"account": "default"}, headers={HEADER: account_id})
        refused(answered, 400, param="account")


async def test_a_page_of_one_account_is_no_page_of_another(clients: Clients) -> None:
    query: Json = {"start": 0, "end": 2**31, "group_by": "model,account,tier", "limit": 1}
    for _ in range(2):
        await clients.owner.post("/chat/completions", json=chat("demo", max_completion_tokens=1))
    await clients.owner.post("/chat/completions", json=chat("demo", max_completion_tokens=1, service_tier="flex"))
    named = {HEADER: clients.account_id}
    token = (await clients.admin.get("/usage", params=query, headers=named)).json()["next_page"]
    assert token is not None
    assert (await clients.admin.get("/usage", params={**query, "page": token}, headers=named)).status_code == 200
    refused(await clients.admin.get("/usage", params={**query, "page": token}), 400, param="page")


async def test_accounts_are_listed_for_administrators(clients: Clients) -> None:
    refused(await clients.owner.get("/accounts"), 403)
    newest = (await clients.admin.get("/accounts", params={"order": "desc", "limit": 3})).json()
    assert [account["object"] for account in newest["data"]] == ["account"] * 3
    assert clients.account_id in {account["id"] for account in newest["data"]}
    after = {"order": "desc", "limit": 1, "after": newest["data"][0]["id"]}
    older = (await clients.admin.get("/accounts", params=after)).json()
    assert older["data"] == [newest["data"][1]]
    assert older["has_more"] is True
    first = (await clients.admin.get("/accounts", params={"limit": 1})).json()["data"][0]
    assert first.keys() == {"id", "object", "name", "limits", "created_at"}
    refused(await clients.admin.get("/accounts", params={"after": "job_1"}), 400, param="after")


@pytest.mark.parametrize("change", ["revoke", "demote"])
async def test_a_stream_of_the_named_account_ends_with_the_administrators_key(
    service: Service, client: httpx.AsyncClient, provider: Provider, model: str, change: str
) -> None:
    gate = Gate()
    provider.always(model, answer("Never read.", hold=gate))
    owner_key = service.create_key(f"owner-{model}")["key"]
    admin_key = service.create_key(f"administrators-{model}", "--admin")
    async with connect(service, owner_key) as owner, connect(service, admin_key["key"]) as admin:
        named = {HEADER: (await owner.get("/account")).json()["id"]}
        job_id = await submit(owner, model)
        batch = {"requests": [{"custom_id": "1", "body": chat(model)}]}
        batch_id = (await owner.post("/batches", json=batch)).json()["id"]
        await settled(gate.reached)

        async def read(path: str) -> str:
            async with admin.stream("GET", path, headers=named) as response:
                assert response.status_code == 200
                opened.release()
                return (await response.aread()).decode()

        opened = asyncio.Semaphore(0)
        paths = (
            f"/jobs/{job_id}/events",
            f"/batches/{batch_id}/events",
            f"/chat/completions/chatcmpl-{job_id.removeprefix('job_')}?stream=true",
        )
        watching = [asyncio.create_task(read(path)) for path in paths]
        for _ in watching:
            await opened.acquire()
        polling = asyncio.create_task(admin.get(f"/jobs/{job_id}", params={"wait": 60}, headers=named))
        if change == "revoke":
            service.run("keys", "revoke", admin_key["id"])
        else:
            changed = await client.post(f"/api-keys/{admin_key['id']}", json={"scopes": []})
            assert changed.status_code == 200, changed.text
        for text in await asyncio.gather(*watching):
            assert '"error"' in text.strip().split("\n\n")[-1]
        refused(await polling, 401, code="invalid_api_key")
    gate.release()


async def test_a_file_of_the_named_account_is_downloaded(clients: Clients, ids: Json) -> None:
    path = f"/files/{ids['file_id']}/content"
    own = await clients.owner.get(path)
    through = await clients.admin.get(path, headers={HEADER: clients.account_id})
    assert through.content == own.content != b""


async def test_deliveries_of_an_account_are_listed_newest_first(clients: Clients, ids: Json) -> None:
    async def recorded() -> bool:
        listed = (await clients.owner.get("/webhook-deliveries", params={"status": "pending"})).json()
        return any(one["attempts"] for one in listed["data"])

    await eventually(recorded, "an attempt")
    listed = (await clients.owner.get("/webhook-deliveries")).json()
    assert [(one["id"], one["job_id"], one["batch_id"]) for one in listed["data"]] == [
        (ids["delivery_id"], ids["job_id"], None)
    ]
    assert (await clients.owner.get("/webhook-deliveries", params={"status": "delivered"})).json()["data"] == []
    refused(await clients.owner.get("/webhook-deliveries", params={"status": "gone"}), 400, param="status")
    unknown = "evt_" + "0" * 32
    refused(await clients.owner.get("/webhook-deliveries", params={"after": unknown}), 400, param="after")
