"""Rows that contradict themselves, and the constraint that refuses each."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from headrace.files.tables import CHUNK_BYTES
from headrace.ids import new_id
from headrace.jobs.rules import RULES
from headrace.usage.tables import AMOUNTS, COSTS
from tests.integration.job_rows import Owner

Values = Mapping[str, Any]
NOW = "2026-01-01T00:00:00+00:00"

QUEUED: Values = {"state": "queued"}
RUNNING: Values = {"state": "running", "attempt": 1, "lease_until": NOW, "worker": "w", "started_at": NOW}
COMPLETED: Values = {"state": "completed", "attempt": 1, "started_at": NOW, "finished_at": NOW, "response": "{}"}
FAILED: Values = {"state": "failed", "finished_at": NOW, "error": "{}"}
CANCELLED: Values = {**FAILED, "state": "cancelled"}
EXPIRED: Values = {**FAILED, "state": "expired"}
COUNTED: Values = {"prompt_tokens": 5, "completion_tokens": 3, "cached_tokens": 5, "reasoning_tokens": 3, "cost": 0}
CORRECTION: Values = {
    **COUNTED,
    "kind": "correction",
    "note": "why",
    "prompt_tokens": -5,
    "completion_tokens": -3,
    "cached_tokens": -5,
    "reasoning_tokens": -3,
    "cost": "-0.01",
}

LINE: Values = {"batch_id": "batch_1", "line": 1, "custom_id": "a", "tier": "batch"}

SOUND = [
    pytest.param("jobs", {**LINE, **QUEUED}, id="a batch's line"),
    pytest.param("jobs", {**LINE, **COMPLETED, "finished_in": 1}, id="a batch's line that has ended"),
    pytest.param("native_parcels", {}, id="a parcel"),
    pytest.param("files", {}, id="a file on its way in"),
    pytest.param("files", {"bytes": 0}, id="an empty file"),
    pytest.param("file_chunks", {}, id="a file's chunk"),
    pytest.param("batches", {}, id="a batch"),
    pytest.param("batches", {"state": "failed", "failed_at": NOW, "errors": "[]"}, id="an invalid batch"),
    pytest.param(
        "batches", {"state": "completed", "completed_at": NOW, "total": 2, "fed": 2, "completed": 2}, id="all"
    ),
    pytest.param("jobs", QUEUED, id="queued"),
    pytest.param("jobs", RUNNING, id="running"),
    pytest.param("jobs", COMPLETED, id="completed"),
    pytest.param("jobs", FAILED, id="failed before its first attempt"),
    pytest.param("jobs", CANCELLED, id="cancelled"),
    pytest.param("jobs", EXPIRED, id="expired"),
    pytest.param("jobs", {**COMPLETED, "deleted_at": NOW, "response": None, "request": None}, id="erased"),
    pytest.param("jobs", {**QUEUED, "attempt": 3, "retries": 2, "lost": 1}, id="every attempt failed or was lost"),
    pytest.param("job_deltas", {"first_seq": 1, "last_seq": 1}, id="one delta"),
    pytest.param("usage", COUNTED, id="all cached, all reasoning, no cost"),
    pytest.param("usage", {**COUNTED, "cost": None}, id="no price"),
    pytest.param("usage", CORRECTION, id="a correction that takes everything away"),
    pytest.param("usage_rollups", {}, id="a cell of a roll-up"),
    pytest.param("usage_latencies", {}, id="a cell of latencies"),
    pytest.param("usage_mark", {}, id="the mark"),
    pytest.param("api_keys", {"previous_hash": b"\2" * 32, "previous_expires_at": NOW}, id="a rotated key"),
    pytest.param("webhook_secrets", {}, id="a webhook's secret"),
    pytest.param("webhook_deliveries", {}, id="a webhook to be sent"),
    pytest.param("webhook_deliveries", {"state": "failed", "ended_at": NOW}, id="one that was not taken"),
    pytest.param("agents", {}, id="agent"),
    pytest.param("agent_versions", {}, id="an agent's version"),
    pytest.param("conversations", {}, id="a conversation"),
    pytest.param("conversation_items", {}, id="a conversation's item"),
    pytest.param("api_keys", {}, id="key"),
    pytest.param("accounts", {}, id="account"),
]

CONTRADICTIONS: list[tuple[str, str, Values]] = [
    ("jobs", "ck_jobs_state_known", {**QUEUED, "state": "paused", "finished_at": NOW}),
    ("jobs", "ck_jobs_tier_known", {"tier": "gold"}),
    ("jobs", "ck_jobs_format_known", {"format": "gemini"}),
    ("jobs", "ck_jobs_finished_at_of_final", {**QUEUED, "finished_at": NOW}),
    ("jobs", "ck_jobs_finished_at_of_final", {**RUNNING, "finished_at": NOW}),
    ("jobs", "ck_jobs_finished_at_of_final", {**COMPLETED, "finished_at": None}),
    ("jobs", "ck_jobs_finished_at_of_final", {**FAILED, "finished_at": None}),
    ("jobs", "ck_jobs_lease_of_running", {**QUEUED, "lease_until": NOW}),
    ("jobs", "ck_jobs_lease_of_running", {**COMPLETED, "lease_until": NOW}),
    ("jobs", "ck_jobs_lease_of_running", {**CANCELLED, "lease_until": NOW}),
    ("jobs", "ck_jobs_lease_of_running", {**RUNNING, "lease_until": None}),
    ("jobs", "ck_jobs_lease_of_running", {**RUNNING, "worker": None}),
    ("jobs", "ck_jobs_started_at_of_run", {**RUNNING, "started_at": None}),
    ("jobs", "ck_jobs_started_at_of_run", {**RUNNING, "attempt": 0}),
    ("jobs", "ck_jobs_started_at_of_run", {**COMPLETED, "started_at": None}),
    ("jobs", "ck_jobs_started_at_of_run", {**COMPLETED, "attempt": 0}),
    ("jobs", "ck_jobs_response_of_completed", {**COMPLETED, "response": None}),
    ("jobs", "ck_jobs_response_of_completed", {**QUEUED, "response": "{}"}),
    ("jobs", "ck_jobs_response_of_completed", {**RUNNING, "response": "{}"}),
    ("jobs", "ck_jobs_response_of_completed", {**FAILED, "response": "{}"}),
    ("jobs", "ck_jobs_response_of_completed", {**CANCELLED, "response": "{}", "deleted_at": NOW}),
    ("jobs", "ck_jobs_error_of_failed", {**FAILED, "error": None}),
    ("jobs", "ck_jobs_error_of_failed", {**CANCELLED, "error": None}),
    ("jobs", "ck_jobs_error_of_failed", {**EXPIRED, "error": None, "deleted_at": NOW}),
    ("jobs", "ck_jobs_error_of_failed", {**COMPLETED, "error": "{}"}),
    ("jobs", "ck_jobs_error_of_failed", {**RUNNING, "error": "{}"}),
    ("jobs", "ck_jobs_error_of_failed", {**QUEUED, "error": "{}"}),
    ("jobs", "ck_jobs_request_until_deleted", {"request": None}),
    ("jobs", "ck_jobs_request_until_deleted", {**COMPLETED, "request": None}),
    ("jobs", "ck_jobs_counts_add_up", {"attempt": -1}),
    ("jobs", "ck_jobs_counts_add_up", {"route": -1}),
    ("jobs", "ck_jobs_counts_add_up", {"attempt": 1, "retries": -1}),
    ("jobs", "ck_jobs_counts_add_up", {"attempt": 1, "lost": -1}),
    ("jobs", "ck_jobs_counts_add_up", {"delta_count": -1}),
    ("jobs", "ck_jobs_counts_add_up", {"attempt": 2, "retries": 1, "lost": 2}),
    ("jobs", "ck_jobs_agent_with_version", {"agent_version": 1}),
    ("jobs", "ck_jobs_line_of_batch", {**LINE, "line": None}),
    ("jobs", "ck_jobs_line_of_batch", {**LINE, "custom_id": None}),
    ("jobs", "ck_jobs_line_of_batch", {**LINE, "background": False}),
    ("jobs", "ck_jobs_finished_in_of_line", {**LINE, "finished_in": 1}),
    ("jobs", "ck_jobs_finished_in_of_line", {**LINE, **COMPLETED}),
    ("files", "ck_files_purpose_known", {"purpose": "vision"}),
    ("files", "ck_files_bytes_not_negative", {"bytes": -1}),
    ("file_chunks", "ck_file_chunks_data_in_bounds", {"data": b""}),
    ("file_chunks", "ck_file_chunks_data_in_bounds", {"data": b"x" * (CHUNK_BYTES + 1)}),
    ("batches", "ck_batches_state_known", {"state": "paused"}),
    ("batches", "ck_batches_end_has_time", {"state": "completed"}),
    ("batches", "ck_batches_end_has_time", {"cancelled_at": NOW}),
    ("batches", "ck_batches_end_has_time", {"state": "failed", "errors": "[]", "expired_at": NOW}),
    ("batches", "ck_batches_errors_of_failed", {"state": "failed", "failed_at": NOW}),
    ("batches", "ck_batches_errors_of_failed", {"errors": "[]"}),
    ("batches", "ck_batches_counts_add_up", {"total": 1, "fed": 2}),
    ("batches", "ck_batches_counts_add_up", {"total": 2, "fed": 1, "completed": 1, "failed": 1}),
    ("native_parcels", "ck_native_parcels_state_known", {"state": "lost"}),
    ("native_parcels", "ck_native_parcels_remote_id_of_submitted", {"state": "submitted"}),
    ("webhook_deliveries", "ck_webhook_deliveries_state_known", {"state": "lost", "ended_at": NOW}),
    ("webhook_deliveries", "ck_webhook_deliveries_ended_at_of_final", {"state": "delivered"}),
    ("webhook_deliveries", "ck_webhook_deliveries_ended_at_of_final", {"ended_at": NOW}),
    ("agents", "ck_agents_version_from_one", {"version": 0}),
    ("agent_versions", "ck_agent_versions_version_from_one", {"version": 0}),
    ("jobs", "ck_jobs_tried_is_list", {"tried": "{}"}),
    ("job_deltas", "ck_job_deltas_seq_in_order", {"first_seq": 0, "last_seq": 1}),
    ("job_deltas", "ck_job_deltas_seq_in_order", {"first_seq": 3, "last_seq": 2}),
    ("usage", "ck_usage_tokens_add_up", {**COUNTED, "prompt_tokens": -1, "cached_tokens": 0}),
    ("usage", "ck_usage_tokens_add_up", {**COUNTED, "completion_tokens": -1, "reasoning_tokens": 0}),
    ("usage", "ck_usage_tokens_add_up", {**COUNTED, "cached_tokens": -1}),
    ("usage", "ck_usage_tokens_add_up", {**COUNTED, "cached_tokens": 6}),
    ("usage", "ck_usage_tokens_add_up", {**COUNTED, "cache_write_tokens": -1}),
    ("usage", "ck_usage_tokens_add_up", {**COUNTED, "cache_write_tokens": 1}),
    ("usage", "ck_usage_tokens_add_up", {**COUNTED, "reasoning_tokens": -1}),
    ("usage", "ck_usage_tokens_add_up", {**COUNTED, "reasoning_tokens": 4}),
    ("usage", "ck_usage_cost_not_negative", {**COUNTED, "cost": "-0.0000000001"}),
    ("usage", "ck_usage_tokens_add_up", {**COUNTED, "prompt_audio_tokens": 6}),
    ("usage", "ck_usage_tokens_add_up", {**COUNTED, "completion_audio_tokens": 4}),
    ("usage", "ck_usage_kind_known", {**COUNTED, "kind": "guessed"}),
    ("usage", "ck_usage_note_of_correction", {**COUNTED, "note": "why"}),
    ("usage", "ck_usage_note_of_correction", {**CORRECTION, "note": None}),
    ("usage_rollups", "ck_usage_rollups_grain_known", {"grain": "week"}),
    ("usage_latencies", "ck_usage_latencies_grain_known", {"grain": "week"}),
    ("usage_latencies", "ck_usage_latencies_metric_known", {"metric": "patience"}),
    ("usage_mark", "ck_usage_mark_single_row", {"single": False}),
    ("deployment", "ck_deployment_single_row", {"single": False}),
    ("api_keys", "ck_api_keys_previous_hash_is_sha256", {"previous_hash": b"\0", "previous_expires_at": NOW}),
    ("api_keys", "ck_api_keys_previous_hash_ends", {"previous_hash": b"\0" * 32}),
    ("api_keys", "ck_api_keys_previous_hash_ends", {"previous_expires_at": NOW}),
    ("api_keys", "ck_api_keys_hash_is_sha256", {"hash": b"\0" * 31}),
    ("api_keys", "ck_api_keys_hash_is_sha256", {"hash": b"\0" * 33}),
    ("accounts", "ck_accounts_name_not_empty", {"name": ""}),
    ("conversations", "ck_conversations_position_not_negative", {"last_position": -1}),
    ("conversation_items", "ck_conversation_items_position_from_one", {"position": 0}),
    ("idempotency_keys", "ck_idempotency_keys_fingerprint_is_sha256", {"fingerprint": b"\0" * 31}),
]


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    with psycopg.connect(database_url) as connection:
        yield connection
        connection.rollback()


# By table: the column that names a row of another table, that table, and what its row has.
PARENTS: dict[str, tuple[str, str, Values]] = {
    "job_deltas": ("job_id", "jobs", QUEUED),
    "file_chunks": ("file_id", "files", {}),
    "native_parcels": ("batch_id", "batches", {}),
    "conversation_items": ("conversation_id", "conversations", {}),
    "agent_versions": ("agent_id", "agents", {}),
}


def sound_rows(owner: Owner) -> dict[str, Values]:
    """Return a sound row of each table, without the column that names its parent."""
    cell = {"view": "total", "grain": "hour", "account_id": owner.account_id, "start": NOW, "digest": uuid4()}
    return {
        "accounts": {"id": new_id("acct"), "name": secrets.token_hex(8)},
        "api_keys": {
            "id": new_id("key"),
            "account_id": owner.account_id,
            "name": "",
            "hash": secrets.token_bytes(32),
            "hint": "hr_",
        },
        "jobs": {
            "id": new_id("job"),
            "account_id": owner.account_id,
            "key_id": owner.key_id,
            "model": "fake",
            "request": "{}",
            "tier": "default",
            "background": True,
            "streamed": False,
            "deadline_at": NOW,
        },
        "files": {"id": new_id("file"), "account_id": owner.account_id, "purpose": "batch", "filename": "a.jsonl"},
        "file_chunks": {"number": 0, "data": b"x"},
        "batches": {
            "id": new_id("batch"),
            "account_id": owner.account_id,
            "key_id": owner.key_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "input_file_id": new_id("file"),
            "expires_at": NOW,
        },
        "native_parcels": {"id": new_id("parcel")},
        "usage_rollups": {**cell, **dict.fromkeys((*AMOUNTS, *COSTS), 0)},
        "usage_latencies": {**cell, "metric": "duration", "step": 1, "requests": 1},
        "usage_mark": {"transaction": 1, "metadata_keys": []},
        "deployment": {"redis_namespace": ""},
        "idempotency_keys": {
            "account_id": owner.account_id,
            "key": "a",
            "fingerprint": b"\0" * 32,
            "resource_id": new_id("job"),
        },
        "webhook_secrets": {"id": new_id("secret"), "account_id": owner.account_id},
        "webhook_deliveries": {
            "id": new_id("evt"),
            "account_id": owner.account_id,
            "url": "https://example.com/hook",
            "event": "batch.completed",
            "payload": "{}",
        },
        "agents": {"id": new_id("agent"), "account_id": owner.account_id},
        "agent_versions": {"version": 1, "definition": "{}"},
        "conversations": {"id": new_id("conv"), "account_id": owner.account_id},
        "conversation_items": {"position": 1, "id": "msg_1", "item": "{}"},
        "job_deltas": {"attempt": 1, "first_seq": 1, "last_seq": 1, "chunks": "{}"},
        "usage": {
            "job_id": new_id("job"),
            "attempt": 1,
            "kind": "counted",
            "account_id": owner.account_id,
            "model": "fake",
            "provider": "fake",
            "estimated": False,
        },
    }


def insert(connection: psycopg.Connection[Any], owner: Owner, table: str, values: Values) -> Values:
    """Insert a row that is sound but for `values`, and return it."""
    row = {**sound_rows(owner)[table], **values}
    if table in PARENTS:
        column, parent, given = PARENTS[table]
        if column not in row:
            row[column] = insert(connection, owner, parent, given)["id"]
    if row.get("batch_id") == LINE["batch_id"]:
        insert(connection, owner, "batches", {"id": row["batch_id"]})
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, row)),
        sql.SQL(", ").join(map(sql.Placeholder, row)),
    )
    connection.execute(statement, row)
    return row


@pytest.mark.parametrize(("table", "values"), SOUND)
def test_a_sound_row_is_taken(
    connection: psycopg.Connection[tuple[Any, ...]], owner: Owner, table: str, values: Values
) -> None:
    insert(connection, owner, table, values)


@pytest.mark.parametrize(
    ("table", "constraint", "values"),
    [pytest.param(*case, id=f"{case[1].removeprefix('ck_')}-{number}") for number, case in enumerate(CONTRADICTIONS)],
)
def test_a_row_that_contradicts_itself_is_refused(
    connection: psycopg.Connection[tuple[Any, ...]], owner: Owner, table: str, constraint: str, values: Values
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        insert(connection, owner, table, values)
    assert refused.value.diag.constraint_name == constraint


def test_every_check_is_tried(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    checks = connection.execute(
        "SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace"
    ).fetchall()
    rules = {f"ck_jobs_{name}" for name in RULES}
    assert {name for (name,) in checks} | rules == {constraint for _, constraint, _ in CONTRADICTIONS}


@pytest.mark.parametrize(
    ("table", "values", "constraint"),
    [
        pytest.param("accounts", {"name": "first"}, "uq_accounts_name", id="two accounts of a name"),
        pytest.param("api_keys", {"hash": b"\1" * 32}, "uq_api_keys_hash", id="two keys of a hash"),
        pytest.param("webhook_secrets", {}, "uq_webhook_secrets_current", id="two current secrets"),
    ],
)
def test_what_must_be_one_is_not_two(
    connection: psycopg.Connection[tuple[Any, ...]], owner: Owner, table: str, values: Values, constraint: str
) -> None:
    if table != "accounts":
        insert(connection, owner, table, values)
    with pytest.raises(psycopg.errors.UniqueViolation) as refused:
        insert(connection, owner, table, values)
    assert refused.value.diag.constraint_name == constraint


@pytest.mark.parametrize(
    ("table", "values", "constraint"),
    [
        ("jobs", {"account_id": "acct_0"}, "fk_jobs_key_id_account_id"),
        ("jobs", {"key_id": "key_0"}, "fk_jobs_key_id_account_id"),
        ("api_keys", {"account_id": "acct_0"}, "fk_api_keys_account_id"),
        ("job_deltas", {"job_id": "job_0"}, "fk_job_deltas_job_id"),
    ],
)
def test_a_row_belongs_to_something_that_exists(
    connection: psycopg.Connection[tuple[Any, ...]], owner: Owner, table: str, values: Values, constraint: str
) -> None:
    with pytest.raises(psycopg.errors.ForeignKeyViolation) as refused:
        insert(connection, owner, table, values)
    assert refused.value.diag.constraint_name == constraint
