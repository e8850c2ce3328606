"""Which id a request's `Idempotency-Key` stands for.

The id of what a request makes is chosen once, before it is made. Whoever sends the request again gets the same id, and
to make something by an id that is there already changes nothing. So it does not matter who of two that come at once is
first, or where the first one died.
"""

from __future__ import annotations

from headrace.database import Database, execute
from headrace.errors import ConflictError

_KEPT = "interval '24 hours'"
_CLAIM = f"""
WITH claimed AS (
    INSERT INTO idempotency_keys AS known (account_id, key, fingerprint, resource_id)
    VALUES (%(account_id)s, %(key)s, %(fingerprint)s, %(resource_id)s)
    ON CONFLICT (account_id, key) DO UPDATE
    SET fingerprint = excluded.fingerprint, resource_id = excluded.resource_id, created_at = now()
    WHERE known.created_at < now() - {_KEPT}
    RETURNING fingerprint, resource_id
)
SELECT fingerprint, resource_id FROM claimed
UNION ALL SELECT fingerprint, resource_id FROM idempotency_keys
WHERE account_id = %(account_id)s AND key = %(key)s AND NOT EXISTS (SELECT FROM claimed)
"""
_SWEEP = f"""
WITH old AS MATERIALIZED (
    SELECT account_id, key FROM idempotency_keys WHERE created_at < now() - {_KEPT}
    ORDER BY created_at LIMIT 1000 FOR UPDATE SKIP LOCKED
)
DELETE FROM idempotency_keys AS known USING old WHERE known.account_id = old.account_id AND known.key = old.key
RETURNING known.key
"""


async def claim_id(database: Database, account_id: str, key: str, fingerprint: bytes, resource_id: str) -> str:
    """Return the id that the key stands for: `resource_id`, if it is new or a day old.

    The commit need not wait for the disk: what is made by the id is committed after it, and so is not there without it.

    Raises:
        ConflictError: It stands for something else that was asked.
    """
    parameters = {"account_id": account_id, "key": key, "fingerprint": fingerprint, "resource_id": resource_id}
    # Somebody else's row may be committed between the statement's snapshot and its insertion: the next one sees it.
    rows = await execute(database.relaxed, _CLAIM, parameters) or await execute(database.relaxed, _CLAIM, parameters)
    if bytes(rows[0].fingerprint) != fingerprint:
        raise ConflictError(
            "This Idempotency-Key was sent with another request within the last 24 hours.",
            param="Idempotency-Key",
            code="idempotency_key_reused",
        )
    found: str = rows[0].resource_id
    return found


async def sweep_keys(database: Database) -> int:
    """Forget some keys that are older than a day; returns how many."""
    return len(await execute(database.relaxed, _SWEEP))
