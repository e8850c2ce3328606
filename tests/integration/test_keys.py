from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from headrace.database import Database, execute
from headrace.errors import NotFoundError
from headrace.keys.queries import create_key, ensure_bootstrap_key, find_principal, hash_key, list_keys, revoke_key
from tests.integration.jobs import Owner


async def test_a_key_is_found_by_its_hash_and_stored_nowhere(database: Database) -> None:
    key_id, key = await create_key(database, account="acme", name="ci", scopes=["admin"])
    principal = await find_principal(database, hash_key(key))
    assert principal is not None
    assert principal.key_id == key_id
    assert principal.scopes == {"admin"}
    rows = await execute(database.durable, "SELECT api_keys::text FROM api_keys")
    assert not any(key in row[0] or key.encode().hex() in row[0] for row in rows)


async def test_keys_of_one_name_share_the_account(database: Database) -> None:
    principals = [
        await find_principal(database, hash_key((await create_key(database, account=account))[1]))
        for account in ("one", "one", "two")
    ]
    one, again, two = [principal and principal.account_id for principal in principals]
    assert one == again != two


async def test_an_unknown_a_revoked_and_an_expired_key_are_nobodys(database: Database) -> None:
    past, future = datetime.now(UTC) - timedelta(seconds=1), datetime.now(UTC) + timedelta(hours=1)
    _, expired = await create_key(database, expires_at=past)
    _, lasting = await create_key(database, expires_at=future)
    revoked_id, revoked = await create_key(database)
    await revoke_key(database, revoked_id)
    for key in ("hr_unknown", expired, revoked):
        assert await find_principal(database, hash_key(key)) is None
    assert await find_principal(database, hash_key(lasting)) is not None


async def test_revoking_again_keeps_the_first_time_and_an_unknown_key_is_an_error(database: Database) -> None:
    key_id, _ = await create_key(database, account="revoked")
    await revoke_key(database, key_id)
    before = await list_keys(database, account="revoked")
    await revoke_key(database, key_id)
    assert await list_keys(database, account="revoked") == before
    with pytest.raises(NotFoundError):
        await revoke_key(database, "key_0")


async def test_a_list_shows_an_accounts_keys_oldest_first_and_no_secret(database: Database, owner: Owner) -> None:
    created = [await create_key(database, account="listed", name=name) for name in ("a", "b")]
    rows = await list_keys(database, account="listed")
    assert [(row.id, row.account, row.name) for row in rows] == [
        (key_id, "listed", name) for (key_id, _), name in zip(created, "ab", strict=True)
    ]
    for row, (_, key) in zip(rows, created, strict=True):
        assert key.startswith(row.hint)
        assert len(row.hint) <= 7
        assert not hasattr(row, "hash")
    assert {"listed", "first"} <= {row.account for row in await list_keys(database)}
    assert await list_keys(database, account="nobody") == []


async def test_the_bootstrap_key_is_one_and_changing_it_back_restores_it(database: Database) -> None:
    first, second = "bootstrap-first-0123456789", "bootstrap-second-0123456789"

    async def works(key: str) -> bool:
        return await find_principal(database, hash_key(key)) is not None

    await ensure_bootstrap_key(database, first)
    await ensure_bootstrap_key(database, first)
    assert (await works(first), await works(second)) == (True, False)
    await ensure_bootstrap_key(database, second)
    assert (await works(first), await works(second)) == (False, True)
    await ensure_bootstrap_key(database, first)
    assert (await works(first), await works(second)) == (True, False)
    principal = await find_principal(database, hash_key(first))
    assert principal is not None
    assert principal.scopes == {"admin"}


async def test_a_key_that_is_given_twice_is_refused_and_shows_little_of_itself(database: Database) -> None:
    given = "bootstrap-third-0123456789"
    await ensure_bootstrap_key(database, given)
    [row] = [row for row in await list_keys(database) if row.name == "bootstrap" and given.startswith(row.hint)][-1:]
    assert len(row.hint) == 4
