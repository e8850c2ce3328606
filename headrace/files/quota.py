"""How many files an account may have, and how large together."""

from __future__ import annotations

from headrace.errors import QuotaExceededError
from headrace.settings import Settings
from headrace.stores.database import Database, execute

# Uploads under way count with what is written of them. What has expired is about to be swept.
_USED = """
SELECT count(*) AS files, coalesce(sum(coalesce(bytes, (
    SELECT sum(octet_length(data)) FROM file_chunks WHERE file_id = files.id
))), 0)::bigint AS bytes
FROM files WHERE account_id = %(account_id)s AND (expires_at IS NULL OR expires_at > now())
"""


async def check_file_quota(
    database: Database, account_id: str, settings: Settings, *, files: int = 0, size: int = 0, param: str
) -> None:
    """Check that an account has room for `files` more files, or `size` more bytes, that are not stored yet.

    Files that batches wrote count as well, but a batch may always write its own.

    Raises:
        QuotaExceededError: The account has no such room; the error names `param`.
    """
    [used] = await execute(database.relaxed, _USED, {"account_id": account_id})
    for name, taken, limit in (
        ("files", used.files + files, settings.account_files),
        ("bytes of files", used.bytes + size, settings.account_file_bytes),
    ):
        if taken > limit:
            raise QuotaExceededError(
                f"This account may have {limit} {name}, and would have {taken}. Delete some, or let them expire.",
                param=param,
                code="file_quota_exceeded",
            )
