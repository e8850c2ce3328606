"""Fewer foreign keys on the rows that each job writes: Postgres checks each key of each row by a query.

A job's key is now of the job's account, which covers the key to the account. A line is made from its batch's row, and
a batch with lines is not deleted. A row of the ledger copies a job's account.
"""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision: str | None = "0020"
branch_labels = None
depends_on = None

# How long a statement waits for its lock: jobs wait behind it. Seconds until the next try.
_LOCK_TIMEOUT = "200ms"
_AGAIN_SECONDS = 0.5
_NOT_LOCKED = "55P03"

_KEY_OF_ACCOUNT = "fk_jobs_key_id_account_id"
_OLD = (
    ("jobs", "account_id", "accounts"),
    ("jobs", "key_id", "api_keys"),
    ("jobs", "batch_id", "batches"),
    ("usage", "account_id", "accounts"),
)


def upgrade() -> None:
    op.create_unique_constraint(op.f("uq_api_keys_id_account_id"), "api_keys", ["id", "account_id"])
    with op.get_context().autocommit_block():
        # A migration that was interrupted may have done a part of this.
        _briefly(f"ALTER TABLE jobs DROP CONSTRAINT IF EXISTS {_KEY_OF_ACCOUNT}")
        _briefly(
            f"ALTER TABLE jobs ADD CONSTRAINT {_KEY_OF_ACCOUNT} FOREIGN KEY (key_id, account_id) "
            "REFERENCES api_keys (id, account_id) NOT VALID"
        )
        # It reads the whole table, and locks out no reader or writer.
        op.execute(f"ALTER TABLE jobs VALIDATE CONSTRAINT {_KEY_OF_ACCOUNT}")
        for table, column, _ in _OLD:
            _briefly(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS fk_{table}_{column}")


def downgrade() -> None:
    for table, column, target in _OLD:
        op.create_foreign_key(op.f(f"fk_{table}_{column}"), table, target, [column], ["id"])
    op.drop_constraint(op.f(_KEY_OF_ACCOUNT), "jobs")
    op.drop_constraint(op.f("uq_api_keys_id_account_id"), "api_keys")


def _briefly(statement: str) -> None:
    """Run a statement that needs a busy table for itself, in moments between which jobs go on, until it succeeds."""
    op.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT}'")
    while True:
        try:
            op.execute(statement)
        except sa.exc.OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != _NOT_LOCKED:
                raise
            time.sleep(_AGAIN_SECONDS)
        else:
            break
    op.execute("RESET lock_timeout")
