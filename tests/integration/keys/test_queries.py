from __future__ import annotations

import asyncio
import gc
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from headrace.errors import AuthenticationError, ConflictError, NotFoundError
from headrace.keys import queries
from headrace.keys.accounts import ensure_account, find_account, limit_account
from headrace.keys.principal import Principal
from headrace.keys.queries import (
    KeyChanges,
    create_key,
    ensure_bootstrap_key,
    find_key,
    find_principal,
    hash_key,
    list_keys,
    mark_used,
    revoke_key,
    rotate_key,
    still_valid,
    update_key,
)
from headrace.quotas.rules import Limits
from headrace.stores.connections import Row
from headrace.stores.database import Database, execute
from tests.integration.databases import Session
from tests.integration.job_rows import Owner

SLOW = Limits.parse({"requests_per_minute": 3, "models": ["demo"]})
CHEAP = Limits.parse({"monthly_budget": "0.25"})


async def find(database: Database, key: str) -> Principal:
    principal = await find_principal(database, hash_key(key))
    assert principal is not None
    return principal


async def works(database: Database, key: str) -> bool:
    return await find_principal(database, hash_key(key)) is not None


async def read(database: Database, key_id: str) -> Row:
    row = await find_key(database, key_id)
    assert row is not None
    return row


async def test_a_key_is_found_by_its_hash_and_stored_nowhere(database: Database) -> None:
    key_id, key = await create_key(database, account="acme", name="ci", scopes=["admin"])
    principal = await find(database, key)
    assert principal.key_id == key_id
    assert principal.scopes == {"admin"}
    rows = await execute(database.durable, "SELECT api_keys::text FROM api_keys")
    assert not any(key in row[0] or key.encode().hex() in row[0] for row in rows)


async def test_a_key_comes_with_its_limits_and_its_accounts(database: Database) -> None:
    _, key = await create_key(database, account="limited", limits=SLOW)
    found = await find(database, key)
    assert found.limits == SLOW
    assert found.account_limits == Limits()
    await limit_account(database, found.account_id, CHEAP)
    assert (await find(database, key)).account_limits.monthly_budget == Decimal("0.25")
    account = await find_account(database, name="limited")
    assert account is not None
    assert (account.id, account.limits) == (found.account_id, {"monthly_budget": "0.25"})
    assert await find_account(database, account_id=found.account_id) == account
    assert await find_account(database, name="nobody") is None


async def test_only_an_administrator_may_everything(database: Database) -> None:
    for scopes, wanted in ((["admin"], True), (["keys:write"], True), (["usage:read"], False), ([], False)):
        _, key = await create_key(database, scopes=scopes)
        principal = await find(database, key)
        assert principal.may("keys:write") is wanted
        assert principal.is_admin is (scopes == ["admin"])


async def test_the_look_up_reads_no_whole_table(database: Database, other_session: Session) -> None:
    await other_session.execute("SET LOCAL enable_seqscan = off")
    plan = await other_session.execute(f"EXPLAIN {queries._FIND}".encode(), {"hash": hash_key("hr_x")})
    lines = "\n".join(str(line[0]) for line in await plan.fetchall())
    assert "uq_api_keys_hash" in lines
    assert "uq_api_keys_previous_hash" in lines
    assert "Seq Scan" not in lines


async def test_keys_of_one_name_share_the_account(database: Database) -> None:
    one, again, two = [
        (await find(database, (await create_key(database, account=account))[1])).account_id
        for account in ("one", "one", "two")
    ]
    assert one == again != two
    _, key = await create_key(database, account_id=two)
    assert (await find(database, key)).account_id == two


async def test_an_unknown_a_revoked_and_an_expired_key_are_nobodys(database: Database) -> None:
    past, future = datetime.now(UTC) - timedelta(seconds=1), datetime.now(UTC) + timedelta(hours=1)
    expired_id, expired = await create_key(database, expires_at=past)
    lasting_id, lasting = await create_key(database, expires_at=future)
    revoked_id, revoked = await create_key(database)
    await revoke_key(database, revoked_id)
    for key in ("hr_unknown", expired, revoked):
        assert not await works(database, key)
    assert await works(database, lasting)
    statuses = [(await read(database, key_id)).status for key_id in (expired_id, lasting_id, revoked_id)]
    assert statuses == ["expired", "active", "revoked"]


