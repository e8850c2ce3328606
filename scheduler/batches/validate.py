"""Validates every line of a batch's input before the first line is run."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import orjson

from headrace.agents.formats import resolve
from headrace.agents.queries import AgentVersion, find_agent
from headrace.batches.endpoints import ENDPOINTS
from headrace.batches.lines import CustomIds, Line, LineProblem, RawLine, parse_line
from headrace.batches.queries import fail_batch, start_batch
from headrace.batches.state import BatchState
from headrace.catalogue.models import Catalogue
from headrace.catalogue.routing import check_servable
from headrace.errors import InvalidRequestError, ModelNotFoundError
from headrace.ids import AGENT_PREFIX, is_id
from headrace.quotas.cost import check_priced
from headrace.quotas.queries import find_limits
from headrace.quotas.rules import Limits
from headrace.runtime.offload import offloaded
from headrace.stores.connections import Row
from headrace.stores.database import Database
from headrace.telemetry.metrics import BATCHES_ENDED
from scheduler.batches.input import read_input

# Problems after which validation stops.
_MOST_PROBLEMS = 100
# Characters of agents' definitions that are kept. An agent has up to a megabyte, and lines may name a thousand agents.
_MOST_DEFINITIONS = 4 * 1024 * 1024


class Validation:
    """One pass over the input of one batch."""

    def __init__(
        self, database: Database, catalogue: Catalogue, batch: Row, *, most_lines: int, room: asyncio.Semaphore
    ) -> None:
        """Prepare the pass. More than `most_lines` lines are a problem. A large line waits for `room`."""
        self._database = database
        self._catalogue = catalogue
        self._batch = batch
        self._endpoint = ENDPOINTS[batch.endpoint]
        self._most_lines = most_lines
        self._room = room
        self._custom_ids = CustomIds()
        self._agents: dict[str, AgentVersion] = {}
        self._versions: dict[str, int] = {}
        self._problems: list[LineProblem] = []
        self._models: set[str] = set()
        self._routes: set[str | None] = set()
        self._limits: list[Limits] = []
        self._total = 0

    async def run(self) -> bool:
        """Start the batch if its input is valid, else fail it with its problems. Returns whether the input is valid."""
        self._limits = list((await find_limits(self._database, self._batch.key_id)).values())
        async with aclosing(read_input(self._database, self._batch.input_file_id, room=self._room)) as lines:
            async for raw in lines:
                self._total += 1
                if self._total > self._most_lines:
                    self._too_many()
                    break
                await self._check(raw)
                del raw  # the next line has the room
                if len(self._problems) >= _MOST_PROBLEMS:
                    break
        if not self._total:
            text = "The input file is empty. It must have at least one request."
            self._problems.append(LineProblem(None, "empty_file", text, None))
        if self._problems:
            if await fail_batch(self._database, self._batch.id, self._problems):
                BATCHES_ENDED.labels(BatchState.FAILED.value).inc()
            return False
        native = len(self._routes) == 1 and len(self._models) == 1 and not self._versions
        await start_batch(
            self._database,
            self._batch.id,
            total=self._total,
            model=next(iter(self._models)) if len(self._models) == 1 else None,
            native_route=self._routes.pop() if native else None,
            agents=self._versions,
        )
        return True

    def _too_many(self) -> None:
        text = f"The input file has more than {self._most_lines} requests."
        self._problems.append(LineProblem(None, "too_many_requests_in_batch", text, None))

    async def _check(self, raw: RawLine) -> None:
        try:
            size = len(raw.text or b"")
            line = await offloaded(size, parse_line, raw.text, endpoint=self._batch.endpoint)
            self._custom_ids.check(line.custom_id)
            terms = line.terms
            for name in (terms.model, *(terms.fallbacks or ())):
                if not all(limits.allows_model(name) for limits in self._limits):
                    raise ModelNotFoundError.of(name, param="body.model")
            agent = await self._agent(terms.model) if terms.model.startswith(AGENT_PREFIX) else None
            size += 0 if agent is None else len(agent.definition)
            await offloaded(size, self._check_servable, line, agent)
        except InvalidRequestError as error:
            self._problems.append(LineProblem.of(raw.number, error))

    def _check_servable(self, line: Line, agent: AgentVersion | None) -> None:
        terms, endpoint = line.terms, self._endpoint
        if len(self._models) < 2:
            self._models.add(terms.model)
        try:
            asked = line.body
            if agent is not None:
                asked = resolve(orjson.loads(agent.definition), asked, endpoint.format)
                terms = endpoint.check(asked)
            translation = endpoint.translate(asked)
            usable = check_servable(
                self._catalogue,
                terms,
                translation,
                format=endpoint.format,
                metadata=line.terms.metadata,
                seed=line.custom_id,
            )
            if any(limits.has_budget for limits in self._limits):
                check_priced(self._catalogue, [way.route for way in usable], translation.chat)
        except InvalidRequestError as error:
            error.param = "body" if error.param is None else f"body.{error.param}"
            raise
        if len(self._routes) < 2:
            first = usable[0].route
            self._routes.add(first.name if first.native_batch and self._batch.has_a_day else None)

    async def _agent(self, agent_id: str) -> AgentVersion:
        """Return an agent in the version that the first line to name it has found."""
        agent = self._agents.get(agent_id)
        if agent is None:
            version = self._versions.get(agent_id)
            agent = await self._find_agent(agent_id, version) if is_id(agent_id, "agent") else None
            if agent is None:
                raise ModelNotFoundError.of(agent_id, param="body.model")
            self._versions[agent_id] = agent.version
            if sum(len(kept.definition) for kept in self._agents.values()) > _MOST_DEFINITIONS:
                self._agents.clear()
            self._agents[agent_id] = agent
        return agent

    async def _find_agent(self, agent_id: str, version: int | None) -> AgentVersion | None:
        return await find_agent(
            self._database, agent_id, self._batch.account_id, version=version, deleted=version is not None
        )
