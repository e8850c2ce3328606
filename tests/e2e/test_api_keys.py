"""API keys and accounts over HTTP: which key may make, see, change, rotate and revoke which, and what it sees."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.rows import DictRow

from headrace.keys.queries import hash_key
from tests.e2e.jobs import chat, refused
from tests.e2e.tenants import PATHS
from tests.service import BOOTSTRAP_KEY, Service, connect, free_port
from tests.waiting import eventually

Database = psycopg.AsyncConnection[DictRow]
Json = dict[str, Any]
Connect = Callable[[str], httpx.AsyncClient]

UNKNOWN = "key_" + "0" * 32
FIELDS = {
    "id",
    "object",
    "name",
    "account",
    "hint",
    "scopes",
    "read_only",
    "limits",
    "created_at",
    "expires_at",
    "revoked_at",
    "last_used_at",
    "previous_expires_at",
    "status",
    "parent_id",
}
LIMITS = {"requests_per_minute": 60, "monthly_budget": "25", "models": ["fake*"]}


@pytest.fixture
def account() -> str:
    """An account of this test's own."""
    return f"account-{secrets.token_hex(6)}"


@pytest.fixture
async def using(service: Service) -> AsyncIterator[Connect]:
    """Clients of any key, closed afterwards."""
    async with AsyncExitStack() as stack:
        clients: list[httpx.AsyncClient] = []

        def client(key: str) -> httpx.AsyncClient:
            clients.append(connect(service, key))
            stack.push_async_callback(clients[-1].aclose)
            return clients[-1]

        yield client


async def create(client: httpx.AsyncClient, **fields: Any) -> Json:
    response = await client.post("/api-keys", json=fields)
    assert response.status_code == 200, response.text
    key: Json = response.json()
    return key


async def get(client: httpx.AsyncClient, key_id: str) -> Json:
    response = await client.get(f"/api-keys/{key_id}")
    assert response.status_code == 200, response.text
    key: Json = response.json()
    return key


async def refuses(client: httpx.AsyncClient) -> None:
    async def gone() -> bool:
        return (await client.get("/jobs")).status_code == 401

    await eventually(gone, "the key to be refused")


async def works(client: httpx.AsyncClient) -> bool:
    return (await client.get("/jobs")).status_code == 200


async def test_a_key_is_created_read_changed_and_revoked(
    client: httpx.AsyncClient, using: Connect, account: str
) -> None:
    before = int(time.time())
    created = await create(
        client, name="ci", account=account, scopes=["usage:read"], limits=LIMITS, expires_in_seconds=3600
    )
    key = created.pop("key")
    assert key.startswith(created["hint"])
    assert len(created["hint"]) == 7
    assert created.keys() == FIELDS
    assert created["object"] == "api_key"
    assert (created["name"], created["account"], created["scopes"]) == ("ci", account, ["usage:read"])
    assert created["limits"] == LIMITS
    assert created["expires_at"] >= before + 3600
    assert (created["revoked_at"], created["last_used_at"], created["previous_expires_at"]) == (None, None, None)
    assert created["status"] == "active"
    assert await get(client, created["id"]) == created
    assert await works(using(key))

    changed = await client.post(f"/api-keys/{created['id']}", json={"name": "deploy", "expires_at": None})
    assert changed.status_code == 200, changed.text
    kept = created | {"last_used_at": changed.json()["last_used_at"]}
    assert changed.json() == {**kept, "name": "deploy", "expires_at": None}
    limited = await client.post(f"/api-keys/{created['id']}", json={"limits": {"jobs_in_flight": 2}, "scopes": []})
    assert (limited.json()["limits"], limited.json()["scopes"]) == ({"jobs_in_flight": 2}, [])
    unlimited = await client.post(f"/api-keys/{created['id']}", json={"limits": None})
    assert unlimited.json()["limits"] == {}

    deleted = await client.delete(f"/api-keys/{created['id']}")
    assert deleted.json() == {"id": created["id"], "object": "api_key.deleted", "deleted": True}
    revoked = await get(client, created["id"])
    assert revoked["status"] == "revoked"
    assert revoked["revoked_at"] >= before
    assert (await client.delete(f"/api-keys/{created['id']}")).status_code == 200
    again = await get(client, created["id"])
    assert again == revoked | {"last_used_at": again["last_used_at"]}, "its use may have been written meanwhile"
    await refuses(using(key))
    refused(await client.post(f"/api-keys/{created['id']}", json={"name": "again"}), 409, code="conflict")
    refused(await client.post(f"/api-keys/{created['id']}/rotate"), 409, code="conflict")


