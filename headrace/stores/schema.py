"""The revision of the database's schema, and whether this release runs on it.

Migrations only expand, so a process runs on its own revision and on any later one. It refuses to start on an earlier
one. A column or table that is missing later counts as Postgres being unavailable.
"""

from __future__ import annotations

import functools
import re

import psycopg

from headrace import PARTS
from headrace.stores.database import Database, execute
from headrace.stores.database_url import connection_parameters

_VERSIONS = PARTS / "migrations" / "versions"
_REVISION = re.compile(
    r'^revision = "(\w+)"$.*?^down_revision: str \| None = (?:None|"(\w+)")$', re.MULTILINE | re.DOTALL
)
_TABLE = "SELECT to_regclass('alembic_version') IS NOT NULL"
_CURRENT = "SELECT version_num FROM alembic_version"


class SchemaError(Exception):
    """The schema is older than this release needs. The message says how to migrate it."""


@functools.cache
def known_revisions() -> dict[str, str | None]:
    """Return each revision that this release has a migration for, with the revision before it."""
    found = (_REVISION.search(path.read_text()) for path in _VERSIONS.glob("*.py"))
    return {match[1]: match[2] for match in found if match is not None}


@functools.cache
def head_revision() -> str:
    """Return the last revision that this release has a migration for."""
    [head] = known_revisions().keys() - known_revisions().values()
    return head


def is_fit(revision: str | None) -> bool:
    """Return whether this release runs on a schema of that revision: its own last one, or one that it does not know."""
    return revision == head_revision() or (revision is not None and revision not in known_revisions())


async def current_revision(database: Database) -> str | None:
    """Return the schema's revision, or None if it was never migrated."""
    if not (await execute(database.relaxed, _TABLE))[0][0]:
        return None
    rows = await execute(database.relaxed, _CURRENT)
    return rows[0][0] if rows else None


def check_schema(database_url: str) -> None:
    """Check the schema before a part starts. Does nothing while Postgres is unavailable: the part handles that.

    Raises:
        SchemaError: The schema is older than this release needs.
    """
    try:
        with psycopg.connect(**connection_parameters(database_url), autocommit=True) as connection:
            made = connection.execute(_TABLE).fetchone()
            row = connection.execute(_CURRENT).fetchone() if made is not None and made[0] else None
    except psycopg.OperationalError:
        return
    revision = None if row is None else str(row[0])
    if not is_fit(revision):
        has = "has no schema" if revision is None else f"has the schema of revision {revision}"
        raise SchemaError(f"The database {has}, this release needs {head_revision()}: run `headrace migrate` first.")
