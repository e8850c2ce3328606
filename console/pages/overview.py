"""The first page: queues, rates, errors, spend."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.client import ApiError
from console.render import page
from console.security import Reading, SignedIn

router = APIRouter()


@router.get("/")
async def show_overview(request: Request, session: SignedIn, api: Reading) -> Response:
    """Show the service's state to a key that may read it, and the account's own jobs to any."""
    try:
        status = await api.get("/status") if session.may("metrics:read") else None
    except ApiError as error:
        if error.status != 404:
            raise
        status = None  # an API of an earlier release
    jobs = await api.get("/jobs", limit=10)
    return page(request, "overview.html", status_=status, jobs=jobs["data"])
