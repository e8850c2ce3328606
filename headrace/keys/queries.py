"""Every statement on API keys. A key is shown once, when it is created, and stored as a hash."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import Insert, insert

from headrace.errors import AuthenticationError, ConflictError, NotFoundError
from headrace.ids import new_id
from headrace.keys.accounts import DEFAULT_ACCOUNT, ensure_account, lock_account
from headrace.keys.principal import Principal
from headrace.keys.tables import accounts, api_keys
from headrace.quotas.rules import Limits
from headrace.settings import Settings
from headrace.stores.connections import Row
from headrace.stores.database import Database, execute
from headrace.stores.plain import Prepared
from headrace.stores.tables import unix_seconds


class KeyChanges(TypedDict, total=False):
    """Changes to a key. Fields that are left out stay unchanged."""

    name: str
    scopes: Sequence[str]
    limits: Limits
    expires_at: datetime | None
    read_only: bool


def hash_key(key: str) -> bytes:
    """Return the hash by which a key is stored."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _new_key() -> str:
    return "hr_" + secrets.token_urlsafe(32)


def _hint(key: str, *, given: bool = False) -> str:
    """Return a key's first characters: fewer of a `given` key, which may be short."""
    return key[: 4 if given else 7]


_VALID = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"
_FIND = Prepared(f"""
SELECT account_id, api_keys.id, scopes, api_keys.limits, accounts.limits AS account_limits,
       extract(epoch FROM expires_at)::float8 AS expires_at, api_keys.name, read_only
FROM api_keys JOIN accounts ON accounts.id = account_id
WHERE (hash = %(hash)s OR previous_hash = %(hash)s AND previous_expires_at > now())
      AND {_VALID}
""")
_STILL_VALID = f"""
SELECT hash, 'admin' = ANY(scopes) FROM api_keys WHERE hash = ANY(%(hashes)s) AND {_VALID}
UNION ALL
SELECT previous_hash, 'admin' = ANY(scopes) FROM api_keys
WHERE previous_hash = ANY(%(hashes)s) AND previous_expires_at > now() AND {_VALID}
"""


async def find_principal(database: Database, key_hash: bytes) -> Principal | None:
    """Return the principal of the key with this hash, or with this previous hash while the rotation's overlap lasts.

    Returns None if the key is unknown, revoked or expired.
    """
    rows = await execute(database.relaxed, _FIND, {"hash": key_hash})
    if not rows:
        return None
    row = rows[0]
    return Principal(
        account_id=row.account_id,
        key_id=row.id,
        scopes=frozenset(row.scopes),
        limits=Limits.parse(row.limits),
        account_limits=Limits.parse(row.account_limits),
        expires_at=row.expires_at,
        key_hash=key_hash,
        name=row.name,
        read_only=row.read_only,
        key_account_id=row.account_id,
    )


async def still_valid(database: Database, hashes: Collection[bytes]) -> dict[bytes, bool]:
    """Return those of the hashes by which `find_principal` would find a key now, and whether each has `admin`."""
    rows = await execute(database.relaxed, _STILL_VALID, {"hashes": list(hashes)})
    return {bytes(key_hash): is_admin for key_hash, is_admin in rows}


# A key that another process is marking is skipped, so that no statement waits for another.
_MARK_USED = """
UPDATE api_keys SET last_used_at = now() WHERE id IN (
    SELECT id FROM api_keys
    WHERE id = ANY(%(ids)s) AND (last_used_at IS NULL OR last_used_at <= now() - interval '1 minute')
    FOR UPDATE SKIP LOCKED
)
"""


async def mark_used(database: Database, key_ids: Sequence[str]) -> None:
    """Record that keys are in use now. A key that was marked within the last minute stays unchanged."""
    await execute(database.relaxed, _MARK_USED, {"ids": list(key_ids)})


def _parent_lives() -> sa.ColumnElement[bool]:
    """Return the condition that the key `parent` is not revoked.

    The lock makes a revocation of the parent wait until it can see the child.
    """
    living = sa.select(api_keys.c.id).where(api_keys.c.id == sa.bindparam("parent"), api_keys.c.revoked_at.is_(None))
    return sa.exists().where(living.with_for_update(read=True).cte("parent").c.id == sa.bindparam("parent"))


def _below() -> sa.ColumnElement[bool]:
    """Return the condition for keys that the key `above` created, directly or through others."""
    made = sa.select(api_keys.c.id).where(api_keys.c.parent_id == sa.bindparam("above")).cte("made", recursive=True)
    child = api_keys.alias()
    made = made.union(sa.select(child.c.id).join(made, child.c.parent_id == made.c.id))
    return api_keys.c.id.in_(sa.select(made.c.id))


