"""What a client may change of a job that has ended."""

from __future__ import annotations

from headrace.stores.database import Database, execute

_LABEL = """
UPDATE jobs SET metadata = %(metadata)s::jsonb
WHERE id = %(id)s AND account_id = %(account_id)s AND state = 'completed' AND stored AND deleted_at IS NULL
RETURNING id
"""


async def label_job(database: Database, job_id: str, account_id: str, metadata: str | None) -> bool:
    """Give a job other metadata, as JSON, in place of all it had. Usage keeps the metadata that the job ran with.

    Returns False if the account has no such job, or one without an answer that is stored.
    """
    parameters = {"id": job_id, "account_id": account_id, "metadata": metadata}
    return bool(await execute(database.durable, _LABEL, parameters))
