"""The id that a request's `Idempotency-Key` stands for, and whether the request's change was made.

A request's key gets the id of the new resource once, before the resource is created. The same request sent again gets
the same id, and creating a resource whose id exists changes nothing. So the order of two simultaneous requests, or the
point at which the first one failed, does not matter.

A request that changes a resource has an id too, which no resource gets. Once the change is made, its key is marked as
applied, and the change is not repeated: it might undo a later one.
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
"""Marks a key as applied, and returns it unless it was marked before. A statement, or a CTE of the one that changes."""
_GIVE_UP = """
DELETE FROM idempotency_keys WHERE account_id = %(account_id)s AND key = %(key)s AND resource_id = %(resource_id)s
"""
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
    """The id that a key stands for, and whether it was marked as applied."""

    resource_id: str
    applied: bool


async def find_claim(database: Database, account_id: str, key: str, fingerprint: bytes) -> Claim | None:
    """Return the key's claim, or None if the key is new or a day old.

    Raises:
        ConflictError: The key stands for another request.
    """
    rows = await execute(database.relaxed, _FIND, {"account_id": account_id, "key": key})
    if not rows:
        return None
    _check_fingerprint(rows[0], fingerprint)
    return Claim(rows[0].resource_id, rows[0].applied)


async def claim_id(database: Database, account_id: str, key: str, fingerprint: bytes, resource_id: str) -> str:
    """Return the id that the key stands for: `resource_id`, if the key is new or a day old.

    The commit does not wait for the disk: the resource commits later, so it never exists without the claim.

    Raises:
        ConflictError: The key stands for another request.
    """
    parameters = {"account_id": account_id, "key": key, "fingerprint": fingerprint, "resource_id": resource_id}
    # Another request's row may be committed between the statement's snapshot and its insertion. The second run sees it.
    rows = await execute(database.relaxed, _CLAIM, parameters) or await execute(database.relaxed, _CLAIM, parameters)
    _check_fingerprint(rows[0], fingerprint)
    found: str = rows[0].resource_id
    return found


async def give_up_claim(database: Database, account_id: str, key: str, resource_id: str) -> None:
    """Forget that the key stands for this id, as its resource is not created."""
    parameters = {"account_id": account_id, "key": key, "resource_id": resource_id}
    await execute(database.relaxed, _GIVE_UP, parameters)


async def mark_applied(database: Database, account_id: str, key: str) -> None:
    """Mark that the change of a request with the key was made."""
    await execute(database.relaxed, APPLY, {"account_id": account_id, "key": key})


async def sweep_keys(database: Database) -> int:
    """Delete up to 1,000 keys that are older than a day. Returns how many."""
    return len(await execute(database.relaxed, _SWEEP))


def _check_fingerprint(row: Row, fingerprint: bytes) -> None:
    if bytes(row.fingerprint) != fingerprint:
        raise ConflictError(
            "This Idempotency-Key was sent with another request within the last 24 hours.",
            param="Idempotency-Key",
            code="idempotency_key_reused",
        )
