"""Webhook deliveries, and the secrets that sign them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.client import ApiError
from console.forms import read_form
from console.render import local_path, page, redirect
from console.security import Acting, Reading, SignedIn, Writing

router = APIRouter(prefix="/webhooks")

STATES = ("pending", "delivered", "failed")


@router.get("")
async def show_webhooks(request: Request, api: Reading) -> Response:
    """List the account's deliveries, newest first."""
    chosen = {name: request.query_params.get(name) for name in ("status", "after")}
    deliveries = await api.get("/webhook-deliveries", limit=50, **chosen)
    return page(request, "webhooks.html", deliveries=deliveries, states=STATES)


@router.post("/resend")
async def resend(request: Request, session: Acting, api: Writing) -> Response:
    """Send a webhook again and return to the page that asked."""
    form = await read_form(request)
    kind, _, subject_id = str(form.get("subject", "")).partition("/")
    if kind in {"jobs", "batches"}:
        try:
            await api.post(f"/{kind}/{subject_id}/webhook-deliveries/{form.get('delivery', '')}/resend")
            session.say("The webhook is sent again.")
        except ApiError as error:
            session.say(error.message, "error")
    return redirect(local_path(str(form.get("back", ""))))


@router.get("/secrets")
async def show_secrets(request: Request, session: SignedIn, api: Reading) -> Response:
    """Show the secrets to a key that may read them."""
    secrets = (await api.get("/webhook-secrets"))["data"] if session.may("webhooks:write") else None
    return page(request, "webhook_secrets.html", secrets=secrets)


@router.post("/secrets")
async def rotate_secret(session: Acting, api: Writing) -> Response:
    """Make a new secret. The previous one signs for a day more."""
    await api.post("/webhook-secrets")
    session.say("There is a new secret. The previous one still signs for a day.")
    return redirect("/webhooks/secrets")