# These are made once. A common table expression and its columns refer to each other, so that the memory of one for each
# statement would wait for the garbage collector.
_PARENT_LIVES = _parent_lives()
_BELOW = _below()


_COUNT = "SELECT count(*) FROM api_keys WHERE account_id = %(account_id)s AND revoked_at IS NULL"


async def create_key(
    database: Database,
    *,
    key_id: str | None = None,
    account: str = DEFAULT_ACCOUNT,
    account_id: str | None = None,
    name: str = "",
    scopes: Sequence[str] = (),
    limits: Limits | None = None,
    expires_at: datetime | None = None,
    read_only: bool = False,
    parent_id: str | None = None,
    most: int | None = None,
) -> tuple[str, str]:
    """Create a key in the account with this id, or else in the one with this name, which is created if it is new.

    With `parent_id` it is that key's child. Returns the key's id, which is `key_id` if given, and the key, which cannot
    be read again.

    Raises:
        AuthenticationError: The parent was revoked meanwhile.
        ConflictError: A key with that id exists, or the account has `most` keys that are not revoked.
    """
    key = _new_key()
    account_id = account_id or await ensure_account(database, account)
    values = {
        "id": key_id or new_id("key"),
        "account_id": account_id,
        "name": name,
        "hash": hash_key(key),
        "hint": _hint(key),
        "scopes": list(scopes),
        "limits": {} if limits is None else limits.render(),
        "expires_at": expires_at,
        "read_only": read_only,
        "parent_id": parent_id,
    }
    statement = _insertion(values).on_conflict_do_update(index_elements=["id"], set_={"id": api_keys.c.id})
    parent = None if parent_id is None else {"parent": parent_id}
    async with database.durable.transaction("READ COMMITTED") as transaction:
        if most is not None:
            await lock_account(transaction, account_id)
            if (await execute(transaction, _COUNT, {"account_id": account_id}))[0][0] >= most:
                raise ConflictError(f"An account has at most {most} API keys: revoke one first.")
        rows = await execute(transaction, statement.returning(api_keys.c.id, api_keys.c.hash), parent)
    if not rows:
        raise AuthenticationError
    [row] = rows
    if bytes(row.hash) != hash_key(key):
        raise ConflictError("The key was created already, and is shown once: rotate it to have a new one.")
    return row.id, key


def _insertion(values: Mapping[str, Any]) -> Insert:
    """Return the statement that inserts a key: a child only while its parent lives."""
    if values["parent_id"] is None:
        return insert(api_keys).values(values)
    child = sa.select(*(sa.literal(value, api_keys.c[name].type) for name, value in values.items()))
    return insert(api_keys).from_select(list(values), child.where(_PARENT_LIVES))


async def ensure_bootstrap_key(database: Database, key: str) -> None:
    """Make this key the only bootstrap key: an administrator's, in the default account. Revokes an earlier one."""
    statement = insert(api_keys).values(
        id=new_id("key"),
        account_id=await ensure_account(database, DEFAULT_ACCOUNT),
        name="bootstrap",
        hash=hash_key(key),
        hint=_hint(key, given=True),
        scopes=["admin"],
        bootstrap=True,
    )
    made = {"revoked_at": None, "expires_at": None, "scopes": ["admin"], "read_only": False, "bootstrap": True}
    statement = statement.on_conflict_do_update(index_elements=["hash"], set_=made)
    key_id = (await execute(database.durable, statement.returning(api_keys.c.id)))[0][0]
    earlier = sa.and_(api_keys.c.bootstrap, api_keys.c.id != key_id, api_keys.c.revoked_at.is_(None))
    await execute(database.durable, sa.update(api_keys).where(earlier).values(revoked_at=sa.func.now()))


# Postgres's clock alone decides whether a key has expired, as in `find_principal`.
_STATUS = sa.case(
    (api_keys.c.revoked_at.is_not(None), "revoked"),
    (api_keys.c.expires_at <= sa.func.now(), "expired"),
    else_="active",
).label("status")
_KEYS = sa.select(
    api_keys.c.id,
    api_keys.c.name,
    api_keys.c.account_id,
    accounts.c.name.label("account"),
    api_keys.c.hint,
    api_keys.c.scopes,
    api_keys.c.read_only,
    api_keys.c.limits,
    unix_seconds(api_keys.c.created_at),
    unix_seconds(api_keys.c.expires_at),
    unix_seconds(api_keys.c.revoked_at),
    unix_seconds(api_keys.c.last_used_at),
    unix_seconds(api_keys.c.previous_expires_at),
    _STATUS,
    api_keys.c.bootstrap,
    api_keys.c.parent_id,
).join_from(api_keys, accounts)


