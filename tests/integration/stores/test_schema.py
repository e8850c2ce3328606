"""A part does not start on a schema that is older than it needs, and does on a later one."""

from __future__ import annotations

import psycopg
import pytest

from headrace.stores.migrate import migrate
from headrace.stores.schema import SchemaError, check_schema, head_revision, is_fit, known_revisions
from tests.integration.databases import create_database
from tests.service import Stores, free_port


def test_this_release_runs_on_its_own_schema_and_on_later_ones() -> None:
    assert is_fit(head_revision())
    assert is_fit("a revision of a later release")
    assert not is_fit(None)
    assert not any(is_fit(revision) for revision in known_revisions().keys() - {head_revision()})


def test_a_part_does_not_start_before_the_schema_is_migrated(stores: Stores) -> None:
    url = create_database(stores.database_url)
    with pytest.raises(SchemaError, match=f"no schema, .* needs {head_revision()}: run `headrace migrate`"):
        check_schema(url)
    migrate(url, "+7")
    with pytest.raises(SchemaError, match="revision 0007"):
        check_schema(url)
    migrate(url)
    check_schema(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'later'")
    check_schema(url)


def test_a_part_that_cannot_reach_postgres_is_left_to_say_so() -> None:
    check_schema(f"postgresql://headrace@127.0.0.1:{free_port()}/none")