async def test_revoking_again_keeps_the_first_time_and_an_unknown_key_is_an_error(database: Database) -> None:
    key_id, _ = await create_key(database, account="revoked")
    await revoke_key(database, key_id)
    before = await read(database, key_id)
    await revoke_key(database, key_id)
    assert await read(database, key_id) == before
    with pytest.raises(NotFoundError):
        await revoke_key(database, "key_0")


async def test_a_rotated_key_works_beside_the_new_one_until_its_overlap_ends(database: Database) -> None:
    key_id, old = await create_key(database)
    new = await rotate_key(database, key_id, overlap_seconds=3600)
    assert new != old
    assert (await find(database, old)).key_id == (await find(database, new)).key_id == key_id
    row = await read(database, key_id)
    assert new.startswith(row.hint)
    assert row.previous_expires_at > row.created_at
    await execute(database.durable, "UPDATE api_keys SET previous_expires_at = now() WHERE id = %(id)s", {"id": key_id})
    assert (await works(database, old), await works(database, new)) == (False, True)


async def test_a_second_rotation_ends_the_key_from_before_the_first(database: Database) -> None:
    key_id, first = await create_key(database)
    second = await rotate_key(database, key_id, overlap_seconds=3600)
    third = await rotate_key(database, key_id, overlap_seconds=3600)
    assert [await works(database, key) for key in (first, second, third)] == [False, True, True]
    fourth = await rotate_key(database, key_id, overlap_seconds=0)
    assert [await works(database, key) for key in (second, third, fourth)] == [False, False, True]


async def test_a_revoked_key_is_revoked_with_the_one_before(database: Database) -> None:
    key_id, old = await create_key(database)
    new = await rotate_key(database, key_id, overlap_seconds=3600)
    await revoke_key(database, key_id)
    assert (await works(database, old), await works(database, new)) == (False, False)


async def test_a_change_leaves_what_it_does_not_name(database: Database) -> None:
    future = datetime.now(UTC) + timedelta(hours=1)
    key_id, key = await create_key(database, name="before", scopes=["usage:read"], limits=SLOW, expires_at=future)
    before = await read(database, key_id)
    await update_key(database, key_id, KeyChanges())
    assert await read(database, key_id) == before
    await update_key(database, key_id, KeyChanges(name="after"))
    assert (await read(database, key_id))._asdict() == {**before._asdict(), "name": "after"}
    await update_key(database, key_id, KeyChanges(limits=CHEAP, scopes=[], expires_at=None))
    after = await read(database, key_id)
    assert (after.name, after.scopes, after.limits, after.expires_at) == ("after", [], CHEAP.render(), None)
    assert (await find(database, key)).limits == CHEAP


async def test_use_is_marked_once_a_minute(database: Database) -> None:
    key_ids = [(await create_key(database))[0] for _ in range(3)]
    assert [(await read(database, key_id)).last_used_at for key_id in key_ids] == [None] * 3
    await mark_used(database, key_ids[:2])
    marked = [(await read(database, key_id)).last_used_at for key_id in key_ids]
    assert marked[0] is not None
    assert marked[2] is None

    async def exact(key_id: str) -> datetime:
        query = "SELECT last_used_at FROM api_keys WHERE id = %(id)s"
        last: datetime = (await execute(database.relaxed, query, {"id": key_id}))[0][0]
        return last

    before = await exact(key_ids[0])
    await mark_used(database, key_ids)
    assert await exact(key_ids[0]) == before
    query = "UPDATE api_keys SET last_used_at = now() - interval '61 s' WHERE id = %(id)s"
    await execute(database.relaxed, query, {"id": key_ids[0]})
    await mark_used(database, key_ids)
    assert await exact(key_ids[0]) > before


async def test_marking_does_not_wait_for_a_key_that_is_being_changed(
    database: Database, other_session: Session
) -> None:
    held, free = [(await create_key(database))[0] for _ in range(2)]
    await other_session.execute("SELECT 1 FROM api_keys WHERE id = %s FOR UPDATE", [held])
    await mark_used(database, [held, free])
    assert (await read(database, held)).last_used_at is None
    assert (await read(database, free)).last_used_at is not None


