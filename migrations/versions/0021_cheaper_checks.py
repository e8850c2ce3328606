"""Cheaper checks of the rows that each job writes.

A trigger does what the CHECKs of `jobs` did: Postgres reads the text of each CHECK anew for each statement.

There are fewer foreign keys, as Postgres checks each key of each row by a query. A job's key is now of the job's
account, which covers the key to the account. A line is made from its batch's row, and a batch with lines is not
deleted. A row of the ledger copies a job's account.
"""

from __future__ import annotations

from alembic import op

from headrace.stores.brief_locks import alter_briefly

revision = "0021"
down_revision: str | None = "0020"
branch_labels = None
depends_on = None

_KEY_OF_ACCOUNT = "fk_jobs_key_id_account_id"
_KEYS_AND_ACCOUNTS = "uq_api_keys_id_account_id"
_OLD = (
    ("jobs", "account_id", "accounts"),
    ("jobs", "key_id", "api_keys"),
    ("jobs", "batch_id", "batches"),
    ("usage", "account_id", "accounts"),
)

_RULES = {
    "state_known": "NEW.state IN ('queued', 'running', 'completed', 'failed', 'cancelled', 'expired')",
    "format_known": "NEW.format IN ('chat', 'responses', 'messages')",
    "tier_known": "NEW.tier IN ('priority', 'default', 'flex', 'batch')",
    "finished_at_of_final": "(NEW.state IN ('queued', 'running')) = (NEW.finished_at IS NULL)",
    "lease_of_running": "(NEW.state = 'running') = (NEW.lease_until IS NOT NULL)"
    " AND (NEW.state <> 'running' OR NEW.worker IS NOT NULL)",
    "started_at_of_run": "NEW.state NOT IN ('running', 'completed') OR NEW.attempt > 0 AND NEW.started_at IS NOT NULL",
    "response_of_completed": "CASE NEW.state WHEN 'completed' THEN NEW.response IS NOT NULL"
    " OR NEW.deleted_at IS NOT NULL ELSE NEW.response IS NULL END",
    "error_of_failed": "(NEW.state IN ('failed', 'cancelled', 'expired')) = (NEW.error IS NOT NULL)",
    "request_until_deleted": "NEW.request IS NOT NULL OR NEW.deleted_at IS NOT NULL",
    "counts_add_up": "NEW.route >= 0 AND NEW.retries >= 0 AND NEW.lost >= 0 AND NEW.delta_count >= 0"
    " AND NEW.attempt >= NEW.retries + NEW.lost",
    "agent_with_version": "(NEW.agent_id IS NULL) = (NEW.agent_version IS NULL)",
    "tried_is_list": "jsonb_typeof(NEW.tried) = 'array'",
    "line_of_batch": "(NEW.batch_id IS NULL) = (NEW.line IS NULL) AND (NEW.batch_id IS NULL) = (NEW.custom_id IS NULL)"
    " AND (NEW.batch_id IS NULL OR NEW.background)",
    "finished_in_of_line": "NEW.batch_id IS NULL OR (NEW.finished_at IS NULL) = (NEW.finished_in IS NULL)",
}

_BROKEN = "\n".join(f"        WHEN NOT ({rule}) THEN 'ck_jobs_{name}'" for name, rule in _RULES.items())

_CHECK_JOB = f"""
CREATE FUNCTION check_job() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    broken text := CASE
{_BROKEN}
    END;
BEGIN
    IF broken IS NOT NULL THEN
        RAISE check_violation USING
            MESSAGE = 'new row for relation "jobs" violates check constraint "' || broken || '"',
            SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME, CONSTRAINT = broken;
    END IF;
    RETURN NULL;
END $$
"""

_CHECK_EACH_JOB = """
CREATE CONSTRAINT TRIGGER ck_jobs_rules AFTER INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION check_job()
"""


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # A migration that was interrupted may have done a part of this.
        alter_briefly(f"ALTER TABLE jobs DROP CONSTRAINT IF EXISTS {_KEY_OF_ACCOUNT}")
        alter_briefly(f"ALTER TABLE api_keys DROP CONSTRAINT IF EXISTS {_KEYS_AND_ACCOUNTS}")
        alter_briefly(f"ALTER TABLE api_keys ADD CONSTRAINT {_KEYS_AND_ACCOUNTS} UNIQUE (id, account_id)")
        alter_briefly(
            f"ALTER TABLE jobs ADD CONSTRAINT {_KEY_OF_ACCOUNT} FOREIGN KEY (key_id, account_id) "
            "REFERENCES api_keys (id, account_id) NOT VALID"
        )
        # It reads the whole table, and locks out no reader or writer.
        op.execute(f"ALTER TABLE jobs VALIDATE CONSTRAINT {_KEY_OF_ACCOUNT}")
        for table, column, _ in _OLD:
            alter_briefly(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS fk_{table}_{column}")
        alter_briefly("DROP FUNCTION IF EXISTS check_job CASCADE")  # and the trigger of `jobs`
        op.execute(_CHECK_JOB)
        alter_briefly(_CHECK_EACH_JOB)
        alter_briefly("ALTER TABLE jobs " + ", ".join(f"DROP CONSTRAINT IF EXISTS ck_jobs_{rule}" for rule in _RULES))


def downgrade() -> None:
    for name, rule in _RULES.items():
        op.create_check_constraint(op.f(f"ck_jobs_{name}"), "jobs", rule.replace("NEW.", ""))
    op.execute("DROP FUNCTION check_job CASCADE")
    for table, column, target in _OLD:
        op.create_foreign_key(op.f(f"fk_{table}_{column}"), table, target, [column], ["id"])
    op.drop_constraint(op.f(_KEY_OF_ACCOUNT), "jobs")
    op.drop_constraint(op.f(_KEYS_AND_ACCOUNTS), "api_keys")
