"""Statements on the lines of a batch that have ended, in the order of the input and in that of their ends."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.stores.connections import Row
from headrace.stores.database import Database, execute

_RESULTS = """
SELECT jobs.id, line, finished_in, custom_id, jobs.state, response, error,
       deadline_at >= expires_at AS whole_window, cancelling_at IS NOT NULL AS whole_cancelled
FROM jobs JOIN batches ON batches.id = batch_id
WHERE batch_id = %(batch_id)s
"""
# Answers are of any size, so a page also ends by its bytes. Postgres keeps the length of a text apart from it, and does
# not read the answers behind the cut.
_SIZED = "SELECT *, coalesce(octet_length(response), 0) + coalesce(octet_length(error), 0) AS bytes"
# A page names its last line instead of a limit, as Postgres may take a new batch for a small one: it would read and
# sort all lines that are left for each page.
_IN_ORDER_OF_LINES = f"""
SELECT * FROM (
    SELECT *, sum(bytes) OVER (ORDER BY line ROWS UNBOUNDED PRECEDING) - bytes AS before
    FROM ({_SIZED}
          FROM ({_RESULTS} AND line > %(after)s AND line <= %(last)s AND finished_in IS NOT NULL) AS ended
         ) AS sized
) AS page
WHERE before < %(bytes)s ORDER BY line
"""
# An open transaction may have a lower number than one that has ended. A reader continues from its last line, so it gets
# only the lines of transactions before every open one, and misses none. A row with the number of a future transaction
# comes from the database from which this one was restored.
_ENDS = (
    _RESULTS
    + """
AND (finished_in, line) > (SELECT coalesce(max(finished_in), -9223372036854775808), coalesce(max(line), 0) FROM jobs
                           WHERE id = %(after)s AND batch_id = %(batch_id)s)
AND (finished_in < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
     OR finished_in >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint)
ORDER BY finished_in, line LIMIT %(limit)s + 1
"""
)
# `found` tells whether lines are left behind the cut.
_IN_ORDER_OF_ENDS = f"""
SELECT * FROM (
    SELECT *, count(*) OVER () AS found,
           sum(bytes) OVER (ORDER BY finished_in, line ROWS UNBOUNDED PRECEDING) - bytes AS before
    FROM ({_SIZED}
          FROM ({_ENDS}) AS ended
         ) AS sized
) AS page
WHERE before < %(bytes)s ORDER BY finished_in, line LIMIT %(limit)s
"""


async def read_lines(database: Database, batch_id: str, *, after: int, last: int, most_bytes: int) -> Sequence[Row]:
    """Return the lines that have ended, in order of the input, past the one numbered `after`, and up to `last`.

    The page ends with the line with which its answers and errors come to `most_bytes`.
    """
    parameters = {"batch_id": batch_id, "after": after, "last": last, "bytes": most_bytes}
    return await execute(database.relaxed, _IN_ORDER_OF_LINES, parameters)


async def list_ended(
    database: Database, batch_id: str, *, after: str | None, limit: int, most_bytes: int
) -> tuple[Sequence[Row], bool]:
    """Return up to `limit` lines that have ended, past the one whose job is `after`, and whether there are more.

    They are in order of their ends. The page ends with the line with which its answers and errors come to `most_bytes`.
    """
    parameters = {"batch_id": batch_id, "after": after, "limit": limit, "bytes": most_bytes}
    rows = await execute(database.relaxed, _IN_ORDER_OF_ENDS, parameters)
    return rows, bool(rows) and rows[0].found > len(rows)


async def has_line(database: Database, batch_id: str, job_id: str) -> bool:
    """Return whether a job is a line of the batch."""
    query = "SELECT id FROM jobs WHERE id = %(id)s AND batch_id = %(batch_id)s"
    return bool(await execute(database.relaxed, query, {"id": job_id, "batch_id": batch_id}))