async def test_a_key_is_made_from_nothing_but_the_wish(client: httpx.AsyncClient) -> None:
    created = await create(client)
    assert (created["name"], created["account"], created["scopes"]) == ("", "default", [])
    assert (created["limits"], created["expires_at"]) == ({}, None)


async def test_a_key_is_shown_once_and_never_again(client: httpx.AsyncClient, database: Database, account: str) -> None:
    created = await client.post("/api-keys", json={"account": account})
    assert created.headers["cache-control"] == "no-store"
    rotated = await client.post(f"/api-keys/{created.json()['id']}/rotate", json={"overlap_seconds": 60})
    assert rotated.headers["cache-control"] == "no-store"
    key_id = created.json()["id"]
    shown = [
        (await client.get("/api-keys", params={"account": account, "include_revoked": True})).text,
        (await client.get(f"/api-keys/{key_id}")).text,
        (await client.post(f"/api-keys/{key_id}", json={"name": "x"})).text,
    ]
    assert key_id in shown[0]
    rows = await (await database.execute("SELECT api_keys::text AS text FROM api_keys")).fetchall()
    for key in (created.json()["key"], rotated.json()["key"]):
        for text in shown:
            assert key not in text
            assert key[7:] not in text
            assert hash_key(key).hex() not in text
            assert '"hash"' not in text
        assert not any(key in row["text"] for row in rows)


async def test_pages_of_keys_go_both_ways(client: httpx.AsyncClient, account: str) -> None:
    made = [(await create(client, account=account, name=f"Number {number}"))["id"] for number in range(3)]
    newest = (await client.get("/api-keys", params={"account": account, "limit": 2})).json()
    assert newest["object"] == "list"
    assert [key["id"] for key in newest["data"]] == [made[2], made[1]]
    assert (newest["first_id"], newest["last_id"], newest["has_more"]) == (made[2], made[1], True)
    older = (await client.get("/api-keys", params={"account": account, "after": newest["last_id"]})).json()
    assert [key["id"] for key in older["data"]] == [made[0]]
    assert older["has_more"] is False
    later = (await client.get("/api-keys", params={"account": account, "order": "asc", "after": made[0]})).json()
    assert [key["id"] for key in later["data"]] == made[1:]


async def test_a_list_leaves_out_what_is_revoked_unless_asked(client: httpx.AsyncClient, account: str) -> None:
    kept, gone = [(await create(client, account=account))["id"] for _ in range(2)]
    await client.delete(f"/api-keys/{gone}")
    listed = (await client.get("/api-keys", params={"account": account})).json()
    assert [key["id"] for key in listed["data"]] == [kept]
    everything = (await client.get("/api-keys", params={"account": account, "include_revoked": True})).json()
    assert [(key["id"], key["status"]) for key in everything["data"]] == [(gone, "revoked"), (kept, "active")]


# What a key with these scopes may do with a plain key of its own account, and with another account.
MATRIX = [
    pytest.param([], 403, 403, id="none"),
    pytest.param(["usage:read"], 403, 403, id="usage:read"),
    pytest.param(["keys:write"], 200, 403, id="keys:write"),
    pytest.param(["keys:write", "usage:read"], 200, 403, id="keys:write and usage:read"),
    pytest.param(["admin"], 200, 200, id="admin"),
]


@pytest.mark.parametrize(("scopes", "own", "others"), MATRIX)
async def test_scopes_decide_who_manages_keys(
    client: httpx.AsyncClient, using: Connect, account: str, scopes: list[str], own: int, others: int
) -> None:
    who = using((await create(client, account=account, scopes=scopes))["key"])
    plain = (await create(client, account=account))["id"]
    elsewhere = f"{account}-elsewhere"
    await create(client, account=elsewhere)
    calls = [
        (own, who.get("/api-keys")),
        (own, who.get(f"/api-keys/{plain}")),
        (own, who.post("/api-keys", json={"name": "one more"})),
        (own, who.post(f"/api-keys/{plain}", json={"name": "changed"})),
        (own, who.post(f"/api-keys/{plain}/rotate", json={"overlap_seconds": 0})),
        (own, who.delete(f"/api-keys/{plain}")),
        (200, who.get("/account")),
        (others, who.get("/api-keys", params={"account": elsewhere})),
        (others, who.post("/api-keys", json={"account": elsewhere})),
        (others, who.get("/account", params={"account": elsewhere})),
        (others, who.post("/account", json={"limits": {"jobs_queued": 9}})),
        (others, who.post("/account", params={"account": elsewhere}, json={"limits": {"jobs_queued": 9}})),
    ]
    for status, call in calls:
        response = await call
        if status == 200:
            assert response.status_code == 200, f"{response.request.method} {response.request.url} {response.text}"
        else:
            refused(response, 403, type="permission_error", code="insufficient_permissions")


