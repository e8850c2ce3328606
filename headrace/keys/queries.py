"""Every statement on accounts and API keys. A key is shown when it is created and stored as its hash alone."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from headrace.database import Database, Row, execute
from headrace.errors import NotFoundError
from headrace.ids import new_id
from headrace.keys.tables import accounts, api_keys
from headrace.settings import Settings

DEFAULT_ACCOUNT = "default"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request comes from."""

    account_id: str
    key_id: str
    scopes: frozenset[str]


def hash_key(key: str) -> bytes:
    """Return what is stored of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


_FIND = """
SELECT account_id, id, scopes FROM api_keys
WHERE hash = %(hash)s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
"""


async def find_principal(database: Database, key_hash: bytes) -> Principal | None:
    """Return whose key has this hash, or None if it is unknown, revoked or expired: one look-up whichever it is."""
    rows = await execute(database.relaxed, _FIND, {"hash": key_hash})
    return Principal(rows[0][0], rows[0][1], frozenset(rows[0][2])) if rows else None


async def _ensure_account(database: Database, name: str) -> str:
    statement = (
        insert(accounts)
        .values(id=new_id("acct"), name=name)
        .on_conflict_do_update(index_elements=["name"], set_={"name": name})
        .returning(accounts.c.id)
    )
    account_id: str = (await execute(database.durable, statement))[0][0]
    return account_id


async def create_key(
    database: Database,
    *,
    account: str = DEFAULT_ACCOUNT,
    name: str = "",
    scopes: Sequence[str] = (),
    expires_at: datetime | None = None,
    key: str | None = None,
    bootstrap: bool = False,
) -> tuple[str, str]:
    """Create a key, and its account if that is new. Returns the key's id and the key, which is not to be had again."""
    secret = key or "hr_" + secrets.token_urlsafe(32)
    statement = insert(api_keys).values(
        id=new_id("key"),
        account_id=await _ensure_account(database, account),
        name=name,
        hash=hash_key(secret),
        hint=secret[: 7 if key is None else 4],
        scopes=list(scopes),
        expires_at=expires_at,
        bootstrap=bootstrap,
    )
    if bootstrap:
        statement = statement.on_conflict_do_update(
            index_elements=["hash"], set_={"revoked_at": None, "scopes": list(scopes)}
        )
    key_id: str = (await execute(database.durable, statement.returning(api_keys.c.id)))[0][0]
    return key_id, secret


async def ensure_bootstrap_key(database: Database, key: str) -> None:
    """Make this the one bootstrap key: an admin's, in the default account. An earlier one is revoked."""
    key_id, _ = await create_key(database, name="bootstrap", scopes=["admin"], key=key, bootstrap=True)
    statement = (
        sa.update(api_keys)
        .where(api_keys.c.bootstrap, api_keys.c.id != key_id, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=sa.func.now())
    )
    await execute(database.durable, statement)


async def list_keys(database: Database, *, account: str | None = None) -> Sequence[Row]:
    """Return the keys of an account, or of all, oldest first; never the keys themselves."""
    query = (
        sa.select(
            api_keys.c.id,
            accounts.c.name.label("account"),
            api_keys.c.name,
            api_keys.c.hint,
            api_keys.c.scopes,
            api_keys.c.created_at,
            api_keys.c.expires_at,
            api_keys.c.revoked_at,
        )
        .join_from(api_keys, accounts)
        .order_by(api_keys.c.id)
    )
    if account is not None:
        query = query.where(accounts.c.name == account)
    return await execute(database.relaxed, query)


async def revoke_key(database: Database, key_id: str) -> None:
    """Revoke a key; one that is revoked already stays as it is.

    Raises:
        NotFoundError: There is no such key.
    """
    statement = (
        sa.update(api_keys)
        .where(api_keys.c.id == key_id)
        .values(revoked_at=sa.func.coalesce(api_keys.c.revoked_at, sa.func.now()))
        .returning(api_keys.c.id)
    )
    if not await execute(database.durable, statement):
        raise NotFoundError(f"There is no key {key_id!r}.")


def create_first_key(settings: Settings) -> str | None:
    """Create a key in a database that has none and return it; return None where there are keys already."""

    async def create() -> str | None:
        database = Database.connect(settings.database_url, connections=1)
        try:
            if settings.bootstrap_key is not None or await list_keys(database):
                return None
            return (await create_key(database, name="first", scopes=["admin"]))[1]
        finally:
            await database.close()

    return asyncio.run(create())