async def test_a_list_shows_an_accounts_keys_oldest_first_and_no_secret(database: Database, owner: Owner) -> None:
    created = [await create_key(database, account="listed", name=name) for name in ("a", "b")]
    account_id = (await find(database, created[0][1])).account_id
    rows = await list_keys(database, account_id=account_id)
    assert [(row.id, row.account, row.name) for row in rows] == [
        (key_id, "listed", name) for (key_id, _), name in zip(created, "ab", strict=True)
    ]
    for row, (_, key) in zip(rows, created, strict=True):
        assert key.startswith(row.hint)
        assert len(row.hint) <= 7
        assert hash_key(key) not in tuple(row)
        assert key not in tuple(row)
    assert {"listed", "first"} <= {row.account for row in await list_keys(database)}
    assert await list_keys(database, account_id="acct_0") == []


async def test_pages_of_keys_go_both_ways_and_may_leave_out_what_is_revoked(database: Database) -> None:
    ids = [(await create_key(database, account="paged"))[0] for _ in range(4)]
    await revoke_key(database, ids[1])
    account = await find_account(database, name="paged")
    assert account is not None

    async def page(after: str | None, *, descending: bool, include_revoked: bool = False) -> list[str]:
        rows = await list_keys(
            database,
            account_id=account.id,
            include_revoked=include_revoked,
            after=after,
            limit=2,
            descending=descending,
        )
        return [row.id for row in rows]

    assert await page(None, descending=False) == [ids[0], ids[2]]
    assert await page(None, descending=False, include_revoked=True) == ids[:2]
    assert await page(ids[2], descending=False) == [ids[3]]
    assert await page(ids[2], descending=True) == [ids[0]]


async def test_a_key_is_found_within_its_account_alone(database: Database, owner: Owner, stranger: Owner) -> None:
    assert await find_key(database, owner.key_id, account_id=owner.account_id) is not None
    assert await find_key(database, owner.key_id, account_id=stranger.account_id) is None
    assert await find_key(database, "key_0") is None


async def test_the_bootstrap_key_is_one_and_changing_it_back_restores_it(database: Database) -> None:
    first, second = "bootstrap-first-0123456789", "bootstrap-second-0123456789"
    await ensure_bootstrap_key(database, first)
    await ensure_bootstrap_key(database, first)
    assert (await works(database, first), await works(database, second)) == (True, False)
    await ensure_bootstrap_key(database, second)
    assert (await works(database, first), await works(database, second)) == (False, True)
    await ensure_bootstrap_key(database, first)
    assert (await works(database, first), await works(database, second)) == (True, False)
    assert (await find(database, first)).scopes == {"admin"}


async def test_an_ordinary_key_may_become_the_bootstrap_key(database: Database) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    key_id, key = await create_key(database, expires_at=soon)
    await ensure_bootstrap_key(database, key)
    row = await read(database, key_id)
    assert (row.bootstrap, row.scopes, row.expires_at, row.status) == (True, ["admin"], None, "active")
    await ensure_bootstrap_key(database, "bootstrap-fourth-0123456789")
    assert not await works(database, key)


async def test_a_key_that_is_given_twice_is_refused_and_shows_little_of_itself(database: Database) -> None:
    given = "bootstrap-third-0123456789"
    await ensure_bootstrap_key(database, given)
    [row] = [row for row in await list_keys(database) if row.name == "bootstrap" and given.startswith(row.hint)][-1:]
    assert len(row.hint) == 4


async def family(database: Database, **first: Any) -> list[tuple[str, str]]:
    """Make a key, its child and its grandchild."""
    made = [await create_key(database, **first)]
    for _ in range(2):
        made.append(await create_key(database, parent_id=made[-1][0]))
    return made


async def test_a_revoked_key_takes_those_with_it_that_it_made_and_they(database: Database) -> None:
    made, other = await family(database, scopes=["keys:write"]), await create_key(database)
    await revoke_key(database, made[0][0])
    assert [await works(database, key) for _, key in (*made, other)] == [False, False, False, True]
    assert (await read(database, made[2][0])).parent_id == made[1][0]


