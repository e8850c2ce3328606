"""Every statement on files. A file is hidden until it is complete, and a file in use cannot be deleted.

A second statement looks up whether a file is in use, after the first has locked the file's row. A single statement
would not see a batch that was created while it waited for the lock.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import sqlalchemy as sa

from headrace.files.tables import CHUNK_BYTES, files
from headrace.ids import id_before, new_id
from headrace.stores.connections import LONG_PATIENCE_SECONDS, Row
from headrace.stores.database import Database, execute
from headrace.stores.tables import unix_seconds

_VIEW = sa.select(
    files.c.id,
    files.c.purpose,
    files.c.filename,
    files.c.bytes,
    unix_seconds(files.c.created_at),
    unix_seconds(files.c.expires_at),
).where(files.c.bytes.is_not(None), sa.or_(files.c.expires_at.is_(None), files.c.expires_at > sa.func.now()))

_CREATE = """
INSERT INTO files (id, account_id, purpose, filename) VALUES (%(id)s, %(account_id)s, %(purpose)s, '')
ON CONFLICT (id) DO NOTHING
"""
_APPEND = """
INSERT INTO file_chunks (file_id, number, data) VALUES (%(file_id)s, %(number)s, %(data)b)
ON CONFLICT (file_id, number) DO NOTHING
"""
_COMPLETE = """
UPDATE files SET bytes = %(bytes)s, filename = %(filename)s,
                 expires_at = created_at + %(seconds)s * interval '1 second'
