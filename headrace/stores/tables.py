"""The metadata of all tables, with the naming of constraints, and columns of times."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def instant(name: str, *, default: bool = False, nullable: bool = True) -> sa.Column[object]:
    """Return a `timestamptz` column. With `default` it is not null and defaults to Postgres's clock."""
    if default:
        return sa.Column(name, sa.TIMESTAMP(timezone=True), server_default=sa.func.now(), nullable=False)
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=nullable)


def unix_seconds(column: sa.Column[Any]) -> sa.Label[int]:
    """Return a column of times in whole Unix seconds, under its own name."""
    return sa.cast(sa.func.floor(sa.extract("epoch", column)), sa.BigInteger).label(column.name)
