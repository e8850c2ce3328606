"""API keys: created and shown once, changed, rotated and revoked. An account's own, or all for administrators."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api.account import AccountName, accept_limits, find_account
from api.authentication import Authenticated
from api.idempotency import Change, resource_id
from api.pages import render_page
from api.scope import SMALL_BODY, read_body, render_json
from headrace.chat.validation import parse_body
from headrace.database import Row
from headrace.errors import ConflictError, PermissionDeniedError
from headrace.ids import is_id, new_id
from headrace.keys import queries
from headrace.keys.key_object import (
    ApiKey,
    ApiKeyList,
    DeletedApiKey,
    KeyRequest,
    KeyRotation,
    KeyUpdate,
    NewApiKey,
    no_such_key,
    render_key,
)
from headrace.keys.queries import Principal

router = APIRouter(prefix="/api-keys", tags=["API keys"])

_BOOTSTRAP = "The bootstrap key is decided by its operator's variable, HEADRACE_BOOTSTRAP_KEY."


def _manager(principal: Authenticated) -> Principal:
    if not principal.may("keys:write"):
        raise PermissionDeniedError("Only a key with the scope 'keys:write' may manage API keys.")
    return principal


Manager = Annotated[Principal, Depends(_manager)]


async def _find(request: Request, principal: Principal, key_id: str) -> Row:
    row = None
    if is_id(key_id, "key"):
        account_id = None if principal.is_admin else principal.account_id
        row = await queries.find_key(request.state.database, key_id, account_id=account_id)
    if row is None:
        raise no_such_key(key_id)
    return row


def _check_scopes(principal: Principal, scopes: Iterable[str]) -> None:
    """Check that a key would not come by more than it has: by making, changing or rotating another one.

    Raises:
        PermissionDeniedError: It lacks one of the scopes.
    """
    for scope in scopes:
        if not principal.may(scope):
            raise PermissionDeniedError(f"This API key does not have the scope '{scope}' itself.", param="scopes")


async def _find_to_change(request: Request, principal: Principal, key_id: str) -> Row:
    row = await _find(request, principal, key_id)
    _check_scopes(principal, row.scopes)
    return row


async def _show_once(request: Request, principal: Principal, key_id: str, key: str) -> Response:
    answer = render_json({**render_key(await _find(request, principal, key_id)), "key": key})
    answer.headers["cache-control"] = "no-store"
    return answer


@router.post("", summary="Create an API key", responses={200: {"model": NewApiKey}})
async def create_key(request: Request, principal: Manager) -> Response:
    """Create a key, which the answer alone has. It can have no scope that the one who creates it lacks.

    An account's limits hold whatever limits its keys are given.
    """
    body = await read_body(request, limit=SMALL_BODY)
    asked = parse_body(KeyRequest, body)
    if asked.account is not None and not principal.is_admin:
        raise PermissionDeniedError("Only a key with the scope 'admin' may name an account.", param="account")
    _check_scopes(principal, asked.scopes or ())
    database = request.state.database
    account_id = principal.account_id
    if asked.account is not None:
        account_id = await queries.ensure_account(database, asked.account)
    await accept_limits(request, account_id, asked.limits)
    key_id, _ = await resource_id(request, principal, new_id("key"), body)
    key_id, key = await queries.create_key(database, key_id=key_id, account_id=account_id, **asked.changes)
    return await _show_once(request, principal, key_id, key)


@router.get("", summary="List API keys", responses={200: {"model": ApiKeyList}})
async def list_keys(
    request: Request,
    principal: Manager,
    account: AccountName = None,
    include_revoked: bool = False,
    after: Annotated[str | None, Query(description="The last id of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """List the account's keys, newest first, without the keys themselves; an administrator may name another account."""
    account_id = (await find_account(request, principal, account)).id
    if after is not None:
        await _find(request, principal, after)
    found = await queries.list_keys(
        request.state.database,
        account_id=account_id,
        include_revoked=include_revoked,
        after=after,
        limit=limit + 1,
        descending=order == "desc",
    )
    return render_page([render_key(row) for row in found], limit=limit)


@router.get("/{key_id}", summary="Get an API key", responses={200: {"model": ApiKey}})
async def get_key(request: Request, principal: Manager, key_id: str) -> Response:
    """Return what is to be known of a key."""
    return render_json(render_key(await _find(request, principal, key_id)))


@router.post("/{key_id}", summary="Change an API key", responses={200: {"model": ApiKey}})
async def update_key(request: Request, principal: Manager, key_id: str) -> Response:
    """Change what the body names, and leave the rest; `null` takes it away. It has its effect within a second."""
    body = await read_body(request, limit=SMALL_BODY)
    asked = parse_body(KeyUpdate, body)
    row = await _find_to_change(request, principal, key_id)
    _check_scopes(principal, asked.scopes or ())
    changes = asked.changes
    change = await Change.of(request, principal, body)
    if not change.done:
        if row.status == "revoked":
            raise ConflictError("Cannot change an API key that is revoked.")
        if row.bootstrap and changes.keys() & {"scopes", "expires_at"}:
            raise ConflictError(_BOOTSTRAP)
        await accept_limits(request, row.account_id, asked.limits)
        async with change.applying():
            await queries.update_key(request.state.database, key_id, changes)
    return render_json(render_key(await _find(request, principal, key_id)), change.headers)


@router.post("/{key_id}/rotate", summary="Rotate an API key", responses={200: {"model": NewApiKey}})
async def rotate_key(request: Request, principal: Manager, key_id: str) -> Response:
    """Replace the key by a new one, which the answer alone has; its id, limits and usage stay.

    The key from before works for `overlap_seconds` more. A second rotation within that time ends it.
    """
    body = await read_body(request, limit=SMALL_BODY) or b"{}"
    asked = parse_body(KeyRotation, body)
    row = await _find_to_change(request, principal, key_id)
    change = await Change.of(request, principal, body)
    if change.done:
        raise ConflictError("The key was rotated already, and the new one is shown once: rotate it again.")
    if row.bootstrap:
        raise ConflictError(_BOOTSTRAP)
    if row.status != "active":
        raise ConflictError(f"Cannot rotate an API key that is {row.status}.")
    async with change.applying():
        key = await queries.rotate_key(request.state.database, key_id, overlap_seconds=asked.overlap_seconds)
    return await _show_once(request, principal, key_id, key)


@router.delete("/{key_id}", summary="Revoke an API key", responses={200: {"model": DeletedApiKey}})
async def revoke_key(request: Request, principal: Manager, key_id: str) -> Response:
    """Let a key work no longer, within a second. What was asked with it runs on, and its usage stays."""
    row = await _find_to_change(request, principal, key_id)
    if row.bootstrap:
        raise ConflictError(_BOOTSTRAP)
    await queries.revoke_key(request.state.database, key_id)
    return render_json({"id": key_id, "object": "api_key.deleted", "deleted": True})