WHERE id = %(id)s AND bytes IS NULL
"""
_DISCARD = "DELETE FROM files WHERE id = %(id)s AND bytes IS NULL"
_READ = "SELECT data FROM file_chunks WHERE file_id = %(file_id)s AND number = %(number)s"
_LOCK = """
SELECT id FROM files WHERE id = %(id)s AND account_id = %(account_id)s AND bytes IS NOT NULL FOR UPDATE
"""
_IN_USE = """EXISTS (
    SELECT FROM batches
    WHERE input_file_id = files.id AND state IN ('validating', 'in_progress', 'finalizing', 'cancelling')
)"""
_USER = """
SELECT id FROM batches
WHERE input_file_id = %(id)s AND state IN ('validating', 'in_progress', 'finalizing', 'cancelling') LIMIT 1
"""
_DELETE = "DELETE FROM files WHERE id = %(id)s"
# An unfinished upload is kept for longer than the Idempotency-Key with which it may still be completed. A step takes as
# many files as chunks: most files have one chunk.
_LOCK_OLD = f"""
SELECT id FROM files
WHERE (expires_at <= now() OR (bytes IS NULL AND created_at < now() - interval '2 days')) AND NOT {_IN_USE}
ORDER BY id LIMIT %(chunks)s FOR UPDATE SKIP LOCKED
"""
_SWEEP = f"""
WITH gone AS MATERIALIZED (
    SELECT id FROM files WHERE id = ANY(%(ids)s::text[]) AND NOT {_IN_USE}
), old AS MATERIALIZED (
    SELECT file_id, number FROM file_chunks JOIN gone ON file_id = gone.id ORDER BY file_id, number LIMIT %(chunks)s
), emptied AS (
    DELETE FROM file_chunks AS chunk USING old WHERE chunk.file_id = old.file_id AND chunk.number = old.number
    RETURNING chunk.file_id
), deleted AS (
    DELETE FROM files USING gone
    WHERE files.id = gone.id AND (SELECT count(*) FROM file_chunks WHERE file_id = gone.id)
                                 = (SELECT count(*) FROM old WHERE file_id = gone.id)
    RETURNING files.id
)
SELECT file_id FROM emptied UNION ALL SELECT id FROM deleted
"""
_FORGET = """
WITH old AS MATERIALIZED (
    SELECT id FROM files
    WHERE id < %(before)s AND created_at < now() - %(seconds)s * interval '1 second'
          AND bytes IS NOT NULL AND (expires_at IS NULL OR expires_at > now())
          AND NOT EXISTS (SELECT FROM batches WHERE input_file_id = files.id
                          AND coalesce(greatest(completed_at, failed_at, expired_at, cancelled_at), 'infinity')
                              > now() - %(seconds)s * interval '1 second')
    ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE files SET expires_at = now() FROM old WHERE files.id = old.id RETURNING files.id
"""

# A file that was written for a batch is spare if the batch has ended with another file.
_EXPIRE_SPARE = """
WITH spare AS (
    SELECT files.id FROM files JOIN batches ON batches.account_id = files.account_id
        AND batches.id = substring(filename FROM '^(batch_.+)_(?:output|error)[.]jsonl$')
    WHERE purpose = 'batch_output' AND bytes IS NOT NULL AND (files.expires_at IS NULL OR files.expires_at > now())
          AND state IN ('completed', 'failed', 'expired', 'cancelled')
          AND files.id IS DISTINCT FROM output_file_id AND files.id IS DISTINCT FROM error_file_id
    LIMIT %(limit)s
)
UPDATE files SET expires_at = now() FROM spare WHERE files.id = spare.id RETURNING files.id
"""


class FileWriter:
    """Writes a file from pieces of any size. `close` makes it visible. The writer buffers less than a chunk."""

    def __init__(self, database: Database, *, account_id: str, purpose: str) -> None:
        """Choose the file's id. The first chunk creates its row."""
        self.file_id = new_id("file")
        self.size = 0
        self._database = database
        self._row = {"id": self.file_id, "account_id": account_id, "purpose": purpose}
        self._buffer = bytearray()
        self._number = 0

    async def write(self, piece: bytes) -> None:
        """Append to the file."""
        self.size += len(piece)
        self._buffer += piece
        while len(self._buffer) >= CHUNK_BYTES:
            chunk = bytes(self._buffer[:CHUNK_BYTES])
            del self._buffer[:CHUNK_BYTES]
            await self._append(chunk)

    async def flush(self) -> None:
        """Write the rest of the file, which stays hidden."""
        if self._buffer:
            await self._append(bytes(self._buffer))
            self._buffer.clear()
        if self._number == 0:
            await self._create()

    async def close(self, *, filename: str, seconds: int | None = None, file_id: str | None = None) -> None:
        """Write the rest and make the file visible. It expires `seconds` after its creation, or never.

        With the `file_id` of another file that was flushed with the same content, that file becomes visible instead.
        """
        await self.flush()
        parameters = {"id": file_id or self.file_id, "bytes": self.size, "filename": filename, "seconds": seconds}
        await execute(self._database.durable, _COMPLETE, parameters)

    async def discard(self) -> None:
        """Delete what was written of a file that stays unfinished."""
        await execute(self._database.relaxed, _DISCARD, {"id": self.file_id})

    async def _append(self, chunk: bytes) -> None:
        if self._number == 0:
            await self._create()
        parameters = {"file_id": self.file_id, "number": self._number, "data": chunk}
        await execute(self._database.relaxed, _APPEND, parameters)
        self._number += 1

    async def _create(self) -> None:
        await execute(self._database.relaxed, _CREATE, self._row)


async def find_file(database: Database, file_id: str, account_id: str) -> Row | None:
    """Return an account's file, or None if the account has no such file."""
    rows = await execute(database.relaxed, _VIEW.where(files.c.id == file_id, files.c.account_id == account_id))
    return rows[0] if rows else None


async def list_files(
    database: Database, account_id: str, *, purpose: str | None, after: str | None, limit: int, descending: bool
) -> Sequence[Row]:
    """Return up to `limit` of an account's files past the file `after`, in order of creation."""
    query = _VIEW.where(files.c.account_id == account_id)
    if purpose is not None:
        query = query.where(files.c.purpose == purpose)
    if after is not None:
        query = query.where(files.c.id < after if descending else files.c.id > after)
    return await execute(database.relaxed, query.order_by(files.c.id.desc() if descending else files.c.id).limit(limit))


async def delete_file(database: Database, file_id: str, account_id: str) -> tuple[bool, str | None]:
    """Delete a file. Returns whether the account has it, and the unfinished batch that still needs it, if any."""
    async with database.durable.transaction("READ COMMITTED") as transaction:
        if not await execute(transaction, _LOCK, {"id": file_id, "account_id": account_id}):
            return False, None
        if users := await execute(transaction, _USER, {"id": file_id}):
            return True, users[0].id
        await execute(transaction, _DELETE, {"id": file_id})
    return True, None


async def read_file(
    database: Database, file_id: str, *, start: int = 0, end: int | None = None
) -> AsyncGenerator[bytes, None]:
    """Yield the bytes from `start` to just before `end`, a chunk at a time, until the file ends or is deleted."""
    number, skip = divmod(start, CHUNK_BYTES)
    left = None if end is None else end - start
    while left is None or left > 0:
        rows = await execute(database.relaxed, _READ, {"file_id": file_id, "number": number})
        if not rows:
            return
        piece: bytes = bytes(rows[0][0])[skip:] if skip else bytes(rows[0][0])
        del rows  # else the whole chunk stays in memory beside its part
        if left is not None:
            piece = piece[:left]
            left -= len(piece)
        yield piece
        number, skip = number + 1, 0


async def sweep_files(database: Database, *, chunks: int = 100) -> int:
    """Delete up to `chunks` chunks of files that have expired, or whose upload broke off two days ago.

    A file goes with its last chunk. Returns how many rows were deleted: at least `chunks` if more files may be left.
    """
    async with database.relaxed.transaction("READ COMMITTED") as transaction:
        ids = [row.id for row in await execute(transaction, _LOCK_OLD, {"chunks": chunks})]
        return len(await execute(transaction, _SWEEP, {"ids": ids, "chunks": chunks})) if ids else 0


async def forget_files(database: Database, *, seconds: float, limit: int = 500) -> int:
    """Let up to `limit` files expire that were created `seconds` ago. Returns how many.

    A file that an unfinished batch reads, or that a batch read until more recently, is kept. A batch's output counts
    from its own creation, at the batch's end.
    """
    parameters = {"before": id_before(seconds, "file"), "seconds": seconds, "limit": limit}
    return len(await execute(database.relaxed, _FORGET, parameters))


async def expire_spare_outputs(database: Database, *, limit: int = 500) -> int:
    """Let output files expire that a scheduler wrote before it died, and the next wrote anew. Returns how many.

    Only earlier releases leave such files: now the statement that ends a batch makes its files visible. The statement
    reads every file's row.
    """
    rows = await execute(database.relaxed, _EXPIRE_SPARE, {"limit": limit}, patience_seconds=LONG_PATIENCE_SECONDS)
    return len(rows)