@pytest.mark.parametrize("scope", ["admin", "usage:read"])
async def test_no_key_gives_or_gets_a_scope_that_it_lacks(
    client: httpx.AsyncClient, using: Connect, account: str, scope: str
) -> None:
    writer = await create(client, account=account, scopes=["keys:write"])
    stronger = (await create(client, account=account, scopes=[scope]))["id"]
    plain = (await create(client, account=account))["id"]
    who = using(writer["key"])
    assert (await who.get(f"/api-keys/{stronger}")).status_code == 200
    for response in (
        await who.post("/api-keys", json={"scopes": [scope]}),
        await who.post(f"/api-keys/{plain}", json={"scopes": ["keys:write", scope]}),
        await who.post(f"/api-keys/{writer['id']}", json={"scopes": [scope]}),
        await who.post(f"/api-keys/{stronger}", json={"name": "mine"}),
        await who.post(f"/api-keys/{stronger}/rotate", json={}),
        await who.delete(f"/api-keys/{stronger}"),
    ):
        refused(response, 403, code="insufficient_permissions", param="scopes")
    assert (await get(client, stronger))["status"] == "active"
    assert (await get(client, plain))["scopes"] == []


async def test_a_read_only_key_changes_nothing(client: httpx.AsyncClient, using: Connect, account: str) -> None:
    made = await create(client, account=account, scopes=["admin"], read_only=True)
    assert made["read_only"] is True
    who = using(made["key"])
    own = (await who.get("/account")).json()["key"]
    assert own == {
        "id": made["id"],
        "object": "api_key",
        "name": "",
        "account_id": (await who.get("/account")).json()["id"],
        "scopes": ["admin"],
        "read_only": True,
        "limits": {},
        "expires_at": None,
    }
    for path in PATHS:
        for method in PATHS[path].keys() & {"post", "patch", "delete", "put"}:
            response = await who.request(method.upper(), path.removeprefix("/api/v1"), content=b"{not json")
            if path == "/api/v1/responses/input_tokens":
                refused(response, 400, code="invalid_json")
            else:
                refused(response, 403, code="insufficient_permissions")
                assert "read-only" in response.json()["error"]["message"]
    for path in ("/jobs", "/batches", "/usage", "/api-keys", "/accounts", "/webhook-deliveries"):
        assert (await who.get(path)).status_code == 200, path
        assert (await who.head(path)).status_code == 200, path
    counted = await who.post("/responses/input_tokens", json={"input": "hi"})
    assert counted.status_code == 200, counted.text
    assert (await get(client, made["id"]))["status"] == "active"


async def test_a_key_makes_itself_read_only_for_good(client: httpx.AsyncClient, using: Connect, account: str) -> None:
    made = await create(client, account=account, scopes=["keys:write"])
    assert made["read_only"] is False
    who = using(made["key"])
    narrowed = await who.post(f"/api-keys/{made['id']}", json={"read_only": True})
    assert narrowed.json()["read_only"] is True

    async def reads_only() -> bool:
        return (await who.post(f"/api-keys/{made['id']}", json={"read_only": False})).status_code == 403

    await eventually(reads_only, "the key to be read-only")
    assert await works(who)
    widened = await client.post(f"/api-keys/{made['id']}", json={"read_only": None})
    assert widened.json()["read_only"] is False


async def test_a_key_may_narrow_and_revoke_itself(client: httpx.AsyncClient, using: Connect, account: str) -> None:
    made = await create(client, account=account, scopes=["keys:write", "usage:read"])
    who = using(made["key"])
    narrowed = await who.post(f"/api-keys/{made['id']}", json={"scopes": ["keys:write"], "limits": LIMITS})
    assert narrowed.status_code == 200, narrowed.text
    assert (narrowed.json()["scopes"], narrowed.json()["limits"]) == (["keys:write"], LIMITS)

    async def narrow() -> bool:
        return (await who.post("/api-keys", json={"scopes": ["usage:read"]})).status_code == 403

    await eventually(narrow, "the narrower scopes")
    assert (await who.delete(f"/api-keys/{made['id']}")).json()["deleted"] is True
    await refuses(who)


