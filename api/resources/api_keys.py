"""API keys: created and shown once, changed, rotated, revoked. Administrators manage those of all accounts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from api.http.authentication import KeyManager
from api.http.body import SMALL_BODY, read_body
from api.http.errors import render_json
from api.http.idempotency import Change, resource_id
from api.http.pages import Limit, Order, Page, after_id, render_page
from api.http.request import ApiRequest
from api.resources.account import AccountName, accept_limits, find_account
from headrace.errors import ConflictError, PermissionDeniedError
from headrace.formats.chat.validation import parse_body
from headrace.ids import is_id, new_id
from headrace.keys import queries
from headrace.keys.accounts import ensure_account
from headrace.keys.key_object import (
    ApiKey,
    DeletedApiKey,
    KeyRequest,
    KeyRotation,
    KeyUpdate,
    NewApiKey,
    no_such_key,
    render_key,
)
from headrace.keys.principal import Principal
from headrace.keys.queries import KeyChanges
from headrace.keys.strength import Strength, inherit
from headrace.quotas.rules import Limits
from headrace.stores.connections import Row

router = APIRouter(prefix="/api-keys", tags=["API keys"])

MOST_KEYS = 1000
"""The most keys of an account, without revoked ones."""


class ApiKeyList(Page[ApiKey]):
    """A page of API keys."""


_BOOTSTRAP = "The operator's variable HEADRACE_BOOTSTRAP_KEY sets the bootstrap key."


async def _find(request: ApiRequest, principal: Principal, key_id: str) -> Row:
    row = None
    if is_id(key_id, "key"):
        account_id = None if principal.is_admin and not principal.names_account else principal.account_id
        row = await queries.find_key(request.state["database"], key_id, account_id=account_id)
    if row is None:
        raise no_such_key(key_id)
    return row


def _check_strength(own: Strength, strength: Strength) -> None:
    """Check that a key can do no more than `own`: the key that creates, changes or rotates it.

    Raises:
        PermissionDeniedError: The key could do more; the error names the field.
    """
    field = strength.beyond(own)
    if field is not None:
        raise PermissionDeniedError(
            f"Invalid '{field}': a key may make and change only keys that can do no more than itself.", param=field
        )


async def _find_to_change(request: ApiRequest, principal: Principal, key_id: str) -> Row:
    row = await _find(request, principal, key_id)
    if key_id != principal.key_id:
        _check_strength(principal.strength, _strength(row))
    return row


def _strength(row: Row) -> Strength:
    return Strength(row.scopes, Limits.parse(row.limits), row.expires_at, row.read_only)


def _changed(row: Row, changes: KeyChanges) -> Strength:
    """Return the strength of a key after the changes."""
    before = _strength(row)
    expires_at = before.expires_at
    if "expires_at" in changes:
        expires_at = None if changes["expires_at"] is None else changes["expires_at"].timestamp()
    return Strength(
        changes.get("scopes", before.scopes),
        changes.get("limits", before.limits),
        expires_at,
        changes.get("read_only", before.read_only),
    )


async def _show_once(request: ApiRequest, principal: Principal, key_id: str, key: str) -> Response:
    answer = render_json({**render_key(await _find(request, principal, key_id)), "key": key})
    answer.headers["cache-control"] = "no-store"
    return answer


@router.post("", summary="Create an API key", responses={200: {"model": NewApiKey}})
async def create_key(request: ApiRequest, principal: KeyManager) -> Response:
    """Create a key, which only this answer shows. It can do no more than the key that creates it.

    Limits and an expiry that the body leaves out are those of the creating key. The account's limits hold as well.
    """
    body = await read_body(request, limit=SMALL_BODY)
    asked = parse_body(KeyRequest, body)
    if asked.account is not None and not principal.is_admin:
        raise PermissionDeniedError("Only a key with the scope 'admin' may name an account.", param="account")
    changes = asked.changes
    changes["limits"] = inherit(changes.get("limits", Limits()), principal.limits)
    if changes.get("expires_at") is None and principal.expires_at is not None:
        changes["expires_at"] = datetime.fromtimestamp(principal.expires_at, UTC)
    expires_at = changes.get("expires_at")
    _check_strength(
        principal.strength,
        Strength(
            changes.get("scopes", ()),
            changes["limits"],
            None if expires_at is None else expires_at.timestamp(),
            changes.get("read_only", False),
        ),
    )
    database = request.state["database"]
    account_id = principal.account_id
    if asked.account is not None:
        account_id = await ensure_account(database, asked.account)
    await accept_limits(request, account_id, asked.limits)
    key_id, _ = await resource_id(request, principal, new_id("key"), body)
    key_id, key = await queries.create_key(
        database, key_id=key_id, account_id=account_id, parent_id=principal.key_id, most=MOST_KEYS, **changes
    )
    return await _show_once(request, principal, key_id, key)


@router.get("", summary="List API keys", responses={200: {"model": ApiKeyList}})
async def list_keys(
    request: ApiRequest,
    principal: KeyManager,
    account: AccountName = None,
    include_revoked: bool = False,
    after: Annotated[str | None, after_id("key_")] = None,
    limit: Limit = 20,
    order: Order = "desc",
) -> Response:
    """List the account's keys, newest first, without their secrets. An administrator may name another account."""
    account_id = (await find_account(request, principal, account)).id
    if after is not None:
        await _find(request, principal, after)
    found = await queries.list_keys(
        request.state["database"],
        account_id=account_id,
        include_revoked=include_revoked,
        after=after,
        limit=limit + 1,
        descending=order == "desc",
    )
    return render_page([render_key(row) for row in found], limit=limit)


