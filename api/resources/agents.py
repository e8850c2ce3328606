"""Agents: created, listed, changed and deleted, with all their versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, RootModel
from starlette.responses import Response

from api.http.authentication import Authenticated
from api.http.body import read_body
from api.http.errors import render_json
from api.http.idempotency import Change, replay_headers, resource_id
from api.http.pages import Limit, Order, Page, after_id, check_after, render_page
from api.http.request import ApiRequest
from headrace.agents import queries
from headrace.agents.persona import LARGEST_AGENT, AgentDefinition
from headrace.agents.queries import AgentVersion
from headrace.errors import ConflictError, NotFoundError, PayloadTooLargeError, shorten
from headrace.formats.chat.validation import parse_body
from headrace.ids import is_id, new_id
from headrace.keys.principal import Principal
from headrace.runtime.offload import offloaded

router = APIRouter(prefix="/agents", tags=["Agents"])


class Agent(AgentDefinition):
    """An agent. Times are in Unix seconds."""

    id: str
    object: Literal["agent"]
    version: int = Field(description="Increased by each change")
    created_at: int
    updated_at: int


class AgentList(Page[Agent]):
    """A page of agents."""


def _all_optional(schema: dict[str, Any]) -> None:
    fields = AgentDefinition.model_json_schema(ref_template="#/components/schemas/{model}")["properties"]
    schema["properties"] = {name: {"anyOf": [field, {"type": "null"}]} for name, field in fields.items()}


class AgentChanges(RootModel[dict[str, Any]]):
    """The fields of an agent to change; `null` removes a field. The changed agent is checked as a whole."""

    model_config = ConfigDict(json_schema_extra=_all_optional)


class DeletedAgent(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["agent.deleted"]
    deleted: Literal[True]


def _render(agent: AgentVersion) -> dict[str, Any]:
    definition = orjson.loads(agent.definition)
    return {
        "id": agent.id,
        "object": "agent",
        "version": agent.version,
        "created_at": agent.created_at,
        "updated_at": agent.updated_at,
        **{name: definition.get(name) for name in AgentDefinition.model_fields},
    }


async def _checked(request: ApiRequest, principal: Principal, body: bytes) -> AgentDefinition:
    """Return the definition in a body, checked.

    Raises:
        InvalidRequestError: The definition is not valid.
        ModelNotFoundError: The catalogue lacks its model, or the key may not use the model or one of its fallbacks.
        PayloadTooLargeError: The definition is too large.
    """
    if len(body) > LARGEST_AGENT:
        raise PayloadTooLargeError(f"The agent is larger than {LARGEST_AGENT} bytes.")
    definition = await offloaded(len(body), _parse, body)
    principal.check_may_ask(
        definition.model, (definition.parameters or {}).get("fallbacks") or (), within="parameters."
    )
    catalogue = request.state["catalogue"].current
    catalogue.find(definition.model)
    return definition


def _parse(body: bytes) -> AgentDefinition:
    definition = parse_body(AgentDefinition, body)
    definition.check()
    return definition


def _changed(current: AgentVersion, changes: Mapping[str, Any]) -> bytes:
    """Return an agent's definition with changes, as the database keeps it. It is not checked yet."""
    definition = orjson.loads(current.definition) | changes
    return orjson.dumps({name: value for name, value in definition.items() if value is not None})


async def _find(request: ApiRequest, account_id: str, agent_id: str, version: int | None = None) -> AgentVersion:
    agent = None
    if is_id(agent_id, "agent"):
        agent = await queries.find_agent(request.state["database"], agent_id, account_id, version=version)
    if agent is None:
        raise _no_such_agent(agent_id)
    return agent


def _no_such_agent(agent_id: str) -> NotFoundError:
    return NotFoundError(f"No agent found with id '{shorten(agent_id)}'.", param="agent_id")


