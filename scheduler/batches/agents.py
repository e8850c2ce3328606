"""The agents that a batch's lines ask for."""

from __future__ import annotations

from typing import Any

import orjson

from headrace.agents.persona import resolve
from headrace.agents.queries import find_agent
from headrace.ids import AGENT_PREFIX
from headrace.stores.connections import Row
from headrace.stores.database import Database


class BatchAgents:
    """A batch's agents as they were when it was checked, whatever has become of them; each is read once."""

    def __init__(self, database: Database, batch: Row) -> None:
        self._database = database
        self._batch = batch
        self._definitions: dict[str, dict[str, object]] = {}

    async def resolve(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the request that a line's agent makes of what the line asks; just that if it asks for none."""
        agent_id = asked["model"]
        if not agent_id.startswith(AGENT_PREFIX):
            return asked
        if agent_id not in self._definitions:
            version = self._batch.agents[agent_id]
            agent = await find_agent(self._database, agent_id, self._batch.account_id, version=version, deleted=True)
            assert agent is not None
            self._definitions[agent_id] = orjson.loads(agent.definition)
        return resolve(self._definitions[agent_id], asked)
