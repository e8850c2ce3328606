"""The models that a key may use: those of the catalogue, and the account's agents."""

from __future__ import annotations

from typing import Any, Literal

import orjson
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from api.http.authentication import Authenticated
from api.http.errors import render_json
from api.http.request import ApiRequest
from headrace.agents.queries import AgentModel, find_agent, list_agent_models
from headrace.catalogue.known import Ability
from headrace.catalogue.models import CATALOGUE_CREATED, Catalogue
from headrace.errors import ModelNotFoundError
from headrace.ids import is_id

router = APIRouter(prefix="/models", tags=["Models"])


class Prices(BaseModel):
    """USD for a million tokens, as strings, for prompts of ordinary length."""

    input: str
    cached_input: str
    cache_write: str
    output: str


class ModelObject(BaseModel):
    """A model, with more fields than OpenAI's. Limits are in tokens; null means unknown."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str = Field(description="The provider that is called first")
    providers: list[str] = Field(description="The providers, in the order in which they are called")
    context_window: int | None
    output_limit: int | None
    abilities: list[Ability]
    prices: Prices | None


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[ModelObject]


def _render(catalogue: Catalogue, name: str) -> dict[str, Any]:
    routes = catalogue.routes(name)
    first, rates = routes[0], routes[0].rates()
    return {
        "id": name,
        "object": "model",
        "created": CATALOGUE_CREATED,
        "owned_by": first.provider_name,
        "providers": list(dict.fromkeys(route.provider_name for route in routes if route.condition is None)),
        "context_window": first.context_window,
        "output_limit": first.output_limit,
        "abilities": list(first.abilities),
        "prices": None if rates is None else {sort: f"{getattr(rates, sort):f}" for sort in Prices.model_fields},
    }


def _render_agent(catalogue: Catalogue, agent: AgentModel) -> dict[str, Any]:
    """Return an agent as a model, with the properties of its own model if the catalogue still has it."""
    about = {"id": agent.id, "object": "model", "created": agent.created_at, "owned_by": "agent"}
    try:
        return _render(catalogue, agent.model) | about
    except ModelNotFoundError:
        nothing: dict[str, Any] = {"context_window": None, "output_limit": None, "prices": None}
        return about | nothing | {"providers": [], "abilities": []}


@router.get("", summary="List models", responses={200: {"model": ModelList}})
async def list_models(request: ApiRequest, principal: Authenticated) -> Response:
    """List the catalogue, and the account's agents."""
    catalogue = request.state["catalogue"].current
    agents = await list_agent_models(request.state["database"], principal.account_id)
    models = [_render(catalogue, name) for name in catalogue.names() if principal.may_ask(name)]
    models += [_render_agent(catalogue, agent) for agent in agents if principal.may_ask(agent.id)]
    return render_json({"object": "list", "data": models})


@router.get("/{model:path}", summary="Get a model", responses={200: {"model": ModelObject}})
async def get_model(request: ApiRequest, principal: Authenticated, model: str) -> Response:
    """Return a model of the catalogue, or an agent as a model."""
    catalogue = request.state["catalogue"].current
    if not principal.may_ask(model):
        raise ModelNotFoundError.of(model, param="model")
    if is_id(model, "agent"):
        agent = await find_agent(request.state["database"], model, principal.account_id)
        if agent is not None:
            asked = AgentModel(agent.id, agent.created_at, orjson.loads(agent.definition)["model"])
            return render_json(_render_agent(catalogue, asked))
    return render_json(_render(catalogue, model))
