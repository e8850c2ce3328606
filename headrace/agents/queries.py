"""Every statement on agents. Each sees the agents of one account."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from headrace.stores.connections import LONG_PATIENCE_SECONDS, Row
from headrace.stores.database import Database, execute

MOST_AGENTS = 1000
"""Agents of an account that are not deleted."""
MOST_VERSIONS = 1000
"""Versions of one agent."""
# Bytes of definitions in one page of a list, unless one alone has more.
_PAGE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class AgentVersion:
    """One version of an agent. `definition` is JSON; times are in Unix seconds, `updated_at` this version's."""

    id: str
    version: int
    definition: str
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class AgentModel:
    """Which model an agent asks. `created_at` is in Unix seconds."""

    id: str
    created_at: int
    model: str


_CREATE = """
WITH agent AS (
    INSERT INTO agents (id, account_id)
    SELECT %(id)s, %(account_id)s
    WHERE (SELECT count(*) FROM agents WHERE account_id = %(account_id)s AND deleted_at IS NULL) < %(most)s
    ON CONFLICT (id) DO NOTHING
    RETURNING id, version, created_at
)
INSERT INTO agent_versions (agent_id, version, definition, model, created_at)
SELECT id, version, %(definition)s, %(model)s, created_at FROM agent
"""


async def create_agent(database: Database, agent_id: str, account_id: str, *, definition: str, model: str) -> None:
    """Insert a new agent as version 1, unless the account already has `MOST_AGENTS`."""
    parameters = {"id": agent_id, "account_id": account_id, "definition": definition, "model": model}
    await execute(database.durable, _CREATE, parameters | {"most": MOST_AGENTS})


_UPDATE = """
WITH agent AS (
    UPDATE agents SET version = version + 1, updated_at = now()
    WHERE id = %(id)s AND account_id = %(account_id)s AND version = %(version)s AND deleted_at IS NULL
    RETURNING id, version
)
INSERT INTO agent_versions (agent_id, version, definition, model)
SELECT id, version, %(definition)s, %(model)s FROM agent RETURNING version
"""


async def update_agent(
    database: Database, agent_id: str, account_id: str, *, version: int, definition: str, model: str
) -> bool:
    """Insert a new version of an agent that is still at `version`. Returns whether it was."""
    parameters = {"id": agent_id, "account_id": account_id, "version": version}
    return bool(await execute(database.durable, _UPDATE, parameters | {"definition": definition, "model": model}))


_DELETE = """
UPDATE agents SET deleted_at = now() WHERE id = %(id)s AND account_id = %(account_id)s AND deleted_at IS NULL
RETURNING id
"""


async def delete_agent(database: Database, agent_id: str, account_id: str) -> bool:
    """Delete an agent; its jobs keep their version of it. Returns False if the account has no such agent."""
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
    """Return an agent in its latest version or in `version`, or None if the account has no such agent or version.

    With `deleted` a deleted agent is found too, because requests that were accepted before still run.
    """
    parameters = {"id": agent_id, "account_id": account_id, "version": version, "deleted": deleted}
    rows = await execute(database.relaxed, _FIND, parameters)
    return AgentVersion(*rows[0]) if rows else None


# A definition has up to a megabyte, so a page also ends by its bytes.
_PAGE = """
SELECT id, version, CASE WHEN before < %(bytes)s THEN definition END AS definition, created_at, updated_at
FROM (
    SELECT *, sum(octet_length(definition)) OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING)
              - octet_length(definition) AS before
    FROM ({rows}
          ORDER BY {order} LIMIT %(limit)s + 1) AS found
) AS page
ORDER BY {order}
"""
_LIST = (
    _COLUMNS
    + """
WHERE account_id = %(account_id)s AND deleted_at IS NULL AND agent_versions.version = agents.version
      AND (%(after)s::text IS NULL OR agents.id {beyond} %(after)s::text)
"""
)
_OLDEST_FIRST = _PAGE.format(rows=_LIST.format(beyond=">"), order="id")
_NEWEST_FIRST = _PAGE.format(rows=_LIST.format(beyond="<"), order="id DESC")


async def list_agents(
    database: Database, account_id: str, *, after: str | None, limit: int, descending: bool
) -> tuple[list[AgentVersion], bool]:
    """Return a page of an account's agents past the agent `after`, in their latest versions, in order of creation.

    Returns up to `limit` agents, and whether there are more.
    """
    query = _NEWEST_FIRST if descending else _OLDEST_FIRST
    parameters = {"account_id": account_id, "after": after, "limit": limit, "bytes": _PAGE_BYTES}
    return _page(await execute(database.relaxed, query, parameters), limit)


_VERSIONS = _PAGE.format(
    rows=_COLUMNS + " WHERE agents.id = %(id)s AND account_id = %(account_id)s AND deleted_at IS NULL",
    order="version DESC",
)


async def list_versions(
    database: Database, agent_id: str, account_id: str, *, limit: int
) -> tuple[list[AgentVersion], bool]:
    """Return up to `limit` versions of an agent, newest first, and whether there are more."""
    parameters = {"id": agent_id, "account_id": account_id, "limit": limit, "bytes": _PAGE_BYTES}
    return _page(await execute(database.relaxed, _VERSIONS, parameters), limit)


def _page(rows: Sequence[Row], limit: int) -> tuple[list[AgentVersion], bool]:
    page = [AgentVersion(*row) for row in rows[:limit] if row.definition is not None]
    return page, len(page) < len(rows)


_MODELS = """
SELECT agents.id, floor(extract(epoch FROM agents.created_at))::bigint AS created_at, model
FROM agents JOIN agent_versions ON agent_id = agents.id AND agent_versions.version = agents.version
WHERE account_id = %(account_id)s AND deleted_at IS NULL ORDER BY agents.id DESC LIMIT %(most)s
"""


async def list_agent_models(database: Database, account_id: str) -> list[AgentModel]:
    """Return the model of each of an account's agents, newest first, without reading their definitions."""
    rows = await execute(database.relaxed, _MODELS, {"account_id": account_id, "most": MOST_AGENTS})
    agents = []
    for agent_id, created_at, named in rows:
        model = named
        if model is None:  # the previous release inserted it
            agent = await find_agent(database, agent_id, account_id)
            model = "" if agent is None else orjson.loads(agent.definition)["model"]
        agents.append(AgentModel(agent_id, created_at, model))
    return agents


_EMPTY = """
WITH deleted AS MATERIALIZED (
    SELECT agent_id, agent_versions.version FROM agent_versions JOIN agents ON agents.id = agent_id
    WHERE deleted_at < now() - interval '2 days' AND definition <> '{}'
          AND NOT EXISTS (SELECT FROM batches WHERE state IN ('validating', 'in_progress', 'finalizing', 'cancelling')
                          AND batches.account_id = agents.account_id AND jsonb_exists(batches.agents, agents.id))
    LIMIT %(limit)s
)
UPDATE agent_versions AS known SET definition = '{}' FROM deleted
WHERE known.agent_id = deleted.agent_id AND known.version = deleted.version RETURNING known.version
"""


async def empty_deleted_agents(database: Database, *, limit: int = 500) -> int:
    """Drop the definitions of agents that were deleted two days ago and that no batch still uses. Returns how many.

    The rows stay, because jobs refer to them. The statement reads every deleted agent's row.
    """
    return len(await execute(database.relaxed, _EMPTY, {"limit": limit}, patience_seconds=LONG_PATIENCE_SECONDS))
