"""Rules that every row of `jobs` keeps. One trigger checks them in place of CHECK constraints.

Postgres parses the text of every CHECK again for each statement that writes. For a single job that is a quarter of the
CPU of its insert, its claim and its end. A session keeps a trigger's function compiled. The function refuses a row as
a CHECK would: with the SQLSTATE of a check violation and the name of the rule.
"""

from __future__ import annotations

RULES = {
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
"""What is true of each row, by the name of the rule behind `ck_jobs_`. As in a CHECK, null counts as true."""

_BROKEN = "\n".join(f"        WHEN NOT ({rule}) THEN 'ck_jobs_{name}'" for name, rule in RULES.items())

CHECK_JOB = f"""
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
"""The function, once for a database."""

CHECK_EACH_JOB = """
CREATE CONSTRAINT TRIGGER ck_jobs_rules AFTER INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION check_job()
"""
