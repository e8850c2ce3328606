"""Models with their prices, and the health of their providers."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.render import page
from console.security import Reading, SignedIn

router = APIRouter(prefix="/models")


@router.get("")
async def show_models(request: Request, session: SignedIn, api: Reading) -> Response:
    """List the models that the key may ask, and the providers' state for a key that may read it."""
    models = (await api.get("/models"))["data"]
    wanted = request.query_params.get("q", "").lower()
    shown = [model for model in models if wanted in model["id"].lower() or wanted in model["owned_by"].lower()]
    service = await api.get("/status") if session.may("metrics:read") else None
    return page(request, "models.html", models=shown, total=len(models), service=service)