async def test_a_limited_key_makes_and_changes_nothing_stronger(
    client: httpx.AsyncClient, using: Connect, account: str
) -> None:
    until = int(time.time()) + 3600
    limits = {"models": ["fake-a*"], "requests_per_minute": 10, "daily_budget": "0"}
    made = await create(client, account=account, scopes=["keys:write"], limits=limits, expires_at=until)
    stronger, weaker = await create(client, account=account), await create(client, account=account, limits=limits)
    who = using(made["key"])
    own = f"/api-keys/{made['id']}"
    for field, response in [
        ("limits.models", await who.post("/api-keys", json={"limits": {"models": ["fake*"]}})),
        ("limits.requests_per_minute", await who.post("/api-keys", json={"limits": {"requests_per_minute": 11}})),
        ("limits.daily_budget", await who.post("/api-keys", json={"limits": {"daily_budget": "0.01"}})),
        ("expires_at", await who.post("/api-keys", json={"expires_at": until + 60})),
        ("scopes", await who.post("/api-keys", json={"scopes": ["webhooks:write"]})),
        ("limits.requests_per_minute", await who.post(own, json={"limits": None})),
        ("limits.requests_per_minute", await who.post(own, json={"limits": {**limits, "requests_per_minute": 11}})),
        ("expires_at", await who.post(own, json={"expires_at": None})),
        ("expires_at", await who.post(own, json={"expires_in_seconds": 7200})),
        ("limits.requests_per_minute", await who.post(f"/api-keys/{stronger['id']}/rotate", json={})),
        ("limits.requests_per_minute", await who.post(f"/api-keys/{stronger['id']}", json={"limits": limits})),
        ("limits.requests_per_minute", await who.delete(f"/api-keys/{stronger['id']}")),
        ("expires_at", await who.post(f"/api-keys/{weaker['id']}/rotate", json={})),
    ]:
        refused(response, 403, code="insufficient_permissions", param=field)
    kept = await get(client, made["id"])
    assert (kept["limits"], kept["expires_at"], kept["scopes"]) == (made["limits"], until, ["keys:write"])
    child = await create(who, scopes=["keys:write"], limits={"requests_per_minute": 5})
    assert child["limits"] == {**limits, "requests_per_minute": 5}
    assert (child["expires_at"], child["parent_id"]) == (until, made["id"])
    grandchild = await create(using(child["key"]))
    await client.delete(own)
    for key in (made, child, grandchild):
        await refuses(using(key["key"]))
    assert await works(using(stronger["key"]))


async def test_the_webhook_secrets_need_their_own_scope(
    client: httpx.AsyncClient, using: Connect, account: str
) -> None:
    for scopes in ([], ["keys:write", "usage:read"]):
        who = using((await create(client, account=account, scopes=scopes))["key"])
        for response in (await who.get("/webhook-secrets"), await who.post("/webhook-secrets")):
            refused(response, 403, code="insufficient_permissions")
    who = using((await create(client, account=account, scopes=["webhooks:write"]))["key"])
    listed = await who.get("/webhook-secrets")
    assert listed.headers["cache-control"] == "no-store"
    rotated = (await who.post("/webhook-secrets")).json()["data"]
    assert [secret["id"] for secret in rotated[1:]] == [secret["id"] for secret in listed.json()["data"]]


@pytest.mark.parametrize("scopes", [["keys:write"], ["keys:write", "usage:read"]])
async def test_another_accounts_key_is_told_byte_for_byte_what_an_unknown_one_is(
    client: httpx.AsyncClient, using: Connect, account: str, scopes: list[str]
) -> None:
    who = using((await create(client, account=account, scopes=scopes))["key"])
    foreign = (await create(client, account=f"{account}-foreign"))["id"]
    for method, path in [
        ("GET", "/api-keys/{}"),
        ("POST", "/api-keys/{}"),
        ("POST", "/api-keys/{}/rotate"),
        ("DELETE", "/api-keys/{}"),
        ("GET", "/api-keys?after={}"),
    ]:
        body: Json | None = {} if method == "POST" else None
        response = await who.request(method, path.format(foreign), json=body)
        refused(response, 404, code="not_found", param="key_id")
        unknown = await who.request(method, path.format(UNKNOWN), json=body)
        assert response.text.replace(foreign, UNKNOWN) == unknown.text, f"{method} {path}"
    listed = (await who.get("/api-keys", params={"limit": 100})).json()
    assert {key["account"] for key in listed["data"]} == {account}
    assert (await get(client, foreign))["status"] == "active"


