"""Connections by every form of `DATABASE_URL`, and what an operator reads where the database is of no use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql

from headrace.cli import main
from headrace.dev.postgres import EmbeddedPostgres
from headrace.dev.scratch import scratch_dir
from headrace.stores.database import Database, execute
from headrace.stores.migrate import migrate
from headrace.stores.schema import check_schema, current_revision, head_revision
from tests.integration.databases import create_database, fetch
from tests.service import Stores, free_port


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Database]:
    database = Database.connect(url, connections=1, **options)
    try:
        yield database
    finally:
        await database.close()


async def setting(database: Database, name: str) -> str:
    [(value,)] = await execute(database.durable, "SELECT current_setting(%(name)s)", {"name": name})
    return str(value)


def with_options(url: str, options: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{options}"


def socket_directory(url: str) -> str:
    return parse_qs(urlsplit(url).query)["host"][0]


async def test_a_session_has_its_settings_and_a_name(database_url: str) -> None:
    async with connected(database_url, part="worker") as database:
        assert await setting(database, "application_name") == "headrace worker"
        assert await setting(database, "statement_timeout") != "0"
        assert await setting(database, "synchronous_commit") == "on"
        [(relaxed,)] = await execute(database.relaxed, "SHOW synchronous_commit")
        assert relaxed == "off"


async def test_the_urls_own_options_stand(stores: Stores) -> None:
    url = create_database(stores.database_url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA app")
    url = with_options(url, "options=-csearch_path%3Dapp&application_name=mine")
    migrate(url)
    assert fetch(url, "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename IN ('jobs', 'alembic_version')") == [
        ("app",)
    ]
    async with connected(url, part="worker") as database:
        assert await current_revision(database) == head_revision()
        assert await setting(database, "search_path") == "app"
        assert await setting(database, "application_name") == "mine"
        assert await setting(database, "statement_timeout") != "0"


async def test_of_two_hosts_the_one_that_answers_is_taken(database_url: str) -> None:
    directory, name = socket_directory(database_url), urlsplit(database_url).path.lstrip("/")
    user = urlsplit(database_url).username
    host = directory.replace("/", "%2F")
    for url in (
        f"postgresql://{user}@127.0.0.1:{free_port()},{host}/{name}?target_session_attrs=read-write",
        f"postgresql://{user}@{host}/{name}",
        f"host={directory} user={user} dbname={name}",
    ):
        migrate(url)
        async with connected(url) as database:
            assert await current_revision(database) == head_revision()


async def test_of_two_hosts_the_one_that_takes_writes_is_taken(stores: Stores, database_url: str) -> None:
    name, user = urlsplit(database_url).path.lstrip("/"), urlsplit(database_url).username
    with scratch_dir() as directory, EmbeddedPostgres(directory / "postgres") as other:
        with psycopg.connect(other.url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            connection.execute("SELECT pg_reload_conf()")
        hosts = ",".join(socket_directory(url).replace("/", "%2F") for url in (other.url, database_url))
        url = f"postgresql://{user}@{hosts}/{name}?target_session_attrs=read-write"
        migrate(url)
        check_schema(url)
        async with connected(url) as database:
            assert await current_revision(database) == head_revision()
            assert await setting(database, "transaction_read_only") == "off"


def refusal(url: str) -> str:
    """Return what `headrace migrate` says, in its one line."""
    ended = CliRunner(env={"DATABASE_URL": url}).invoke(main, ["migrate"])
    assert ended.exit_code in {1, 2}
    assert isinstance(ended.exception, SystemExit)
    [line] = [line for line in ended.output.splitlines() if line.startswith("Error")]
    assert "DATABASE_URL" in line
    return line


def test_a_role_that_may_not_create_is_told(stores: Stores) -> None:
    url = create_database(stores.database_url)
    role = f"reader_{urlsplit(url).path.lstrip('/')}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        connection.execute("REVOKE CREATE ON SCHEMA public FROM public")
    parts = urlsplit(url)
    assert "permission denied for schema public" in refusal(f"postgresql://{role}@{parts.path}?{parts.query}")


def test_a_read_only_database_is_told(stores: Stores) -> None:
    url = with_options(create_database(stores.database_url), "options=-cdefault_transaction_read_only%3Don")
    assert "read-only transaction" in refusal(url)


def test_an_encoding_that_cannot_hold_every_text_is_told(stores: Stores) -> None:
    with psycopg.connect(stores.database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    assert "LATIN1" in refusal(urlsplit(stores.database_url)._replace(path="/latin").geturl())


@pytest.mark.parametrize("command", ["api", "worker", "scheduler", "dev"])
@pytest.mark.parametrize("url", ["http://u:hidden@h/", "redis://u:hidden@h/0?health_check_interval=30"])
def test_every_part_refuses_a_redis_url_in_one_line(database_url: str, command: str, url: str) -> None:
    environment = {"DATABASE_URL": database_url, "REDIS_URL": url, "HEADRACE_PORT": "0"}
    ended = CliRunner(env=environment).invoke(main, [command])
    [line] = ended.output.splitlines()
    assert line.startswith("Error: REDIS_URL")
    assert "hidden" not in line


@pytest.mark.parametrize("command", ["api", "worker", "scheduler", "migrate", "dev", "jobs list"])
def test_every_part_refuses_a_url_in_one_line(command: str) -> None:
    environment = {"DATABASE_URL": "mysql://u:hidden@h/db", "REDIS_URL": "redis://127.0.0.1:1/0", "HEADRACE_PORT": "0"}
    ended = CliRunner(env=environment).invoke(main, command.split())
    assert ended.output.splitlines() == ["Error: DATABASE_URL begins with mysql://, and must begin with postgresql://."]
