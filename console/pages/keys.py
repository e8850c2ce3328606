"""API keys and their limits: the list, one key with what it has spent, and the form for both."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.datastructures import FormData
from starlette.responses import Response

from console.client import Api, ApiError
from console.forms import FieldError, read_form
from console.render import Given, page, redirect
from console.security import Acting, Reading, SignedIn, Writing

router = APIRouter(prefix="/keys")

SCOPES = {
    "usage:read": "read the usage of the whole account",
    "keys:write": "create, change and revoke the account's keys",
    "metrics:read": "read the service's metrics and status",
    "webhooks:write": "read and rotate the secrets of webhooks",
    "admin": "all of these, in all accounts",
}
# The limits that are numbers, with what the form calls them.
COUNTS = {
    "requests_per_minute": "Requests a minute",
    "tokens_per_minute": "Tokens a minute",
    "jobs_in_flight": "Requests at one time",
    "jobs_queued": "Background jobs at one time",
}
BUDGETS = {"daily_budget": "USD a day", "monthly_budget": "USD a month"}
_DAY = 86_400


@router.get("")
async def show_keys(request: Request, session: SignedIn, api: Reading) -> Response:
    """List the account's keys, or show the session's own if it may not."""
    account = await api.get("/account", account=request.query_params.get("account") if session.is_admin else None)
    if not session.may("keys:write"):
        return page(request, "keys.html", account=account, keys=None)
    chosen = {name: request.query_params.get(name) for name in ("account", "include_revoked", "after")}
    keys = await api.get("/api-keys", limit=50, **chosen)
    return page(request, "keys.html", account=account, keys=keys)


@router.get("/new")
async def show_form(request: Request, session: SignedIn) -> Response:  # noqa: ARG001  (only signed in)
    """Show the form for a new key."""
    return _form(request, {}, title="New key")


@router.post("")
async def create_key(request: Request, session: Acting, api: Writing) -> Response:
    """Create a key and show it, once."""
    form = await read_form(request)
    try:
        made = await api.post("/api-keys", _read(form, new=True, admin=session.is_admin))
    except (ApiError, FieldError) as error:
        return _form(request, _values(form), title="New key", error=error)
    return page(request, "new_key.html", made=made, rotated=False)


@router.get("/account")
async def show_account(request: Request, api: Reading) -> Response:
    """Show the form for the limits of an account."""
    account = await api.get("/account", account=request.query_params.get("account"))
    return _limits_form(request, account["name"], _shown(account["limits"]))


@router.post("/account")
async def limit_account(request: Request, session: Acting, api: Writing) -> Response:
    """Change the limits that hold for all keys of an account together."""
    form = await read_form(request)
    name = str(form.get("account", ""))
    try:
        account = await api.get("/account", account=name)
        limits = _kept(account["limits"]) | _read_limits(form)
        await api.post(f"/account?account={quote(name)}", {"limits": limits or None})
    except (ApiError, FieldError) as error:
        return _limits_form(request, name, _values(form), error=error)
    session.say(f"The limits of the account {name} are changed.")
    return redirect(f"/keys?account={quote(name)}")


@router.get("/{key_id}")
async def show_key(request: Request, session: SignedIn, api: Reading, key_id: str) -> Response:
    """Show a key with its limits, and what it has spent of its budgets."""
    key = await api.get(f"/api-keys/{key_id}") if session.may("keys:write") else None
    spent = None
    if session.may("usage:read") or key_id == session.account["key"]["id"]:
        spent = {
            "day": await _spent(api, key_id, _start_of_day()),
            "month": await _spent(api, key_id, _start_of_month()),
        }
    return page(request, "key.html", key=key, key_id=key_id, spent=spent)


@router.get("/{key_id}/edit")
async def show_edit(request: Request, api: Reading, key_id: str) -> Response:
    """Show the form of a key."""
    key = await api.get(f"/api-keys/{key_id}")
    known = {**_shown(key["limits"]), "name": key["name"], "scopes": key["scopes"]}
    return _form(request, known, title=f"Change {key['name'] or key_id}", key=key)


@router.post("/{key_id}")
async def update_key(request: Request, session: Acting, api: Writing, key_id: str) -> Response:
    """Change a key's name, scopes and limits. Its expiry stays unless the form names a new one."""
    form = await read_form(request)
    try:
        key = await api.get(f"/api-keys/{key_id}")
        body = _read(form, new=False, admin=session.is_admin)
        await api.post(f"/api-keys/{key_id}", {**body, "limits": _kept(key["limits"]) | body["limits"]})
    except (ApiError, FieldError) as error:
        return _form(request, _values(form), title="Change the key", key={"id": key_id}, error=error)
    session.say("The key is changed. It takes effect within a second.")
    return redirect(f"/keys/{key_id}")


