"""Connections to Postgres: two engines of autocommitted statements, and the schema's migrations.

Every write of Headrace is one statement, so a transaction is one round trip and there is no session to keep. What must
not be lost goes through `durable`; what only repeats work when it is lost (claims, heartbeats, delta segments) goes
through `relaxed`, whose commits do not wait for the disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

Row = sa.Row[*tuple[Any, ...]]

# Half-open connections are noticed in about ten seconds rather than in the kernel's two hours.
_CONNECT_ARGS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

_MIGRATIONS = Path(__file__).parent.parent / "migrations"


def engine_url(database_url: str) -> sa.URL:
    """Return the URL with psycopg as its driver; `postgresql://…` and `postgres://…` are both understood."""
    url = sa.make_url(database_url.replace("postgres://", "postgresql://", 1))
    return url.set(drivername="postgresql+psycopg")


@dataclass(frozen=True, slots=True)
class Database:
    """The two engines of a process."""

    durable: AsyncEngine
    relaxed: AsyncEngine

    @classmethod
    def connect(cls, database_url: str, *, connections: int = 16) -> Database:
        """Return engines that open at most `connections` connections each, when they are first needed."""

        def engine(**options: str) -> AsyncEngine:
            settings = " ".join(f"-c {name}={value}" for name, value in options.items())
            return create_async_engine(
                engine_url(database_url),
                isolation_level="AUTOCOMMIT",
                hide_parameters=True,  # a prompt has no place in a log
                pool_size=connections,
                max_overflow=0,
                pool_timeout=10,
                pool_use_lifo=True,
                connect_args={**_CONNECT_ARGS, "options": settings},
            )

        return cls(
            durable=engine(statement_timeout="30s"), relaxed=engine(statement_timeout="30s", synchronous_commit="off")
        )

    async def close(self) -> None:
        """Close every connection."""
        await self.durable.dispose()
        await self.relaxed.dispose()


async def execute(
    engine: AsyncEngine, statement: str | sa.Executable, parameters: Mapping[str, Any] | None = None
) -> Sequence[Row]:
    """Run one statement, SQLAlchemy's or a text in psycopg's parameter style, and return its rows if it has any.

    It is run again, once, when its connection turns out to be dead: after a restart of Postgres every pooled one is. So
    a statement may have been done before, and each of ours does no harm the second time.

    Raises:
        sqlalchemy.exc.DBAPIError: Postgres refused it or is away.
        sqlalchemy.exc.TimeoutError: Every connection is taken.
    """
    try:
        return await _execute(engine, statement, parameters)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
    return await _execute(engine, statement, parameters)


async def _execute(
    engine: AsyncEngine, statement: str | sa.Executable, parameters: Mapping[str, Any] | None
) -> Sequence[Row]:
    async with engine.connect() as connection:
        if isinstance(statement, str):
            result = await connection.exec_driver_sql(statement, dict(parameters or {}))
        else:
            result = await connection.execute(statement, parameters)
        return result.all() if result.returns_rows else []


def _alembic(database_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["url"] = engine_url(database_url)
    return config


def migrate(database_url: str, revision: str = "head") -> None:
    """Bring the schema to `revision`, up or down. Several may run at once: one migrates, the others wait for it."""
    config = _alembic(database_url)
    if revision == "head" or revision.startswith("+"):
        command.upgrade(config, revision)
    else:
        command.downgrade(config, revision)


def head_revision() -> str:
    """Return the revision that this code expects the schema to have."""
    head = ScriptDirectory(str(_MIGRATIONS)).get_current_head()
    assert head is not None
    return head


async def current_revision(database: Database) -> str | None:
    """Return the revision that the schema has, or None if it was never migrated."""
    found = await execute(database.relaxed, "SELECT to_regclass('alembic_version') IS NOT NULL")
    if not found[0][0]:
        return None
    rows = await execute(database.relaxed, "SELECT version_num FROM alembic_version")
    return rows[0][0] if rows else None
