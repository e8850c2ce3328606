"""Statements that write rows of `jobs` stand in `headrace/jobs/sql/` alone, where all of a job's moves are read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HOME = ROOT / "headrace" / "jobs" / "sql"
# Migrations change the rows of an earlier release's schema.
PARTS = ("api", "console", "headrace", "scheduler", "worker")
WRITE = re.compile(
    r"""\b(?:UPDATE|INSERT\s+INTO|DELETE\s+FROM|MERGE\s+INTO|COPY)\s+(?:ONLY\s+)?"?jobs"?(?!\w)  # as SQL
        | \bjobs\s*\.\s*(?:update|insert|delete)\s*\(                                            # as SQLAlchemy has it
        | \b(?:update|insert|delete)\(\s*(?:tables\.)?jobs\s*[,)]
    """,
    re.IGNORECASE | re.VERBOSE,
)


def writers() -> set[Path]:
    """Return the modules that write rows of `jobs`."""
    sources = (path for part in PARTS for path in (ROOT / part).rglob("*.py"))
    return {path for path in sources if WRITE.search(path.read_text())}


def test_rows_of_jobs_are_written_in_one_package() -> None:
    found = writers()
    assert {path.relative_to(ROOT) for path in found if HOME not in path.parents} == set()
    assert {path.stem for path in found} >= {"accept", "cancel", "erase", "lines", "rescue", "run"}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE jobs SET state = 'failed'",
        "WITH one AS (INSERT INTO\n jobs (id) SELECT 1)",
        "DELETE FROM jobs USING old",
        "delete from only jobs",
        "jobs.update().values(state='failed')",
        "sa.delete(jobs)",
    ],
)
def test_a_statement_that_writes_is_found(statement: str) -> None:
    assert WRITE.search(statement)


@pytest.mark.parametrize("statement", ["SELECT FROM jobs FOR UPDATE OF jobs", "UPDATE batches", "insert(jobs: list)"])
def test_other_statements_are_passed_over(statement: str) -> None:
    assert not WRITE.search(statement)
