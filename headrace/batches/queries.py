"""Every statement on batches. Those that write rows of `jobs` for their lines are in `headrace/jobs/sql`.

Each function is one statement and so one transaction. A move names the state that it moves from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from headrace.batches.lines import LineProblem
from headrace.batches.state import BatchState
from headrace.errors import RateLimitError
from headrace.ids import id_before, new_id
from headrace.keys.accounts import lock_account
from headrace.stores.connections import Connections, Row
from headrace.stores.database import Database, execute
from headrace.webhooks.queries import insert_batch_deliveries

# Seconds of tallies from which a batch's pace is computed.
_RECENT_SECONDS = 30
# Seconds after which a tally is folded into its batch's row: more than its pace needs.
_FOLD_SECONDS = 60

_AMOUNTS = (
    "completed",
    "failed",
    "cancelled",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
)
_FINAL = "('completed', 'failed', 'expired', 'cancelled')"
_ACTIVE = "('validating', 'in_progress', 'finalizing', 'cancelling')"


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A client's batch before it has a row."""

    id: str
    account_id: str
    key_id: str
    endpoint: str
    completion_window: str
    seconds: int
    input_file_id: str
    output_seconds: int | None
    metadata: Mapping[str, str] | None
    webhook: str | None
    trace_context: str | None = None


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file whose content is written, but which is still hidden."""

    id: str
    bytes: int
    filename: str


_CREATE = """
WITH input AS (
    SELECT id, account_id FROM files
    WHERE id = %(input_file_id)s AND account_id = %(account_id)s AND bytes IS NOT NULL AND purpose = 'batch'
          AND (expires_at IS NULL OR expires_at > now())
    FOR KEY SHARE
), created AS (
    INSERT INTO batches (id, account_id, key_id, endpoint, completion_window, input_file_id, output_seconds,
                         metadata, webhook, trace_context, expires_at)
    SELECT %(id)s, account_id, %(key_id)s, %(endpoint)s, %(completion_window)s, id, %(output_seconds)s,
           %(metadata)s::jsonb, %(webhook)s, %(trace_context)s, now() + %(seconds)s * interval '1 second'
    FROM input ON CONFLICT (id) DO NOTHING
)
SELECT id FROM input
"""


async def create_batch(database: Database, new: NewBatch, *, most: int) -> bool:
    """Accept a batch: it is on disk when this returns. Returns False if the account has no such input file.

    Raises:
        RateLimitError: The account has `most` other batches that have not ended.
    """
    parameters = {
        "id": new.id,
        "account_id": new.account_id,
        "key_id": new.key_id,
        "endpoint": new.endpoint,
        "completion_window": new.completion_window,
        "seconds": new.seconds,
        "input_file_id": new.input_file_id,
        "output_seconds": new.output_seconds,
        "metadata": orjson.dumps(new.metadata).decode() if new.metadata else None,
        "webhook": new.webhook,
        "trace_context": new.trace_context,
    }
    async with database.durable.transaction("READ COMMITTED") as transaction:
        await lock_account(transaction, new.account_id)
        await check_active(transaction, new.account_id, most=most, besides=new.id)
        return bool(await execute(transaction, _CREATE, parameters))


TIMES = (
    "created_at",
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)
_EPOCHS = ", ".join(f"floor(extract(epoch FROM batches.{name}))::bigint AS {name}" for name in TIMES)
_SUMS = ", ".join(f"coalesce(sum({name}), 0)::bigint AS {name}" for name in _AMOUNTS)
_TOTALS = ", ".join(f"(batches.{name} + tally.{name}) AS {name}" for name in _AMOUNTS)
# The time before a batch's deadline in which workers run what its provider has not run. OpenAI may take ten minutes of
# it to cancel.
_LAST_TIME = "interval '30 minutes'"
_VIEW = f"""
SELECT batches.id, account_id, key_id, state, endpoint, completion_window, input_file_id, output_file_id, error_file_id,
       output_seconds, batches.metadata, webhook, errors, model, native_route, agents, total, fed, next_offset,
       next_line,
       expires_at <= now() AS overdue, expires_at <= now() + {_LAST_TIME} AS ends_soon,
       expires_at - batches.created_at >= interval '1 day' AS has_a_day, {_EPOCHS},
       extract(epoch FROM now() - in_progress_at)::float8 AS seconds_running,
       {_TOTALS}, coalesce(batches.cost + tally.cost, batches.cost, tally.cost) AS cost,
       recent_lines, recent_tokens, {_RECENT_SECONDS} AS recent_seconds
FROM batches CROSS JOIN LATERAL (
    SELECT {_SUMS}, sum(cost) AS cost,
           coalesce(sum(completed + failed) FILTER (WHERE young), 0)::bigint AS recent_lines,
           coalesce(sum(prompt_tokens + completion_tokens) FILTER (WHERE young), 0)::bigint AS recent_tokens
    FROM (SELECT *, created_at > now() - interval '{_RECENT_SECONDS} seconds' AS young
          FROM batch_tallies WHERE batch_id = batches.id) AS tallies
) AS tally
"""
_GET = _VIEW + "WHERE batches.id = %(id)s AND account_id = %(account_id)s"
_LIST = (
    _VIEW
    + """
