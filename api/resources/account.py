"""Accounts: the limits that all keys of an account share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from api.http.authentication import Administrator, Authenticated
from api.http.body import SMALL_BODY, read_body
from api.http.errors import render_json
from api.http.idempotency import Change
from api.resources.webhooks import accept_webhook
from headrace.errors import PermissionDeniedError
from headrace.formats.chat.validation import check_text, parse_body
from headrace.keys import queries
from headrace.keys.key_object import no_such_account
from headrace.keys.queries import Principal
from headrace.quotas.rules import Limits
from headrace.stores.connections import Row

router = APIRouter(prefix="/account", tags=["API keys"])

AccountName = Annotated[
    str | None,
    Query(alias="account", min_length=1, max_length=256, pattern=r"^[^\x00]*$", description="For administrators"),
]


class Account(BaseModel):
    """An account. All of its keys share its limits, in addition to each key's own."""

    id: str
    object: Literal["account"]
    name: str
    limits: Limits
    created_at: int


class AccountUpdate(BaseModel):
    """The new limits of an account, which replace all earlier ones; `null` removes them."""

    model_config = ConfigDict(
        strict=True, extra="forbid", json_schema_extra={"examples": [{"limits": {"monthly_budget": "100"}}]}
    )

    limits: Limits | None


async def find_account(request: Request, principal: Principal, name: str | None) -> Row:
    """Return the account that a request names, or the principal's own.

    Raises:
        PermissionDeniedError: The request names an account, and the principal is not an administrator.
        NotFoundError: No account has this name.
    """
    database = request.state.database
    if name is None:
        own = await queries.find_account(database, account_id=principal.account_id)
        assert own is not None
        return own
    if not principal.is_admin:
        raise PermissionDeniedError("Only a key with the scope 'admin' may name an account.", param="account")
    found = await queries.find_account(database, name=name)
    if found is None:
        raise no_such_account(name)
    return found


async def accept_limits(request: Request, account_id: str, limits: Limits | None) -> None:
    """Check that the alert webhook of an account's limits can be sent.

    Raises:
        InvalidRequestError: The webhook's address is not allowed, or this server sends no webhooks.
    """
    url = None if limits is None else limits.alert_webhook
    if url is None:
        return
    param = "limits.alert_webhook"
    check_text(url, param)
    await accept_webhook(request, account_id, url, param=param)


def _render(row: Row, limits: Limits, headers: Mapping[str, str] | None = None) -> Response:
    document: dict[str, Any] = {
        "id": row.id,
        "object": "account",
        "name": row.name,
        "limits": limits.render(),
        "created_at": row.created_at,
    }
    return render_json(document, headers)


@router.get("", summary="Get the account", responses={200: {"model": Account}})
async def get_account(request: Request, principal: Authenticated, name: AccountName = None) -> Response:
    """Return the key's account and its limits. An administrator may name another account."""
    row = await find_account(request, principal, name)
    return _render(row, Limits.parse(row.limits))


@router.post("", summary="Limit the account", responses={200: {"model": Account}})
async def update_account(request: Request, principal: Administrator, name: AccountName = None) -> Response:
    """Set the limits of the key's account or of another one, for administrators. It takes effect within a second."""
    body = await read_body(request, limit=SMALL_BODY)
    limits = parse_body(AccountUpdate, body).limits or Limits()
    row = await find_account(request, principal, name)
    change = await Change.of(request, principal, body)
    if change.done:
        return _render(row, Limits.parse(row.limits), change.headers)
    await accept_limits(request, row.id, limits)
    async with change.applying():
        await queries.limit_account(request.state.database, row.id, limits)
    return _render(row, limits)
