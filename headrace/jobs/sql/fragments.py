"""Parts that several statements on jobs share."""

from __future__ import annotations

import re
from collections.abc import Sequence

from headrace.formats.registry import CLIENT_FORMATS
from headrace.jobs.records import MovedJob
from headrace.jobs.state import State
from headrace.stores.connections import Row
from headrace.webhooks.queries import insert_job_deliveries

TRANSACTION = "pg_current_xact_id()::text::bigint"
"""The number of the transaction that ends a job, for `finished_in`."""

_KEPT_LOGS = ",".join(name for name, form in CLIENT_FORMATS.items() if form.KEEPS_LOG)
STARTS_OVER = f"format <> ALL ('{{{_KEPT_LOGS}}}')"
"""Whether a new attempt at a job starts its deltas over. If not, the deltas of all attempts are one log."""


def tally(moved: str) -> str:
    """Return one more CTE for a statement: it adds jobs that ended without an answer to their batches' tallies.

    `moved` names the CTE with the `batch_id` and the new `state` of each job.
    """
    return f""", tallied AS (
    INSERT INTO batch_tallies (batch_id, failed, cancelled)
    SELECT batch_id, count(*) FILTER (WHERE state <> 'cancelled'), count(*) FILTER (WHERE state = 'cancelled')
    FROM {moved} WHERE batch_id IS NOT NULL AND state NOT IN ('queued', 'running') GROUP BY batch_id
)"""


def tally_and_notify(moved: str) -> str:
    """Return the CTE of `tally`, and one that inserts the webhook deliveries of jobs that ended.

    `moved` also has the `id` and `account_id` of each job, and the columns of `JOB_FOR_WEBHOOK`.
    """
    return tally(moved) + insert_job_deliveries(moved)


def put_back(error: str) -> str:
    """Return the SET clauses that put a running job back in the queue, or end it if its cancellation was requested.

    `error` is SQL for the error of a job that ends.
    """
    return f"""state = CASE WHEN cancel_requested_at IS NULL THEN 'queued' ELSE 'cancelled' END,
                    finished_at = CASE WHEN cancel_requested_at IS NOT NULL THEN now() END,
                    finished_in = CASE WHEN cancel_requested_at IS NOT NULL THEN {TRANSACTION} END,
                    error = CASE WHEN cancel_requested_at IS NOT NULL THEN {error} END,
                    request = CASE WHEN deleted_at IS NULL THEN request END, lease_until = NULL, worker = NULL"""


def append_attempt(record: str) -> str:
    """Return the value of `tried` with the record of an attempt that ends now.

    `record` is SQL for the record without its `ended_at`, as `jsonb`; NULL appends nothing. An erased job keeps no
    records.
    """
    return f"""CASE WHEN jobs.deleted_at IS NULL
                         THEN jobs.tried || coalesce(
                             {record} || jsonb_build_object('ended_at', extract(epoch FROM now())), '[]')
                         ELSE '[]' END"""


def append_unfinished(status: str) -> str:
    """Return the SET clause that appends a record to `tried` for an attempt that its worker did not finish."""
    record = append_attempt(f"jsonb_build_object('attempt', jobs.attempt, 'status', '{status}')")
    return f"tried = {record}"


_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def storable(document: str) -> str:
    """Return a JSON text with U+FFFD in place of U+0000, which Postgres's `jsonb` cannot hold."""
    return _NUL.sub(r"\1\\ufffd", document) if "\\u0000" in document else document


def read_moved(rows: Sequence[Row]) -> list[MovedJob]:
    """Return the jobs that a statement moved, from its rows of `id`, `tier`, `state`, `attempt` and `origin`."""
    return [MovedJob(row.id, row.tier, State(row.state), row.attempt, row.origin) for row in rows]
