"""Faults that take several steps. Each is a generator, which yields while it waits and ends once all is mended."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, LiteralString

import psycopg

from tests.service import Process

Attempts = dict[tuple[str, int], int]
"""The process id of the worker that holds an attempt, by job and number."""

# Seconds until there is an attempt that has told its readers nothing yet: with clients about, there soon is.
_MOMENT_SECONDS = 10.0
# Seconds until the attempts of frozen workers are put back: a lease, a sweep, and as much again on a busy machine.
_RESCUE_SECONDS = 40.0
# Seconds that a worker has to itself after it woke, before the next one wakes.
_ALONE_SECONDS = 0.5
# Seconds that a lock on a table may wait for those that have it.
_LOCK_SECONDS = 30
# Seconds of a failover in which no server takes writes.
_READ_ONLY_SECONDS = 4.0
# Seconds that the service has to find the new primary, once there is one.
_FOUND_SECONDS = 8.0
# Steps go on in turns: one that waited for a lock of another would wait for ever.
NO_WAIT = "-c lock_timeout=100ms"


class NotMendedError(Exception):
    """The service did not come back although the broken part is whole again."""


def wake_after_rescue(database_url: str, workers: Mapping[str, Process]) -> Iterator[None]:
    """Freeze all workers, and wake one when its attempt is void and none has begun the next.

    It holds a whole answer or a stream's first deltas by then, which it must keep to itself.
    """
    held: Attempts = {}
    with psycopg.connect(database_url, autocommit=True, options=NO_WAIT) as connection:
        over = time.monotonic() + _MOMENT_SECONDS
        while not (held := _silent_attempts(connection)) and time.monotonic() < over:
            yield
        for worker in workers.values():
            worker.signal(signal.SIGSTOP)
        try:
            # Some ended between the look and the freeze.
            held = {attempt: pid for attempt, pid in _silent_attempts(connection).items() if attempt in held}
            over = time.monotonic() + _RESCUE_SECONDS
            while held and not _rescued(connection, held) and time.monotonic() < over:
                yield
            holders = set(_rescued(connection, held).values())
            for worker in sorted(workers.values(), key=lambda worker: worker.pid not in holders):
                worker.signal(signal.SIGCONT)
                yield from _pause(_ALONE_SECONDS)
        finally:
            for worker in workers.values():
                worker.signal(signal.SIGCONT)


def _silent_attempts(connection: psycopg.Connection) -> Attempts:
    """Return the attempts at streams before their first delta."""
    rows = _look(
        connection,
        "SELECT id, attempt, split_part(worker, ':', 2)::int FROM jobs"
        " WHERE state = 'running' AND first_token_at IS NULL AND batch_id IS NULL",
    )
    return {(job_id, attempt): pid for job_id, attempt, pid in rows}


def _rescued(connection: psycopg.Connection, held: Attempts) -> Attempts:
    """Return those of the attempts that were put back."""
    query = "SELECT id, attempt FROM jobs WHERE state = 'queued' AND id = ANY(%s)"
    rows = _look(connection, query, [job_id for job_id, _ in held])
    return {attempt: held[attempt] for attempt in map(tuple, rows) if attempt in held}


def _look(connection: psycopg.Connection, query: LiteralString, *parameters: object) -> list[Any]:
    """Return the rows of a question about jobs, none while another step has locked the table."""
    try:
        return connection.execute(query, parameters).fetchall()
    except psycopg.errors.LockNotAvailable:
        return []


def lock_jobs(database_url: str, seconds: float) -> Iterator[None]:
    """Lock the table of jobs against everyone, as a migration or an operator's mistake does."""
    with psycopg.connect(database_url) as connection:
        connection.execute(f"SET lock_timeout = '{_LOCK_SECONDS}s'".encode())
        connection.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        yield from _pause(seconds)
        connection.rollback()


def fail_over(database_url: str, seconds: float) -> Iterator[None]:
    """Fail over behind one address: every connection is kept, and its server takes no writes any more.

    For a while there is no other one; then new connections reach a primary, and old ones still do not.

    Raises:
        NotMendedError: No job was accepted, or none ended, long after there was a primary again.
    """
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        primary_since = _now(connection)
        try:
            connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            connection.execute("SELECT pg_reload_conf()")
            yield from _pause(_READ_ONLY_SECONDS)
            # A role's setting is a new session's alone, and there it stands above the server's.
            connection.execute("ALTER ROLE CURRENT_USER SET default_transaction_read_only = off")
            primary_since = _now(connection)
            yield from _pause(_FOUND_SECONDS + seconds)
            [(accepted, ended)] = connection.execute(
                "SELECT count(*) FILTER (WHERE created_at > since), count(*) FILTER (WHERE finished_at > since)"
                " FROM jobs, (SELECT %s + make_interval(secs => %s) AS since) AS found",
                [primary_since, _FOUND_SECONDS],
            ).fetchall()
        finally:
            connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            connection.execute("ALTER ROLE CURRENT_USER RESET default_transaction_read_only")
            connection.execute("SELECT pg_reload_conf()")
        # Sessions of meanwhile have the role's setting: the next failover would not reach them.
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND backend_start >= %s",
            [primary_since],
        )
    if not accepted or not ended:
        raise NotMendedError(
            f"{_FOUND_SECONDS:g} to {_FOUND_SECONDS + seconds:.0f} s after a failover there was a primary,"
            f" {accepted} jobs were accepted and {ended} ended"
        )


def _now(connection: psycopg.Connection) -> datetime:
    [(now,)] = connection.execute("SELECT clock_timestamp()").fetchall()
    assert isinstance(now, datetime)
    return now


def _pause(seconds: float) -> Iterator[None]:
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        yield
