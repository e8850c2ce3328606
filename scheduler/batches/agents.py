"""The agents that the lines of a batch name as their model."""

from __future__ import annotations

from typing import Any

import orjson

from headrace.agents.formats import resolve
from headrace.agents.queries import find_agent
from headrace.batches.endpoints import ENDPOINTS
from headrace.ids import AGENT_PREFIX
from headrace.stores.connections import Row
from headrace.stores.database import Database


class BatchAgents:
    """The agents of one batch in the versions that validation found, even if they were changed or deleted since.

    Each is read from Postgres once.
    """

    def __init__(self, database: Database, batch: Row) -> None:
        self._database = database
        self._batch = batch
        self._format = ENDPOINTS[batch.endpoint].format
        self._definitions: dict[str, dict[str, object]] = {}

    async def resolve(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the request that a line's agent makes of the line's body, or the body if it names no agent."""
        agent_id = asked["model"]
        if not agent_id.startswith(AGENT_PREFIX):
            return asked
        if agent_id not in self._definitions:
            version = self._batch.agents[agent_id]
            agent = await find_agent(self._database, agent_id, self._batch.account_id, version=version, deleted=True)
            assert agent is not None
            self._definitions[agent_id] = orjson.loads(agent.definition)
        return resolve(self._definitions[agent_id], asked, self._format)