@router.post("", summary="Create an agent", responses={200: {"model": Agent}})
async def create_agent(request: ApiRequest, principal: Authenticated) -> Response:
    """Create an agent, in its version 1."""
    body = await read_body(request, limit=LARGEST_AGENT)
    definition = await _checked(request, principal, body)
    agent_id, repeated = await resource_id(request, principal, new_id("agent"), body)
    database, account_id = request.state["database"], principal.account_id
    kept = orjson.dumps(orjson.loads(body)).decode()
    await queries.create_agent(database, agent_id, account_id, definition=kept, model=definition.model)
    if not repeated and await queries.find_agent(database, agent_id, account_id) is None:
        raise ConflictError(f"An account has at most {queries.MOST_AGENTS} agents: delete one first.")
    return render_json(_render(await _find(request, account_id, agent_id)), replay_headers(repeated))


@router.get("", summary="List agents", responses={200: {"model": AgentList}})
async def list_agents(
    request: ApiRequest,
    principal: Authenticated,
    after: Annotated[str | None, after_id("agent_")] = None,
    limit: Limit = 20,
    order: Order = "desc",
) -> Response:
    """List the account's agents, newest first."""
    check_after(after, "agent")
    found, more = await queries.list_agents(
        request.state["database"], principal.account_id, after=after, limit=limit, descending=order == "desc"
    )
    return render_page([_render(agent) for agent in found], limit=limit, has_more=more)


@router.get("/{agent_id}", summary="Get an agent", responses={200: {"model": Agent}})
async def get_agent(
    request: ApiRequest,
    principal: Authenticated,
    agent_id: str,
    version: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="Return this version")] = None,
) -> Response:
    """Return an agent in its current version, or in an earlier one."""
    return render_json(_render(await _find(request, principal.account_id, agent_id, version)))


@router.get("/{agent_id}/versions", summary="List an agent's versions", responses={200: {"model": AgentList}})
async def list_versions(request: ApiRequest, principal: Authenticated, agent_id: str, limit: Limit = 20) -> Response:
    """List an agent's versions, newest first."""
    await _find(request, principal.account_id, agent_id)
    found, more = await queries.list_versions(request.state["database"], agent_id, principal.account_id, limit=limit)
    return render_page([_render(agent) for agent in found], limit=limit, has_more=more)


@router.post("/{agent_id}", summary="Change an agent", responses={200: {"model": Agent}})
@router.patch("/{agent_id}", summary="Change an agent", responses={200: {"model": Agent}}, include_in_schema=False)
async def update_agent(request: ApiRequest, principal: Authenticated, agent_id: str) -> Response:
    """Change the fields that the body names; `null` removes a field.

    This creates a new version, unless every field has the value that it had.
    """
    body = await read_body(request, limit=LARGEST_AGENT)
    database, account_id = request.state["database"], principal.account_id
    current = await _find(request, account_id, agent_id)
    parse_body(AgentChanges, body)
    changes = orjson.loads(body)
    change = await Change.of(request, principal, body)
    if not change.done:
        kept = _changed(current, changes)
        model = (await _checked(request, principal, kept)).model
        same = kept.decode() == current.definition
        if not same and current.version >= queries.MOST_VERSIONS:
            raise ConflictError(f"An agent has at most {queries.MOST_VERSIONS} versions: create another one.")
        async with change.applying():
            if not same and not await queries.update_agent(
                database, agent_id, account_id, version=current.version, definition=kept.decode(), model=model
            ):
                # Another request changed the agent: perhaps this one, sent twice at the same moment.
                current = await _find(request, account_id, agent_id)
                if _changed(current, changes).decode() != current.definition:
                    raise ConflictError("The agent was changed or deleted meanwhile: read it again.")
    return render_json(_render(await _find(request, account_id, agent_id)), change.headers)


@router.delete("/{agent_id}", summary="Delete an agent", responses={200: {"model": DeletedAgent}})
async def delete_agent(request: ApiRequest, principal: Authenticated, agent_id: str) -> Response:
    """Delete an agent. Its jobs keep running, with the definition that they started with."""
    if not is_id(agent_id, "agent") or not await queries.delete_agent(
        request.state["database"], agent_id, principal.account_id
    ):
        raise _no_such_agent(agent_id)
    return render_json({"id": agent_id, "object": "agent.deleted", "deleted": True})