async def test_keys_that_an_administrator_made_stay_unless_asked(database: Database) -> None:
    first, second, third = await family(database, scopes=["admin"])
    await revoke_key(database, first[0])
    assert [await works(database, key) for _, key in (first, second, third)] == [False, True, True]
    await revoke_key(database, first[0], children=True)
    assert not await works(database, third[1])
    kept = await family(database, scopes=["keys:write"])
    await revoke_key(database, kept[0][0], children=False)
    assert await works(database, kept[2][1])


async def test_a_key_that_is_revoked_makes_no_more(database: Database) -> None:
    parent, _ = await create_key(database)
    await revoke_key(database, parent)
    before = len(await list_keys(database))
    with pytest.raises(AuthenticationError):
        await create_key(database, parent_id=parent)
    assert len(await list_keys(database)) == before


async def test_children_end_with_their_parent_at_the_latest(database: Database) -> None:
    made = await family(database)
    sooner = datetime.now(UTC) + timedelta(hours=1)
    await update_key(database, made[2][0], {"expires_at": sooner})
    await update_key(database, made[0][0], {"expires_at": sooner + timedelta(hours=1)})
    ends = [(await read(database, key_id)).expires_at for key_id, _ in made]
    assert ends[0] == ends[1] == ends[2] + 3600
    assert (await find(database, made[2][1])).expires_at == pytest.approx(sooner.timestamp())


async def test_a_child_that_is_made_while_its_parent_is_revoked_is_revoked_too_or_never_was(database: Database) -> None:
    for _ in range(10):
        parent, _ = await create_key(database, account="racing")
        outcomes = await asyncio.gather(
            *(create_key(database, parent_id=parent) for _ in range(4)),
            revoke_key(database, parent),
            return_exceptions=True,
        )
        assert all(outcome is None or isinstance(outcome, tuple | AuthenticationError) for outcome in outcomes)
        assert not [outcome for outcome in outcomes if isinstance(outcome, tuple) and await works(database, outcome[1])]


async def test_keys_that_are_made_at_once_are_no_more_than_an_account_may_have(database: Database) -> None:
    account_id = await ensure_account(database, "busy")
    revoked, _ = await create_key(database, account_id=account_id)
    await revoke_key(database, revoked)
    creating = (create_key(database, account_id=account_id, most=5) for _ in range(30))
    outcomes = await asyncio.gather(*creating, return_exceptions=True)
    assert Counter(map(type, outcomes)) == {tuple: 5, ConflictError: 25}


async def test_making_and_revoking_keys_leaves_nothing_to_the_garbage_collector(database: Database) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)

    async def make_and_revoke() -> None:
        parent, _ = await create_key(database)
        await create_key(database, parent_id=parent)
        await update_key(database, parent, {"expires_at": later})
        await revoke_key(database, parent)

    await make_and_revoke()
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            await make_and_revoke()
        assert gc.collect() < 5 * 10, "each left hundreds when statements had aliases of their own"
    finally:
        gc.enable()


async def test_which_keys_are_still_valid_is_one_question(database: Database) -> None:
    made = {name: await create_key(database) for name in ("good", "revoked", "expired", "rotated", "overlapping")}
    made["admin"] = await create_key(database, scopes=["usage:read", "admin"])
    await revoke_key(database, made["revoked"][0])
    await update_key(database, made["expired"][0], {"expires_at": datetime.now(UTC) - timedelta(seconds=1)})
    await rotate_key(database, made["rotated"][0], overlap_seconds=0)
    new = await rotate_key(database, made["overlapping"][0], overlap_seconds=60)
    hashes = {name: hash_key(key) for name, (_, key) in made.items()} | {"new": hash_key(new), "unknown": hash_key("x")}
    valid = await still_valid(database, list(hashes.values()))
    assert valid == {hashes[name]: name == "admin" for name in ("good", "overlapping", "new", "admin")}
    for name, key_hash in hashes.items():
        assert (await find_principal(database, key_hash) is not None) == (key_hash in valid), name
