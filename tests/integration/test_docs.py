"""The SQL that pages tell operators to run."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCKS = [
    (page.name, sql)
    for page in sorted(DOCS.rglob("*.md"))
    for sql in re.findall(r"^```sql\n(.*?)^```$", page.read_text(), re.M | re.S)
    if "DETACH" not in sql  # it needs a month's partition, which `usage/test_partitions.py` makes
]


@pytest.mark.parametrize(("page", "sql"), BLOCKS, ids=[page for page, _ in BLOCKS])
def test_a_pages_sql_runs(page: str, sql: str, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        for statement in sql.split(";"):
            if statement.strip():
                connection.execute(statement.encode())
        connection.rollback()