@router.get("/{key_id}", summary="Get an API key", responses={200: {"model": ApiKey}})
async def get_key(request: ApiRequest, principal: KeyManager, key_id: str) -> Response:
    """Return a key's properties, without its secret."""
    return render_json(render_key(await _find(request, principal, key_id)))


@router.post("/{key_id}", summary="Change an API key", responses={200: {"model": ApiKey}})
async def update_key(request: ApiRequest, principal: KeyManager, key_id: str) -> Response:
    """Change the fields that the body names; `null` removes a field. It takes effect within a second.

    Afterwards the key can do no more than the key that changes it. A key can only narrow itself.
    """
    body = await read_body(request, limit=SMALL_BODY)
    asked = parse_body(KeyUpdate, body)
    row = await _find_to_change(request, principal, key_id)
    changes = asked.changes
    if changes.keys() - {"name"}:
        own = _strength(row) if key_id == principal.key_id else principal.strength
        _check_strength(own, _changed(row, changes))
    change = await Change.of(request, principal, body)
    if not change.done:
        if row.status == "revoked":
            raise ConflictError("Cannot change an API key that is revoked.")
        if row.bootstrap and changes.keys() & {"scopes", "expires_at", "read_only"}:
            raise ConflictError(_BOOTSTRAP)
        await accept_limits(request, row.account_id, asked.limits)
        async with change.applying():
            await queries.update_key(request.state["database"], key_id, changes)
    return render_json(render_key(await _find(request, principal, key_id)), change.headers)


@router.post("/{key_id}/rotate", summary="Rotate an API key", responses={200: {"model": NewApiKey}})
async def rotate_key(request: ApiRequest, principal: KeyManager, key_id: str) -> Response:
    """Replace the secret of a key by a new one, which only this answer shows. Its id, limits and usage stay.

    The old secret works for `overlap_seconds` more. A second rotation within that time ends it.
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
        key = await queries.rotate_key(request.state["database"], key_id, overlap_seconds=asked.overlap_seconds)
    return await _show_once(request, principal, key_id, key)


@router.delete("/{key_id}", summary="Revoke an API key", responses={200: {"model": DeletedApiKey}})
async def revoke_key(
    request: ApiRequest,
    principal: KeyManager,
    key_id: str,
    children: Annotated[
        bool | None,
        Query(
            description="Also revoke the keys that it created, and theirs in turn; the default for keys without 'admin'"
        ),
    ] = None,
) -> Response:
    """Revoke a key within a second. Its jobs keep running, and its usage stays."""
    row = await _find_to_change(request, principal, key_id)
    if row.bootstrap:
        raise ConflictError(_BOOTSTRAP)
    await queries.revoke_key(request.state["database"], key_id, children=children)
    return render_json({"id": key_id, "object": "api_key.deleted", "deleted": True})
