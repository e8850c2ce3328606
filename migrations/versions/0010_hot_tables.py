"""Settings of the tables that change all the time: vacuum them by how many rows changed, and leave room in their pages.

Autovacuum's own settings wait for a fifth of all rows. Without room in its page an update goes to another one, and then
has to go into every index too.
"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision: str | None = "0009"
branch_labels = None
depends_on = None

# Each end of a job leaves dead entries in the small indexes of queued and running jobs, which every claim and sweep
# reads. With Postgres's own settings a table of a million rows keeps 200,000 of them.
_BY_PART: dict[str, float] = {"autovacuum_vacuum_scale_factor": 0.02, "autovacuum_analyze_scale_factor": 0.02}
# In per cent, how full an insert makes a page. Of a job's updates those that extend its lease change no index: in full
# pages none of them stayed in its page, with this room half of all updates did, and the table became smaller by half.
_FILLFACTOR = 80
# Rows that are deleted soon after they came: the table is nearly empty, or should be.
_BY_COUNT: dict[str, float] = {"autovacuum_vacuum_scale_factor": 0, "autovacuum_vacuum_threshold": 2000}
_SETTINGS = {
    "jobs": {**_BY_PART, "fillfactor": _FILLFACTOR},
    "webhook_deliveries": _BY_PART,
    "idempotency_keys": _BY_PART,
    "job_deltas": _BY_COUNT,
    "batch_tallies": _BY_COUNT,
}


def upgrade() -> None:
    # Neither reads nor writes wait for this, and no row is written anew.
    for table, settings in _SETTINGS.items():
        op.execute(f"ALTER TABLE {table} SET ({', '.join(f'{name} = {value}' for name, value in settings.items())})")


def downgrade() -> None:
    for table, settings in _SETTINGS.items():
        op.execute(f"ALTER TABLE {table} RESET ({', '.join(settings)})")
