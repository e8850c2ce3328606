"""Migrates the schema of Postgres, with Alembic."""

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
    """Return an engine for migrations, which pools no connections.

    Raises:
        headrace.settings.SettingError: libpq does not accept the URL.
    """
    # A pooler may give each statement another session, which lacks the statements that an earlier one prepared.
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
    """Migrate the schema up or down to `revision`. Of several processes at once, one migrates and the others wait."""
    from alembic import command

    config = _alembic(database_url)
    if revision == "head" or revision.startswith("+"):
        command.upgrade(config, revision)
    else:
        command.downgrade(config, revision)