async def test_a_key_expires_when_it_was_to(
    client: httpx.AsyncClient, using: Connect, database: Database, account: str
) -> None:
    at = int(time.time()) + 3600
    created = await create(client, account=account, expires_at=at)
    assert created["expires_at"] == at
    who = using(created["key"])
    assert await works(who)
    await database.execute("UPDATE api_keys SET expires_at = now() WHERE id = %s", [created["id"]])
    await refuses(who)
    assert (await get(client, created["id"]))["status"] == "expired"
    refused(await client.post(f"/api-keys/{created['id']}/rotate"), 409)
    later = await client.post(f"/api-keys/{created['id']}", json={"expires_in_seconds": 3600})
    assert later.json()["status"] == "active"
    assert await works(who)


async def test_a_rotated_key_works_beside_the_new_one_until_its_overlap_ends(
    client: httpx.AsyncClient, using: Connect, database: Database, account: str
) -> None:
    created = await create(client, account=account, scopes=["usage:read"], limits=LIMITS)
    before = int(time.time())
    rotated = (await client.post(f"/api-keys/{created['id']}/rotate")).json()
    assert rotated["key"] != created["key"]
    assert rotated["previous_expires_at"] >= before + 86_400
    same = ("id", "name", "account", "scopes", "limits", "created_at", "status")
    assert {name: rotated[name] for name in same} == {name: created[name] for name in same}
    assert rotated["key"].startswith(rotated["hint"])
    old, new = using(created["key"]), using(rotated["key"])
    assert await works(old)
    assert await works(new)
    await database.execute("UPDATE api_keys SET previous_expires_at = now() WHERE id = %s", [created["id"]])
    await refuses(old)
    assert await works(new)


async def test_a_rotation_without_overlap_ends_the_old_key(
    client: httpx.AsyncClient, using: Connect, account: str
) -> None:
    created = await create(client, account=account)
    old = using(created["key"])
    assert await works(old)
    rotated = await client.post(f"/api-keys/{created['id']}/rotate", json={"overlap_seconds": 0})
    assert await works(using(rotated.json()["key"]))
    await refuses(old)


async def test_a_key_may_rotate_itself(client: httpx.AsyncClient, using: Connect, account: str) -> None:
    created = await create(client, account=account, scopes=["keys:write"])
    rotated = await using(created["key"]).post(f"/api-keys/{created['id']}/rotate", json={})
    assert (await using(rotated.json()["key"]).get("/api-keys")).json()["data"][0]["id"] == created["id"]