WHERE account_id = %(account_id)s AND (%(after)s::text IS NULL OR batches.id < %(after)s)
      AND (%(metadata)s::jsonb IS NULL OR batches.metadata @> %(metadata)s::jsonb)
ORDER BY batches.id DESC LIMIT %(limit)s
"""
)
_COUNT_ACTIVE = f"""
SELECT count(*) FROM batches WHERE account_id = %(account_id)s AND state IN {_ACTIVE} AND id <> %(besides)s
"""


async def check_active(connections: Connections, account_id: str, *, most: int, besides: str = "") -> None:
    """Check that an account may have another batch, `besides` not counted.

    Raises:
        RateLimitError: The account has `most` batches that have not ended.
    """
    rows = await execute(connections, _COUNT_ACTIVE, {"account_id": account_id, "besides": besides})
    if rows[0][0] >= most:
        raise RateLimitError(
            f"{most} batches of this account have not ended: create this one when one has.", retry_after=60
        )


_LIST_ACTIVE = f"""
SELECT active.*, EXISTS (SELECT FROM native_parcels WHERE batch_id = active.id AND state <> 'done') AS has_parcels
FROM ({_VIEW} WHERE state IN {_ACTIVE}) AS active ORDER BY active.id
"""


async def get_batch(database: Database, batch_id: str, account_id: str) -> Row | None:
    """Return an account's batch with the counts of its lines, or None if the account has no such batch."""
    rows = await execute(database.relaxed, _GET, {"id": batch_id, "account_id": account_id})
    return rows[0] if rows else None


async def list_batches(
    database: Database, account_id: str, *, after: str | None, limit: int, metadata: Mapping[str, str] | None = None
) -> Sequence[Row]:
    """Return up to `limit` of an account's batches, newest first, that are older than `after`."""
    wanted = orjson.dumps(metadata).decode() if metadata else None
    parameters = {"account_id": account_id, "after": after, "limit": limit, "metadata": wanted}
    return await execute(database.relaxed, _LIST, parameters)


async def list_active(database: Database) -> Sequence[Row]:
    """Return every account's batches that have not ended, oldest first.

    `has_parcels` tells whether a batch has parcels that are not done.
    """
    return await execute(database.relaxed, _LIST_ACTIVE)


_LIST_LATEST = _VIEW + f"WHERE state IN {_ACTIVE} ORDER BY batches.id DESC LIMIT %(limit)s"


async def list_latest_active(database: Database, *, limit: int) -> Sequence[Row]:
    """Return up to `limit` batches of all accounts that have not ended, newest first."""
    return await execute(database.lists, _LIST_LATEST, {"limit": limit})


_MOVE = """
UPDATE batches SET state = %(to)s,
    in_progress_at = CASE WHEN %(to)s = 'in_progress' THEN now() ELSE in_progress_at END,
    finalizing_at = CASE WHEN %(to)s = 'finalizing' THEN now() ELSE finalizing_at END,
    completed_at = CASE WHEN %(to)s = 'completed' THEN now() END,
    failed_at = CASE WHEN %(to)s = 'failed' THEN now() END,
    expired_at = CASE WHEN %(to)s = 'expired' THEN now() END,
    cancelled_at = CASE WHEN %(to)s = 'cancelled' THEN now() END
"""
_START = _MOVE + ", total = %(total)s, model = %(model)s, native_route = %(native_route)s, agents = %(agents)s::jsonb"
_FROM = " WHERE id = %(id)s AND state = %(from)s RETURNING id"


def _end(assignments: str, *others: str) -> str:
    ended = f"ended AS ({_MOVE}, {assignments} {_FROM}, account_id, state, webhook, output_seconds)"
    return f"WITH {', '.join([ended, *others])}{insert_batch_deliveries('ended')} SELECT id FROM ended"


_COMPLETED = """completed AS (
    UPDATE files SET bytes = written.bytes, filename = written.filename,
                     expires_at = created_at + output_seconds * interval '1 second'
    FROM ended, unnest(%(file_ids)s::text[], %(sizes)s::bigint[], %(filenames)s::text[])
                AS written (id, bytes, filename)
    WHERE files.id = written.id AND files.bytes IS NULL
)"""
_END = _end("output_file_id = %(output_file_id)s, error_file_id = %(error_file_id)s", _COMPLETED)
_FAIL = _end("errors = %(errors)s::jsonb")


