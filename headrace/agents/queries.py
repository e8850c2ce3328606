"""Every statement on agents. Each sees one account's alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.database import Database, Row, execute


@dataclass(frozen=True, slots=True)
class AgentVersion:
    """One version of an agent. `definition` is JSON; times are in Unix seconds, `updated_at` this version's."""

    id: str
    version: int
    definition: str
    created_at: int
    updated_at: int


_CREATE = """
WITH agent AS (
    INSERT INTO agents (id, account_id) VALUES (%(id)s, %(account_id)s) ON CONFLICT (id) DO NOTHING
    RETURNING id, version, created_at
)
INSERT INTO agent_versions (agent_id, version, definition, created_at)
SELECT id, version, %(definition)s, created_at FROM agent
"""


async def create_agent(database: Database, agent_id: str, account_id: str, definition: str) -> None:
    """Keep a new agent, in its version 1."""
    await execute(database.durable, _CREATE, {"id": agent_id, "account_id": account_id, "definition": definition})


_UPDATE = """
WITH agent AS (
    UPDATE agents SET version = version + 1, updated_at = now()
    WHERE id = %(id)s AND account_id = %(account_id)s AND version = %(version)s AND deleted_at IS NULL
    RETURNING id, version
)
INSERT INTO agent_versions (agent_id, version, definition)
SELECT id, version, %(definition)s FROM agent RETURNING version
"""


async def update_agent(database: Database, agent_id: str, account_id: str, *, version: int, definition: str) -> bool:
    """Keep a new version of an agent that still is at `version`; returns whether it was."""
    parameters = {"id": agent_id, "account_id": account_id, "version": version, "definition": definition}
    return bool(await execute(database.durable, _UPDATE, parameters))


_DELETE = """
UPDATE agents SET deleted_at = now() WHERE id = %(id)s AND account_id = %(account_id)s AND deleted_at IS NULL
RETURNING id
"""


async def delete_agent(database: Database, agent_id: str, account_id: str) -> bool:
    """Let an agent answer no more; its jobs keep what they ran with. Returns False if the account has no such agent."""
    return bool(await execute(database.durable, _DELETE, {"id": agent_id, "account_id": account_id}))


_COLUMNS = """
SELECT agents.id, agent_versions.version, definition,
       floor(extract(epoch FROM agents.created_at))::bigint AS created_at,
       floor(extract(epoch FROM agent_versions.created_at))::bigint AS updated_at
FROM agents JOIN agent_versions ON agent_id = agents.id
"""
_FIND = (
    _COLUMNS
    + """
WHERE agents.id = %(id)s AND account_id = %(account_id)s AND (deleted_at IS NULL OR %(deleted)s)
      AND agent_versions.version = coalesce(%(version)s::int, agents.version)
"""
)


async def find_agent(
    database: Database, agent_id: str, account_id: str, *, version: int | None = None, deleted: bool = False
) -> AgentVersion | None:
    """Return an agent as it is, or as it was in `version`; None if the account has no such.

    With `deleted`, one that was deleted is found too: what was accepted before is still to be run.
    """
    parameters = {"id": agent_id, "account_id": account_id, "version": version, "deleted": deleted}
    rows = await execute(database.relaxed, _FIND, parameters)
    return AgentVersion(*rows[0]) if rows else None


_LIST = (
    _COLUMNS
    + """
WHERE account_id = %(account_id)s AND deleted_at IS NULL AND agent_versions.version = agents.version
      AND (%(after)s::text IS NULL OR agents.id {beyond} %(after)s::text)
ORDER BY agents.id {direction} LIMIT %(limit)s
"""
)
_OLDEST_FIRST = _LIST.format(beyond=">", direction="ASC")
_NEWEST_FIRST = _LIST.format(beyond="<", direction="DESC")


async def list_agents(
    database: Database, account_id: str, *, after: str | None = None, limit: int = 1000, descending: bool = True
) -> list[AgentVersion]:
    """Return up to `limit` of an account's agents past the agent `after`, as they are, in order of creation."""
    query = _NEWEST_FIRST if descending else _OLDEST_FIRST
    rows: Sequence[Row] = await execute(
        database.relaxed, query, {"account_id": account_id, "after": after, "limit": limit}
    )
    return [AgentVersion(*row) for row in rows]


_VERSIONS = (
    _COLUMNS
    + """
WHERE agents.id = %(id)s AND account_id = %(account_id)s AND deleted_at IS NULL
ORDER BY agent_versions.version DESC LIMIT %(limit)s
"""
)


async def list_versions(database: Database, agent_id: str, account_id: str, *, limit: int) -> list[AgentVersion]:
    """Return up to `limit` versions of an agent, newest first."""
    parameters = {"id": agent_id, "account_id": account_id, "limit": limit}
    return [AgentVersion(*row) for row in await execute(database.relaxed, _VERSIONS, parameters)]