@pytest.fixture
async def second_api(service: Service) -> AsyncIterator[str]:
    """The URL of another API process of the same service."""
    port = free_port()
    process = service.launch("api-2", HEADRACE_PORT=str(port))
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(timeout=5) as client:

            async def ready() -> bool:
                assert process.running, service.tail()
                try:
                    return (await client.get(f"{url}/readyz")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(ready, "the second API")
        yield url
    finally:
        process.terminate()
        del service.processes["api-2"]


async def test_every_process_forgets_a_revoked_key(
    client: httpx.AsyncClient, using: Connect, second_api: str, account: str
) -> None:
    created = await create(client, account=account)
    headers = {"authorization": f"Bearer {created['key']}"}
    async with httpx.AsyncClient(base_url=f"{second_api}/api/v1", headers=headers, timeout=30) as there:
        here = using(created["key"])
        assert await works(there)
        assert await works(here)
        await client.delete(f"/api-keys/{created['id']}")
        await refuses(there)
        await refuses(here)


async def test_the_last_use_appears(client: httpx.AsyncClient, using: Connect, account: str) -> None:
    before = int(time.time())
    used, unused = [await create(client, account=account) for _ in range(2)]
    assert await works(using(used["key"]))

    async def last_used() -> int | None:
        at: int | None = (await get(client, used["id"]))["last_used_at"]
        return at

    at = await eventually(last_used, "the last use")
    assert at is not None
    assert at >= before
    assert (await get(client, unused["id"]))["last_used_at"] is None


async def test_the_bootstrap_key_is_its_operators(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/api-keys", params={"limit": 1, "order": "asc", "account": "default"})).json()
    [bootstrap] = listed["data"]
    assert bootstrap["name"] == "bootstrap"
    path = f"/api-keys/{bootstrap['id']}"
    for response in (
        await client.delete(path),
        await client.post(f"{path}/rotate", json={}),
        await client.post(path, json={"scopes": ["usage:read"]}),
        await client.post(path, json={"expires_in_seconds": 60}),
    ):
        refused(response, 409, code="conflict")
        assert "HEADRACE_BOOTSTRAP_KEY" in response.text
        assert BOOTSTRAP_KEY not in response.text
    assert (await get(client, bootstrap["id"]))["status"] == "active"


WRONG: list[tuple[Json, str, str]] = [
    ({"name": 7}, "name", "invalid_type"),
    ({"name": "x" * 257}, "name", "string_above_max_length"),
    ({"name": "a\0b"}, "name", "invalid_value"),
    ({"scopes": "admin"}, "scopes", "invalid_type"),
    ({"scopes": ["root"]}, "scopes[0]", "invalid_value"),
    ({"scopes": ["usage:read", "Admin"]}, "scopes[1]", "invalid_value"),
    ({"scopes": [None]}, "scopes[0]", "invalid_type"),
    ({"expires_at": 1}, "expires_at", "invalid_value"),
    ({"expires_at": "tomorrow"}, "expires_at", "invalid_type"),
    ({"expires_at": 10**18}, "expires_at", "integer_above_max_value"),
    ({"expires_in_seconds": 0}, "expires_in_seconds", "integer_below_min_value"),
    ({"expires_in_seconds": 10**12}, "expires_in_seconds", "integer_above_max_value"),
    ({"expires_in_seconds": 1.5}, "expires_in_seconds", "invalid_type"),
    ({"expires_at": 4_000_000_000, "expires_in_seconds": 60}, "expires_in_seconds", "invalid_value"),
    ({"limits": 3}, "limits", "invalid_type"),
    ({"limits": {"requests_per_minute": 0}}, "limits.requests_per_minute", "integer_below_min_value"),
    ({"limits": {"tokens_per_minute": "many"}}, "limits.tokens_per_minute", "invalid_type"),
    ({"limits": {"monthly_budget": "much"}}, "limits.monthly_budget", "invalid_value"),
    ({"limits": {"requests_per_hour": 1}}, "limits.requests_per_hour", "unknown_parameter"),
    ({"hash": "00"}, "hash", "unknown_parameter"),
    ({"key": "hr_mine"}, "key", "unknown_parameter"),
]


@pytest.mark.parametrize(("fields", "param", "code"), WRONG, ids=lambda value: repr(value)[:60])
async def test_what_is_wrong_is_named(
    client: httpx.AsyncClient, account: str, fields: Json, param: str, code: str
) -> None:
    refused(await client.post("/api-keys", json={"account": account, **fields}), 400, param=param, code=code)
    refused(await client.get("/account", params={"account": account}), 404, param="account")
    kept = await create(client, account=account)
    refused(await client.post(f"/api-keys/{kept['id']}", json=fields), 400, param=param, code=code)
    assert await get(client, kept["id"]) == {name: value for name, value in kept.items() if name != "key"}


@pytest.mark.parametrize(
    ("name", "code"),
    [("", "empty_string"), ("x" * 257, "string_above_max_length"), ("a\0b", "invalid_value"), (7, "invalid_type")],
    ids=["empty", "long", "U+0000", "a number"],
)
async def test_an_account_has_a_proper_name(client: httpx.AsyncClient, name: object, code: str) -> None:
    refused(await client.post("/api-keys", json={"account": name}), 400, param="account", code=code)
    if isinstance(name, str):
        for path in ("/api-keys", "/account"):
            refused(await client.get(path, params={"account": name}), 400, param="account", code="invalid_value")


@pytest.mark.parametrize(
    ("limits", "param"),
    [
        ({"models": ["a\0b"]}, "limits.models[0]"),
        ({"alert_webhook": "http://example.com/\0"}, "limits.alert_webhook"),
        ({"alert_webhook": "http://[::x/"}, "limits.alert_webhook"),
        ({"alert_webhook": "ftp://example.com/"}, "limits.alert_webhook"),
    ],
    ids=["models", "U+0000", "no host", "no http"],
)
async def test_limits_have_no_text_that_cannot_be_used(client: httpx.AsyncClient, limits: Json, param: str) -> None:
    kept = (await create(client))["id"]
    for path in ("/api-keys", f"/api-keys/{kept}", "/account"):
        refused(await client.post(path, json={"limits": limits}), 400, param=param, code="invalid_value")
    told = await create(client, limits={"alert_webhook": "http://example.com/spent"})
    assert told["limits"] == {"alert_webhook": "http://example.com/spent"}


async def test_a_body_that_is_no_object_is_told(client: httpx.AsyncClient) -> None:
    kept = (await create(client))["id"]
    for path in ("/api-keys", f"/api-keys/{kept}", f"/api-keys/{kept}/rotate", "/account"):
        refused(await client.post(path, content=b"{not json"), 400, code="invalid_json")
        refused(await client.post(path, json=[1]), 400, code="invalid_type")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"overlap_seconds": -1}, "integer_below_min_value"),
        ({"overlap_seconds": 2_592_001}, "integer_above_max_value"),
        ({"overlap_seconds": "long"}, "invalid_type"),
    ],
)
async def test_an_overlap_has_its_bounds(client: httpx.AsyncClient, body: Json, code: str) -> None:
    kept = (await create(client))["id"]
    refused(await client.post(f"/api-keys/{kept}/rotate", json=body), 400, param="overlap_seconds", code=code)


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 101}, {"order": "sideways"}, {"include_revoked": "perhaps"}])
async def test_a_list_is_asked_for_properly(client: httpx.AsyncClient, query: Json) -> None:
    [param] = query
    refused(await client.get("/api-keys", params=query), 400, param=param, code="invalid_value")


