"""Migrations lock no table that is in use for long."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from tests.service import ROOT

# Migrations before it were released without.
FIRST = "0021"
MIGRATIONS = [path for path in sorted((ROOT / "migrations" / "versions").glob("0*.py")) if path.name >= FIRST]
# To validate a constraint locks no reader or writer out.
LOCKS = re.compile(
    r"^\s*(ALTER(?!.* VALIDATE )|DROP|TRUNCATE|LOCK|COMMENT|CREATE( \w+)* (TRIGGER|INDEX(?! CONCURRENTLY)))"
)


class Operations:
    """What a migration does by Alembic's operations, without a database."""

    def __init__(self) -> None:
        self.made: set[str] = set()
        """Tables, which have no reader yet."""
        self.locking: list[str] = []
        """What locks another table and does not do so by `alter_briefly`."""

    def get_context(self) -> Operations:
        return self

    def autocommit_block(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def f(self, name: str) -> str:
        return name

    def create_table(self, name: str, *_: object, **_options: object) -> None:
        self.made.add(name)

    def create_index(self, name: str, table: str, *_: object, **options: object) -> None:
        if table not in self.made and not options.get("postgresql_concurrently"):
            self.locking.append(f"CREATE INDEX {name}")

    def drop_index(self, name: str, *_: object, **options: object) -> None:
        if not options.get("postgresql_concurrently"):
            self.locking.append(f"DROP INDEX {name}")

    def execute(self, statement: object) -> None:
        if LOCKS.search(str(statement)):
            self.locking.append(str(statement))

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **_: self.locking.append(f"{name} {arguments}")


def load(path: Path) -> Any:
    """Return a migration, as Alembic loads it: by its path."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", MIGRATIONS, ids=lambda path: path.stem)
def test_a_migration_changes_tables_in_use_briefly(path: Path) -> None:
    migration, operations = load(path), Operations()
    migration.op = operations
    migration.alter_briefly = lambda _: None
    migration.upgrade()
    assert operations.locking == []


@pytest.mark.parametrize(
    ("statement", "locks"),
    [
        ("ALTER TABLE jobs ADD COLUMN x text", True),
        ("\nCREATE CONSTRAINT TRIGGER x AFTER INSERT ON jobs", True),
        ("DROP FUNCTION x CASCADE", True),
        ("CREATE INDEX x ON jobs (id)", True),
        ("CREATE UNIQUE INDEX CONCURRENTLY x ON jobs (id)", False),
        ("ALTER TABLE jobs VALIDATE CONSTRAINT x", False),
        ("CREATE FUNCTION x() RETURNS trigger", False),
    ],
)
def test_what_locks_a_table_is_told_from_what_does_not(statement: str, locks: bool) -> None:
    operations = Operations()
    operations.execute(statement)
    assert operations.locking == [statement] * locks
