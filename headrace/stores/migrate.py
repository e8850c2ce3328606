"""Bringing the schema to a revision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from headrace import PARTS
from headrace.stores.database import DIALECT
from headrace.stores.database_url import connection_parameters

if TYPE_CHECKING:
    from alembic.config import Config

_MIGRATIONS = PARTS / "migrations"


def create_sync_engine(database_url: str) -> sa.Engine:
    """Return an engine for migrations, which keeps no connections.

    Raises:
        headrace.settings.SettingError: The URL is of no form that libpq takes.
    """
    # Behind a pooler, no statement of a migration may count on what the session before it has prepared.
    parameters = {**connection_parameters(database_url), "prepare_threshold": None}
    return sa.create_engine(DIALECT, poolclass=sa.NullPool, connect_args=parameters)


def _alembic(database_url: str) -> Config:
    # Alembic takes a quarter of a second to import, and most commands migrate nothing.
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["url"] = database_url
    return config


def migrate(database_url: str, revision: str = "head") -> None:
    """Bring the schema to `revision`, up or down. Several may run at once: one migrates, the others wait for it."""
    from alembic import command

    config = _alembic(database_url)
    if revision == "head" or revision.startswith("+"):
        command.upgrade(config, revision)
    else:
        command.downgrade(config, revision)
