"""A client changes the metadata of a job that has ended."""

from __future__ import annotations

from headrace.stores.database import Database, execute

_LABEL = """
UPDATE jobs SET metadata = %(metadata)s::jsonb
WHERE id = %(id)s AND account_id = %(account_id)s AND state = 'completed' AND stored AND deleted_at IS NULL
RETURNING id
"""


async def label_job(database: Database, job_id: str, account_id: str, metadata: str | None) -> bool:
    """Replace a job's metadata, as JSON. Its usage keeps the metadata that the job ran with.

    Returns False if the account has no such job, or the job has no stored answer.
    """
    parameters = {"id": job_id, "account_id": account_id, "metadata": metadata}
    return bool(await execute(database.durable, _LABEL, parameters))