@router.post("/{key_id}/rotate")
async def rotate_key(request: Request, api: Writing, key_id: str) -> Response:
    """Replace a key's secret and show the new one, once. The old one works for an hour more."""
    made = await api.post(f"/api-keys/{key_id}/rotate", {"overlap_seconds": 3600})
    return page(request, "new_key.html", made=made, rotated=True)


@router.post("/{key_id}/revoke")
async def revoke_key(session: Acting, api: Writing, key_id: str) -> Response:
    """Revoke a key."""
    await api.delete(f"/api-keys/{key_id}")
    session.say("The key is revoked. Its jobs keep running.")
    return redirect("/keys")


def _form(
    request: Request,
    values: Mapping[str, Any],
    *,
    title: str,
    key: Mapping[str, Any] | None = None,
    error: ApiError | FieldError | None = None,
) -> Response:
    return page(
        request,
        "key_form.html",
        status=200 if error is None else 422,
        title=title,
        key=key,
        values=Given(values),
        error=error,
        wrong=_field(error),
        scopes=SCOPES,
        counts=COUNTS,
        budgets=BUDGETS,
    )


def _limits_form(
    request: Request, account: str, values: Mapping[str, Any], error: ApiError | FieldError | None = None
) -> Response:
    return page(
        request,
        "account_limits.html",
        status=200 if error is None else 422,
        account=account,
        values=Given(values),
        error=error,
        wrong=_field(error),
        counts=COUNTS,
        budgets=BUDGETS,
    )


def _field(error: ApiError | FieldError | None) -> str:
    """Return the field of a form that an error is about, or an empty text."""
    return "" if error is None or error.param is None else error.param.rpartition(".")[2]


def _shown(limits: Mapping[str, Any]) -> dict[str, Any]:
    """Return limits as a form shows them."""
    return {**limits, "models": ", ".join(limits.get("models") or ())}


def _kept(limits: Mapping[str, Any]) -> dict[str, Any]:
    """Return the limits that the form does not have, which a change keeps."""
    return {name: limits[name] for name in ("alert_webhook",) if name in limits}


def _values(form: FormData) -> dict[str, Any]:
    """Return what a form had, so that it can be shown again."""
    return {**{name: str(value) for name, value in form.items()}, "scopes": form.getlist("scopes")}


def _read(form: FormData, *, new: bool, admin: bool) -> dict[str, Any]:
    """Return the body that a form asks for.

    Raises:
        FieldError: A field that holds a number holds something else.
    """
    body: dict[str, Any] = {
        "name": str(form.get("name", "")).strip(),
        "scopes": form.getlist("scopes"),
        "limits": _read_limits(form),
    }
    if form.get("days"):
        body["expires_in_seconds"] = _number(form, "days") * _DAY
    if new and form.get("read_only"):
        body["read_only"] = True
    if new and admin and form.get("account"):
        body["account"] = str(form["account"]).strip()
    return body


def _read_limits(form: FormData) -> dict[str, Any]:
    """Return the limits that a form asks for. Raises as `_read` does."""
    limits: dict[str, Any] = {name: _number(form, name) for name in COUNTS if form.get(name)}
    limits |= {name: str(form[name]).strip() for name in BUDGETS if form.get(name)}
    models = [pattern.strip() for pattern in str(form.get("models", "")).split(",") if pattern.strip()]
    if models:
        limits["models"] = models
    if form.get("wait"):
        limits["wait"] = True
    return limits


def _number(form: FormData, name: str) -> int:
    try:
        return int(str(form[name]).replace(",", "").strip())
    except ValueError as error:
        raise FieldError(name) from error


async def _spent(api: Api, key_id: str, start: float) -> float:
    """Return the USD that a key has spent since a moment."""
    usage = await api.get("/usage", key=key_id, start=int(start), end=int(time.time()) + 1)
    return sum(float(row.get("cost") or 0) + float(row.get("discarded_cost") or 0) for row in usage["data"])


def _start_of_day() -> float:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()


def _start_of_month() -> float:
    return datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()
