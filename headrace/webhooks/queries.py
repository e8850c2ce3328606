"""Every statement on webhooks but those that end what is told of, which write what is to be told at the same moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.database import Database, Row, execute
from headrace.ids import new_id

# Longer than any attempt takes: one whose sender died is then somebody else's.
_LEASE_SECONDS = 60


def told(ended: str) -> str:
    """Return the part of a statement, a CTE, that writes what is to be told of batches that it ends.

    `ended` is the CTE with their `id`, `account_id`, `state` and `webhook`; `%(event_id)s` is the event's id.
    """
    return f"""
told AS (
    INSERT INTO webhook_deliveries (id, account_id, batch_id, url, event, payload)
    SELECT %(event_id)s, account_id, id, webhook, 'batch.' || state, json_build_object(
               'id', %(event_id)s::text, 'object', 'event', 'type', 'batch.' || state,
               'created_at', floor(extract(epoch FROM now()))::bigint, 'data', json_build_object('id', id))::text
    FROM {ended} WHERE webhook IS NOT NULL
)"""


def told_of_jobs(ended: str) -> str:
    """Return the same for jobs: `ended` is the CTE with their `id`, `account_id`, `state` and `webhook`.

    A job ends once, so its event has an id that is made of its own.
    """
    return f"""
), told AS (
    INSERT INTO webhook_deliveries (id, account_id, job_id, url, event, payload)
    SELECT 'evt_' || substr(id, 5), account_id, id, webhook, 'job.' || state, json_build_object(
               'id', 'evt_' || substr(id, 5), 'object', 'event', 'type', 'job.' || state,
               'created_at', floor(extract(epoch FROM now()))::bigint, 'data', json_build_object('id', id))::text
    FROM {ended} WHERE webhook IS NOT NULL AND state NOT IN ('queued', 'running')
"""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Something to be told, under this sender's lease. `attempts` counts this one; it is signed with `secret_ids`."""

    id: str
    url: str
    payload: str
    attempts: int
    secret_ids: Sequence[str]


_CLAIM = """
WITH due AS MATERIALIZED (
    SELECT id FROM webhook_deliveries WHERE state = 'pending' AND due_at <= now()
    ORDER BY due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE webhook_deliveries AS delivery SET attempts = attempts + 1, due_at = now() + %(lease)s * interval '1 second'
FROM due WHERE delivery.id = due.id
RETURNING delivery.id, url, payload, attempts, ARRAY(
    SELECT known.id FROM webhook_secrets AS known
    WHERE known.account_id = delivery.account_id AND (expires_at IS NULL OR expires_at > now()) ORDER BY known.id DESC)
"""


async def claim_deliveries(database: Database, *, limit: int) -> list[Delivery]:
    """Take up to `limit` of what is due; what is not recorded within a minute is due again."""
    rows = await execute(database.durable, _CLAIM, {"limit": limit, "lease": _LEASE_SECONDS})
    return [Delivery(*row) for row in rows]


_RECORD = """
UPDATE webhook_deliveries SET state = %(state)s, status = %(status)s, error = %(error)s,
    due_at = now() + %(delay)s * interval '1 second', ended_at = CASE WHEN %(state)s <> 'pending' THEN now() END
WHERE id = %(id)s AND attempts = %(attempts)s AND state = 'pending'
"""


async def record_delivery(
    database: Database,
    delivery: Delivery,
    state: str,
    *,
    status: int | None,
    error: str | None,
    delay_seconds: float = 0,
) -> None:
    """Note how an attempt went: `delivered`, `failed` for good, or `pending` and due in so many seconds."""
    parameters = {
        "id": delivery.id,
        "attempts": delivery.attempts,
        "state": state,
        "status": status,
        "error": error,
        "delay": delay_seconds,
    }
    await execute(database.durable, _RECORD, parameters)


_LIST = """
SELECT id, event, url, state, attempts, status, error, floor(extract(epoch FROM created_at))::bigint AS created_at,
       CASE WHEN state = 'pending' THEN floor(extract(epoch FROM due_at))::bigint END AS next_attempt_at,
       floor(extract(epoch FROM ended_at))::bigint AS ended_at
FROM webhook_deliveries
WHERE account_id = %(account_id)s AND (batch_id = %(of)s OR job_id = %(of)s) ORDER BY id
"""


async def list_deliveries(database: Database, subject_id: str, account_id: str) -> Sequence[Row]:
    """Return what was to be told of a job or a batch, and how that went."""
    return await execute(database.relaxed, _LIST, {"of": subject_id, "account_id": account_id})


_RESEND = """
UPDATE webhook_deliveries SET state = 'pending', attempts = 0, due_at = now(), ended_at = NULL
WHERE id = %(id)s AND account_id = %(account_id)s AND (batch_id = %(of)s OR job_id = %(of)s) RETURNING id
"""


async def resend_delivery(database: Database, delivery_id: str, subject_id: str, account_id: str) -> bool:
    """Have something told again, now and for a day; returns whether there is such a delivery."""
    parameters = {"id": delivery_id, "of": subject_id, "account_id": account_id}
    return bool(await execute(database.durable, _RESEND, parameters))


_SECRETS = """
SELECT id, floor(extract(epoch FROM created_at))::bigint AS created_at,
       floor(extract(epoch FROM expires_at))::bigint AS expires_at
FROM webhook_secrets WHERE account_id = %(account_id)s AND (expires_at IS NULL OR expires_at > now()) ORDER BY id DESC
"""
_ENSURE = "INSERT INTO webhook_secrets (id, account_id) VALUES (%(id)s, %(account_id)s) ON CONFLICT DO NOTHING"
# The update comes first, so that there is never a second secret without an end.
_ROTATE = """
WITH old AS (
    UPDATE webhook_secrets SET expires_at = now() + %(overlap)s * interval '1 second'
    WHERE account_id = %(account_id)s AND expires_at IS NULL AND id <> %(id)s
    RETURNING id
)
INSERT INTO webhook_secrets (id, account_id) SELECT %(id)s, %(account_id)s FROM (SELECT count(*) FROM old) AS ended
ON CONFLICT DO NOTHING
"""


async def ensure_secret(database: Database, account_id: str) -> None:
    """Give an account its first secret, if it has none."""
    await execute(database.durable, _ENSURE, {"id": new_id("secret"), "account_id": account_id})


async def list_secrets(database: Database, account_id: str) -> Sequence[Row]:
    """Return an account's valid secrets, newest first; there is always one."""
    await ensure_secret(database, account_id)
    return await execute(database.relaxed, _SECRETS, {"account_id": account_id})


async def rotate_secret(
    database: Database, account_id: str, secret_id: str, *, overlap_seconds: float
) -> Sequence[Row]:
    """Make a new secret; the one before stays valid for a while. Returns all that are valid, newest first."""
    parameters = {"id": secret_id, "account_id": account_id, "overlap": overlap_seconds}
    await execute(database.durable, _ROTATE, parameters)
    return await execute(database.relaxed, _SECRETS, {"account_id": account_id})
