"""The model of each version of an agent, beside its definition: a list of agents need not read those."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision: str | None = "0007"
branch_labels = None
depends_on = None

_versions = sa.table(
    "agent_versions",
    sa.column("agent_id", sa.Text),
    sa.column("version", sa.Integer),
    sa.column("definition", sa.Text),
    sa.column("model", sa.Text),
)


def upgrade() -> None:
    # The release before leaves it out: what it adds meanwhile is read from the definition.
    op.add_column(
        "agent_versions",
        sa.Column("model", sa.Text(), nullable=True, comment="That of the definition; null if it has to be read there"),
    )
    connection = op.get_bind()
    key = (_versions.c.agent_id, _versions.c.version)
    for agent_id, version in connection.execute(sa.select(*key)).all():
        # Postgres's own JSON functions fail on a definition with U+0000 anywhere.
        of_it = sa.and_(_versions.c.agent_id == agent_id, _versions.c.version == version)
        definition = connection.execute(sa.select(_versions.c.definition).where(of_it)).scalar_one()
        connection.execute(sa.update(_versions).where(of_it).values(model=json.loads(definition)["model"]))


def downgrade() -> None:
    op.drop_column("agent_versions", "model")