@pytest.mark.parametrize("key_id", ["key_x", "%00", "job_" + "0" * 32, "key_" + "0" * 31 + "G", "x" * 3000])
async def test_what_is_no_id_is_not_found(client: httpx.AsyncClient, key_id: str) -> None:
    refused(await client.get(f"/api-keys/{key_id}"), 404, param="key_id")


async def account_of(client: httpx.AsyncClient, **query: str) -> Json:
    """Return the account, without the key that asks."""
    account: Json = (await client.get("/account", params=query)).json()
    assert account.pop("key")["object"] == "api_key"
    return account


async def test_an_accounts_limits_are_set_and_read(client: httpx.AsyncClient, using: Connect, account: str) -> None:
    who = using((await create(client, account=account))["key"])
    own = await account_of(who)
    assert own.keys() == {"id", "object", "name", "limits", "created_at"}
    assert (own["object"], own["name"], own["limits"]) == ("account", account, {})
    answer = await client.post("/account", params={"account": account}, json={"limits": LIMITS})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {**own, "limits": LIMITS}
    assert await account_of(who) == answer.json()
    assert await account_of(client, account=account) == answer.json()
    await client.post("/account", params={"account": account}, json={"limits": None})
    assert await account_of(who) == own
    refused(await client.post("/account", json={}), 400, param="limits", code="missing_required_parameter")
    refused(await client.post("/account", json={"limits": {"jobs_queued": 0}}), 400, param="limits.jobs_queued")
    refused(await client.post("/account", json={"name": "mine", "limits": {}}), 400, param="name")
    refused(await client.post("/account", params={"account": f"{account}-none"}, json={"limits": {}}), 404)


async def test_keys_that_are_made_at_once_are_different_keys_of_one_account(
    client: httpx.AsyncClient, account: str
) -> None:
    made = await asyncio.gather(*(create(client, account=account, name="\N{SNOWMAN} <b>") for _ in range(8)))
    assert len({key["key"] for key in made}) == len({key["id"] for key in made}) == 8
    listed = (await client.get("/api-keys", params={"account": account})).json()["data"]
    assert {key["id"] for key in listed} == {key["id"] for key in made}
    assert {key["name"] for key in listed} == {"\N{SNOWMAN} <b>"}


async def test_a_key_of_http_asks_models(client: httpx.AsyncClient, using: Connect, account: str, model: str) -> None:
    created = await create(client, account=account)
    answer = await using(created["key"]).post("/chat/completions", json=chat(model))
    assert answer.status_code == 200, answer.text