async def list_keys(
    database: Database,
    *,
    account_id: str | None = None,
    include_revoked: bool = True,
    after: str | None = None,
    limit: int | None = None,
    descending: bool = False,
) -> Sequence[Row]:
    """Return up to `limit` keys past the key `after` of an account, or of all, in order of creation.

    A row has all that may be shown of a key, with times in Unix seconds: never the key itself or its hash.
    """
    query = _KEYS.order_by(api_keys.c.id.desc() if descending else api_keys.c.id).limit(limit)
    if account_id is not None:
        query = query.where(api_keys.c.account_id == account_id)
    if not include_revoked:
        query = query.where(api_keys.c.revoked_at.is_(None))
    if after is not None:
        query = query.where(api_keys.c.id < after if descending else api_keys.c.id > after)
    return await execute(database.relaxed, query)


async def find_key(database: Database, key_id: str, *, account_id: str | None = None) -> Row | None:
    """Return a key's row as `list_keys` does, or None if no such key exists, or not in that account."""
    query = _KEYS.where(api_keys.c.id == key_id)
    if account_id is not None:
        query = query.where(api_keys.c.account_id == account_id)
    rows = await execute(database.relaxed, query)
    return rows[0] if rows else None


async def update_key(database: Database, key_id: str, changes: KeyChanges) -> None:
    """Change the given fields of a key. Every process applies the change within a second.

    Keys that it created, and their keys in turn, expire with it at the latest.
    """
    if not changes:
        return
    values: dict[str, Any] = {**changes}
    if "limits" in changes:
        values["limits"] = changes["limits"].render()
    await execute(database.durable, sa.update(api_keys).where(api_keys.c.id == key_id).values(values))
    if (end := changes.get("expires_at")) is not None:
        later = sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > end)
        below = sa.update(api_keys).where(_BELOW, later).values(expires_at=end)
        await execute(database.durable, below, {"above": key_id})


_ROTATE = """
UPDATE api_keys SET previous_hash = hash, hash = %(hash)s, hint = %(hint)s,
                    previous_expires_at = now() + make_interval(secs => %(overlap)s)
WHERE id = %(id)s AND hash <> %(hash)s
"""


async def rotate_key(database: Database, key_id: str, *, overlap_seconds: float) -> str:
    """Give a key a new secret and return the secret, which cannot be read again.

    The previous secret works for `overlap_seconds` more. The one before it stops working, even if its overlap lasted.
    """
    key = _new_key()
    parameters = {"id": key_id, "hash": hash_key(key), "hint": _hint(key), "overlap": overlap_seconds}
    await execute(database.durable, _ROTATE, parameters)
    return key


async def revoke_key(database: Database, key_id: str, *, children: bool | None = None) -> None:
    """Revoke a key. A revoked key stays unchanged.

    With `children` the keys that it created, and their keys in turn, are revoked too. By default they are, except those
    of an administrator's key, which creates keys for its operator.

    Raises:
        NotFoundError: No such key exists.
    """
    statement = (
        sa.update(api_keys)
        .where(api_keys.c.id == key_id)
        .values(revoked_at=sa.func.coalesce(api_keys.c.revoked_at, sa.func.now()))
        .returning(api_keys.c.scopes)
    )
    rows = await execute(database.durable, statement)
    if not rows:
        raise NotFoundError(f"There is no key {key_id!r}.")
    if "admin" not in rows[0].scopes if children is None else children:
        # A child may be creating a key at this moment. The next run finds that key.
        below = sa.update(api_keys).where(_BELOW, api_keys.c.revoked_at.is_(None)).values(revoked_at=sa.func.now())
        while await execute(database.durable, below.returning(api_keys.c.id), {"above": key_id}):
            pass


def create_first_key(settings: Settings) -> str | None:
    """Create a key in a database without keys and return it. Returns None if a key exists."""

    async def create() -> str | None:
        database = Database.connect(settings.database_url, connections=1)
        try:
            if settings.bootstrap_key is not None or await list_keys(database, limit=1):
                return None
            return (await create_key(database, name="first", scopes=["admin"]))[1]
        finally:
            await database.close()

    return asyncio.run(create())
