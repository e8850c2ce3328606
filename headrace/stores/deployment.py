"""What is particular to one deployment: a single row in its database, which holds its namespace in Redis."""

from __future__ import annotations

import psycopg
import sqlalchemy as sa

from headrace.settings import Settings
from headrace.stores.database import Database, execute
from headrace.stores.database_url import connection_parameters
from headrace.stores.tables import metadata

deployment = sa.Table(
    "deployment",
    metadata,
    sa.Column("single", sa.Boolean, primary_key=True, server_default="true"),
    sa.Column(
        "redis_namespace", sa.Text, nullable=False, comment="What the deployment's names in Redis begin with, or empty"
    ),
    sa.CheckConstraint("single", name="single_row"),
)

_READ = "SELECT redis_namespace FROM deployment"


def with_namespace(settings: Settings) -> Settings:
    """Return the settings with the namespace of their database, unless they have one.

    Raises:
        psycopg.OperationalError: Postgres is unavailable.
    """
    if settings.redis_namespace is not None:
        return settings
    with psycopg.connect(**connection_parameters(settings.database_url), autocommit=True) as connection:
        row = connection.execute(_READ).fetchone()
    return settings.model_copy(update={"redis_namespace": "" if row is None else str(row[0])})


async def read_namespace(settings: Settings, database: Database) -> str:
    """Return the namespace of the settings, or else of the database."""
    if settings.redis_namespace is not None:
        return settings.redis_namespace
    rows = await execute(database.relaxed, _READ)
    return str(rows[0][0]) if rows else ""
