"""All accounts, for an administrator: whose rows the pages read, and the limits of each."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.client import Api, ApiError, ApiUnavailableError
from console.forms import read_form
from console.render import page, redirect
from console.security import Acting, Reading

router = APIRouter(prefix="/accounts")


@router.get("")
async def show_accounts(request: Request, api: Reading) -> Response:
    """List the accounts, newest first."""
    accounts = await api.get("/accounts", limit=100, after=request.query_params.get("after"))
    return page(request, "accounts.html", accounts=accounts)


@router.post("")
async def read_account(request: Request, session: Acting) -> Response:
    """Read the rows of another account, or of the session's own again."""
    chosen = str((await read_form(request)).get("account", ""))
    session.reading = None
    if chosen and chosen != session.account["id"]:
        try:
            await Api(request.app.state.http, session.key, chosen).get("/jobs", limit=1)
            session.reading = chosen
        except (ApiError, ApiUnavailableError) as error:
            session.say(f"The account {chosen} cannot be read: {error}", "error")
    return redirect("/")
