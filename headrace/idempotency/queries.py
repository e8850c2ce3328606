"""Which id a request's `Idempotency-Key` stands for, and whether what the request changes was changed.

The id of what a request makes is chosen once, before it is made. Whoever sends the request again gets the same id, and
to make something by an id that is there already changes nothing. So it does not matter who of two that come at once is
first, or where the first one died.

A request that makes nothing but changes something has an id too, which nothing is made by. Once the change is there its
key is marked as applied, and the change is not made again: it might undo a later one.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import ConflictError
from headrace.stores.connections import Row
from headrace.stores.database import Database, execute

_KEPT = "interval '24 hours'"
_CLAIM = f"""
WITH claimed AS (
    INSERT INTO idempotency_keys AS known (account_id, key, fingerprint, resource_id)
    VALUES (%(account_id)s, %(key)s, %(fingerprint)s, %(resource_id)s)
    ON CONFLICT (account_id, key) DO UPDATE
    SET fingerprint = excluded.fingerprint, resource_id = excluded.resource_id, applied = false, created_at = now()
    WHERE known.created_at < now() - {_KEPT}
    RETURNING fingerprint, resource_id
)
SELECT fingerprint, resource_id FROM claimed
UNION ALL SELECT fingerprint, resource_id FROM idempotency_keys
WHERE account_id = %(account_id)s AND key = %(key)s AND NOT EXISTS (SELECT FROM claimed)
"""
_FIND = f"""
SELECT fingerprint, resource_id, applied FROM idempotency_keys
WHERE account_id = %(account_id)s AND key = %(key)s AND created_at >= now() - {_KEPT}
"""
APPLY = """
UPDATE idempotency_keys SET applied = true
WHERE account_id = %(account_id)s AND key = %(key)s::text AND NOT applied RETURNING key
"""
"""Marks a key, and returns it if nobody has before: a statement, or the part of one that makes the change itself."""
_SWEEP = f"""
WITH old AS MATERIALIZED (
    SELECT account_id, key FROM idempotency_keys WHERE created_at < now() - {_KEPT}
    ORDER BY created_at LIMIT 1000 FOR UPDATE SKIP LOCKED
)
DELETE FROM idempotency_keys AS known USING old WHERE known.account_id = old.account_id AND known.key = old.key
RETURNING known.key
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a key stands for, and whether it was marked as applied."""

    resource_id: str
    applied: bool


async def find_claim(database: Database, account_id: str, key: str, fingerprint: bytes) -> Claim | None:
    """Return what the key stands for, or None if it is new or a day old.

    Raises:
        ConflictError: It stands for something else that was asked.
    """
    rows = await execute(database.relaxed, _FIND, {"account_id": account_id, "key": key})
    if not rows:
        return None
    _check_fingerprint(rows[0], fingerprint)
    return Claim(rows[0].resource_id, rows[0].applied)


async def claim_id(database: Database, account_id: str, key: str, fingerprint: bytes, resource_id: str) -> str:
    """Return the id that the key stands for: `resource_id`, if it is new or a day old.

    The commit need not wait for the disk: what is made by the id is committed after it, and so is not there without it.

    Raises:
        ConflictError: It stands for something else that was asked.
    """
    parameters = {"account_id": account_id, "key": key, "fingerprint": fingerprint, "resource_id": resource_id}
    # Somebody else's row may be committed between the statement's snapshot and its insertion: the next one sees it.
    rows = await execute(database.relaxed, _CLAIM, parameters) or await execute(database.relaxed, _CLAIM, parameters)
    _check_fingerprint(rows[0], fingerprint)
    found: str = rows[0].resource_id
    return found


async def mark_applied(database: Database, account_id: str, key: str) -> None:
    """Note that what a request with the key changes was changed."""
    await execute(database.relaxed, APPLY, {"account_id": account_id, "key": key})


async def sweep_keys(database: Database) -> int:
    """Forget some keys that are older than a day; returns how many."""
    return len(await execute(database.relaxed, _SWEEP))


def _check_fingerprint(row: Row, fingerprint: bytes) -> None:
    if bytes(row.fingerprint) != fingerprint:
        raise ConflictError(
            "This Idempotency-Key was sent with another request within the last 24 hours.",
            param="Idempotency-Key",
            code="idempotency_key_reused",
        )
