"""Changes of tables that are in use, in migrations: nothing waits for long behind one that waits for its lock."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

from headrace.stores.failures import is_locked

# How long a statement waits for its lock: others wait behind it. Seconds until the next try.
_LOCK_TIMEOUT = "200ms"
_AGAIN_SECONDS = 0.5


def alter_briefly(statement: str) -> None:
    """Run a statement that needs a table for itself, in an `autocommit_block`, again and again until it succeeds.

    It waits for its lock for 200 ms at a time. In between, statements go on that would wait behind it, as for a dump of
    the database that takes an hour.
    """
    op.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT}'")
    while True:
        try:
            op.execute(statement)
        except sa.exc.DBAPIError as error:
            if not is_locked(error):
                raise
            time.sleep(_AGAIN_SECONDS)
        else:
            break
    op.execute("RESET lock_timeout")