async def start_batch(
    database: Database,
    batch_id: str,
    *,
    total: int,
    model: str | None,
    agents: Mapping[str, int],
    native_route: str | None = None,
) -> bool:
    """Start a batch whose input is valid. With `native_route` its lines run on that route's own batch API.

    Returns False if the batch was cancelled meanwhile.
    """
    parameters = {
        "id": batch_id,
        "from": BatchState.VALIDATING,
        "to": BatchState.IN_PROGRESS,
        "total": total,
        "model": model,
        "native_route": native_route,
        "agents": orjson.dumps(agents).decode() if agents else None,
    }
    return bool(await execute(database.durable, _START + _FROM, parameters))


async def fail_batch(database: Database, batch_id: str, problems: Sequence[LineProblem]) -> bool:
    """End a batch whose input is invalid. Returns False if the batch was cancelled meanwhile."""
    parameters = {
        "id": batch_id,
        "from": BatchState.VALIDATING,
        "to": BatchState.FAILED,
        "event_id": new_id("evt"),
        "errors": orjson.dumps([problem.render() for problem in problems]).decode().replace("\\u0000", "\\ufffd"),
    }
    return bool(await execute(database.durable, _FAIL, parameters))


async def finalize_batch(database: Database, batch_id: str) -> bool:
    """Let the scheduler write the output of a batch whose lines have all ended. Returns False if it was cancelled."""
    parameters = {"id": batch_id, "from": BatchState.IN_PROGRESS, "to": BatchState.FINALIZING}
    return bool(await execute(database.durable, _MOVE + _FROM, parameters))


async def end_batch(
    database: Database,
    batch_id: str,
    *,
    begin: BatchState,
    end: BatchState,
    output_file_id: str | None,
    error_file_id: str | None,
    written: Sequence[WrittenFile] = (),
) -> bool:
    """Move a batch from `begin` to its `end`, with its files. Files in `written` become visible with it.

    Returns False if the batch was not in `begin`.
    """
    parameters = {
        "id": batch_id,
        "from": begin,
        "to": end,
        "event_id": new_id("evt"),
        "output_file_id": output_file_id,
        "error_file_id": error_file_id,
        "file_ids": [file.id for file in written],
        "sizes": [file.bytes for file in written],
        "filenames": [file.filename for file in written],
    }
    return bool(await execute(database.durable, _END, parameters))


_CANCEL = """
WITH cancelled AS (
    UPDATE batches SET state = 'cancelling', cancelling_at = now()
    WHERE id = %(id)s AND account_id = %(account_id)s AND state IN ('validating', 'in_progress')
    RETURNING in_progress_at
)
SELECT in_progress_at IS NOT NULL FROM cancelled
UNION ALL
SELECT in_progress_at IS NOT NULL FROM batches
WHERE id = %(id)s AND account_id = %(account_id)s AND state NOT IN ('validating', 'in_progress')
"""


async def cancel_batch(database: Database, batch_id: str, account_id: str) -> bool:
    """Begin to cancel a batch that is being validated or run; any other stays unchanged.

    Returns whether none of its lines ever runs, as it had not begun, or the account has no such batch.
    """
    rows = await execute(database.durable, _CANCEL, {"id": batch_id, "account_id": account_id})
    return not any(has_begun for (has_begun,) in rows)


_FOLD = f"""
WITH old AS (
    DELETE FROM batch_tallies USING batches
    WHERE batches.id = batch_id
          AND (batch_tallies.created_at < now() - interval '{_FOLD_SECONDS} seconds' OR state IN {_FINAL})
    RETURNING batch_tallies.*
), folded AS (
    SELECT batch_id, {_SUMS}, sum(cost) AS cost FROM old GROUP BY batch_id
)
UPDATE batches SET {", ".join(f"{name} = batches.{name} + folded.{name}" for name in _AMOUNTS)},
                   cost = coalesce(batches.cost + folded.cost, batches.cost, folded.cost)
FROM folded WHERE batches.id = folded.batch_id
"""


async def fold_tallies(database: Database) -> None:
    """Fold old tallies, and all tallies of ended batches, into their batches' rows."""
    await execute(database.relaxed, _FOLD)


# Its tallies, parcels and webhooks go with it.
_FORGET = f"""
WITH old AS MATERIALIZED (
    SELECT id FROM batches
    WHERE id < %(before)s AND state IN {_FINAL}
          AND greatest(completed_at, failed_at, expired_at, cancelled_at) < now() - %(seconds)s * interval '1 second'
          AND NOT EXISTS (SELECT FROM jobs WHERE batch_id = batches.id)
    ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
DELETE FROM batches USING old WHERE batches.id = old.id RETURNING batches.id
"""


async def forget_batches(database: Database, *, seconds: float, limit: int = 500) -> int:
    """Delete up to `limit` batches that ended `seconds` ago and have no jobs left. Returns how many. Usage stays."""
    parameters = {"before": id_before(seconds, "batch"), "seconds": seconds, "limit": limit}
    return len(await execute(database.relaxed, _FORGET, parameters))
