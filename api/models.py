"""The models that a client may ask for."""

from __future__ import annotations

from typing import Any, Literal

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from api.authentication import Authenticated
from headrace.catalogue import CATALOGUE_CREATED, Catalogue

router = APIRouter(prefix="/models", tags=["Models"])


class ModelObject(BaseModel):
    """A model, as OpenAI has it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[ModelObject]


def _render(catalogue: Catalogue, name: str) -> dict[str, Any]:
    provider = catalogue.find(name).routes[0].split("/", 1)[0]
    return {"id": name, "object": "model", "created": CATALOGUE_CREATED, "owned_by": provider}


@router.get("", summary="List models", responses={200: {"model": ModelList}})
async def list_models(request: Request, _: Authenticated) -> Response:
    """List the catalogue."""
    catalogue: Catalogue = request.state.catalogue.current
    models = [_render(catalogue, name) for name in catalogue.names()]
    return Response(orjson.dumps({"object": "list", "data": models}), media_type="application/json")


@router.get("/{model:path}", summary="Get a model", responses={200: {"model": ModelObject}})
async def get_model(request: Request, _: Authenticated, model: str) -> Response:
    """Return one model of the catalogue."""
    return Response(orjson.dumps(_render(request.state.catalogue.current, model)), media_type="application/json")
