"""Accounts: the limits that all keys of an account share, and what the key of a request may do."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from api.http.authentication import Administrator, Authenticated
from api.http.body import SMALL_BODY, read_body
from api.http.errors import render_json
from api.http.idempotency import Change
from api.http.pages import STORABLE_TEXT, Limit, Order, Page, after_id, check_after, render_page
from api.http.request import ApiRequest
from headrace.errors import PermissionDeniedError
from headrace.formats.chat.validation import check_text, parse_body
from headrace.keys import accounts
from headrace.keys.key_object import no_such_account
from headrace.keys.principal import Principal
from headrace.quotas.rules import Limits
from headrace.stores.connections import Row
from headrace.webhooks.acceptance import accept_webhook

router = APIRouter(tags=["API keys"])

AccountName = Annotated[
    str | None,
    Query(alias="account", min_length=1, max_length=256, pattern=STORABLE_TEXT, description="For administrators"),
]


class Account(BaseModel):
    """An account. All of its keys share its limits, in addition to each key's own."""

    id: str
    object: Literal["account"]
    name: str
    limits: Limits
    created_at: int


class AccountList(Page[Account]):
    """A page of accounts."""


class RequestKey(BaseModel):
    """The API key of the request: what it may do."""

    id: str
    object: Literal["api_key"]
    name: str
    account_id: str = Field(description="The key's own account")
    scopes: list[str]
    read_only: bool = Field(description="Whether it may send only requests that change nothing")
    limits: Limits
    expires_at: int | None = Field(description="Unix seconds")


class OwnAccount(Account):
    """An account, and the key that asks."""

    key: RequestKey


class AccountUpdate(BaseModel):
    """The new limits of an account, which replace all earlier ones; `null` removes them."""

    model_config = ConfigDict(
        strict=True, extra="forbid", json_schema_extra={"examples": [{"limits": {"monthly_budget": "100"}}]}
    )

    limits: Limits | None


async def find_account(request: ApiRequest, principal: Principal, name: str | None) -> Row:
    """Return the account that a request names, or the principal's own.

    Raises:
        PermissionDeniedError: The request names an account, and the principal is not an administrator.
        NotFoundError: No account has this name.
    """
    database = request.state["database"]
    if name is None:
        own = await accounts.find_account(database, account_id=principal.account_id)
        assert own is not None
        return own
    if not principal.is_admin:
        raise PermissionDeniedError("Only a key with the scope 'admin' may name an account.", param="account")
    found = await accounts.find_account(database, name=name)
    if found is None:
        raise no_such_account(name)
    return found


async def accept_limits(request: ApiRequest, account_id: str, limits: Limits | None) -> None:
    """Check that the alert webhook of an account's limits can be sent.

    Raises:
        InvalidRequestError: The webhook's address is not allowed, or this server sends no webhooks.
    """
    url = None if limits is None else limits.alert_webhook
    if url is None:
        return
    param = "limits.alert_webhook"
    check_text(url, param)
    await accept_webhook(request.state["settings"], request.state["database"], account_id, url, param=param)


def _render(row: Row, limits: Limits) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "account",
        "name": row.name,
        "limits": limits.render(),
        "created_at": row.created_at,
    }


def _render_key(principal: Principal) -> dict[str, Any]:
    expires_at = principal.expires_at
    return {
        "id": principal.key_id,
        "object": "api_key",
        "name": principal.name,
        "account_id": principal.key_account_id,
        "scopes": sorted(principal.scopes),
        "read_only": principal.read_only,
        "limits": principal.limits.render(),
        "expires_at": None if expires_at is None else int(expires_at),
    }


@router.get("/account", summary="Get the account", responses={200: {"model": OwnAccount}})
async def get_account(request: ApiRequest, principal: Authenticated, name: AccountName = None) -> Response:
    """Return the key's account with its limits, and the key. An administrator may name another account."""
    row = await find_account(request, principal, name)
    return render_json({**_render(row, Limits.parse(row.limits)), "key": _render_key(principal)})


@router.get("/accounts", summary="List accounts", responses={200: {"model": AccountList}})
async def list_accounts(
    request: ApiRequest,
    principal: Administrator,  # noqa: ARG001  (the dependency checks the key)
    after: Annotated[str | None, after_id("acct_")] = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> Response:
    """List all accounts, oldest first, for administrators. `Headrace-Account` reads the rows of one by its id."""
    check_after(after, "acct")
    rows = await accounts.list_accounts(
        request.state["database"], after=after, limit=limit + 1, descending=order == "desc"
    )
    return render_page([_render(row, Limits.parse(row.limits)) for row in rows], limit=limit)


@router.post("/account", summary="Limit the account", responses={200: {"model": Account}})
async def update_account(request: ApiRequest, principal: Administrator, name: AccountName = None) -> Response:
    """Set the limits of the key's account or of another one, for administrators. It takes effect within a second."""
    body = await read_body(request, limit=SMALL_BODY)
    limits = parse_body(AccountUpdate, body).limits or Limits()
    row = await find_account(request, principal, name)
    change = await Change.of(request, principal, body)
    if change.done:
        return render_json(_render(row, Limits.parse(row.limits)), change.headers)
    await accept_limits(request, row.id, limits)
    async with change.applying():
        await accounts.limit_account(request.state["database"], row.id, limits)
    return render_json(_render(row, limits))
