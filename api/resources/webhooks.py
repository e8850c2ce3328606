"""The secrets that sign an account's webhooks, and the deliveries of webhooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from api.http.authentication import Authenticated, WebhookManager
from api.http.errors import render_json
from api.http.idempotency import Change, replay_headers, resource_id
from api.http.pages import Limit, Order, Page, after_id, check_after, render_page
from api.http.request import ApiRequest
from headrace.errors import ConflictError, NotFoundError, invalid_parameter, shorten
from headrace.ids import new_id
from headrace.keys.principal import Principal
from headrace.stores.connections import Row
from headrace.webhooks import queries
from headrace.webhooks.acceptance import require_secret_key
from headrace.webhooks.queries import DeliveryState
from headrace.webhooks.signing import derive_secret

router = APIRouter(tags=["Webhooks"])

MOST_SECRETS = 8
"""The most valid secrets of an account. Its webhooks are signed with each of them."""

# Seconds for which the previous secret still signs after a rotation.
_OVERLAP_SECONDS = 86_400


class WebhookSecret(BaseModel):
    """A secret. Times are in Unix seconds."""

    id: str
    object: Literal["webhook_secret"]
    secret: str
    created_at: int
    expires_at: int | None = Field(description="Until then this secret signs webhooks too")


class WebhookSecretList(BaseModel):
    """All valid secrets, newest first."""

    object: Literal["list"]
    data: list[WebhookSecret]


class WebhookAttempt(BaseModel):
    """An attempt to deliver a webhook."""

    at: float = Field(description="When the attempt began, in Unix seconds")
    response_status: int | None
    error: str | None = Field(description="Why the receiver did not answer")
    milliseconds: int


class WebhookDelivery(BaseModel):
    """One webhook event and its delivery. Times are in Unix seconds."""

    id: str = Field(description="The `webhook-id`, the same at every attempt")
    object: Literal["webhook_delivery"]
    event: str
    url: str
    status: DeliveryState
    attempts: int
    response_status: int | None = Field(description="The status of the last answer")
    error: str | None = Field(
        description="Why the receiver did not answer the last attempt, or why the webhook is not sent"
    )
    created_at: int
    next_attempt_at: int | None
    ended_at: int | None
    history: list[WebhookAttempt] = Field(description="The latest attempts that have ended, oldest first")
    job_id: str | None = Field(description="The job that the event is about")
    batch_id: str | None = Field(description="The batch that the event is about")


class WebhookDeliveryPage(Page[WebhookDelivery]):
    """A page of an account's deliveries."""


class WebhookDeliveryList(BaseModel):
    """The deliveries of a job or a batch, oldest first."""

    object: Literal["list"]
    data: list[WebhookDelivery]


def _render_delivery(row: Row) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "webhook_delivery",
        "event": row.event,
        "url": row.url,
        "status": row.state,
        "attempts": row.attempts,
        "response_status": row.status,
        "error": row.error,
        "created_at": row.created_at,
        "next_attempt_at": row.next_attempt_at,
        "ended_at": row.ended_at,
        "history": row.history,
        "job_id": row.job_id,
        "batch_id": row.batch_id,
    }


def render_deliveries(rows: Sequence[Row], headers: Mapping[str, str] | None = None) -> Response:
    """Return the deliveries of a job or a batch as a list."""
    return render_json({"object": "list", "data": list(map(_render_delivery, rows))}, headers)


@router.get("/webhook-deliveries", summary="List webhook deliveries", responses={200: {"model": WebhookDeliveryPage}})
async def list_deliveries(
    request: ApiRequest,
    principal: Authenticated,
    status: DeliveryState | None = None,
    after: Annotated[str | None, after_id("evt_")] = None,
    limit: Limit = 20,
    order: Order = "desc",
) -> Response:
    """List the account's webhook deliveries, newest first: those of jobs, batches and budgets."""
    check_after(after, "evt")
    database, account_id = request.state["database"], principal.account_id
    if after is not None and not await queries.has_delivery(database, after, account_id):
        raise invalid_parameter("after", "there is no such delivery")
    rows = await queries.list_account_deliveries(
        database, account_id, state=status, after=after, limit=limit + 1, descending=order == "desc"
    )
    return render_page(list(map(_render_delivery, rows)), limit=limit)


async def resend(request: ApiRequest, principal: Principal, subject_id: str, delivery_id: str) -> Response:
    """Send a webhook of a job or a batch again, and return all deliveries of the job or batch.

    Raises:
        NotFoundError: The job or batch has no such delivery.
        ConflictError: The Idempotency-Key came with another request.
    """
    database, account_id = request.state["database"], principal.account_id
    rows = await queries.list_deliveries(database, subject_id, account_id)
    if all(row.id != delivery_id for row in rows):
        raise NotFoundError(f"No webhook delivery found with id '{shorten(delivery_id)}'.")
    change = await Change.of(request, principal)
    if not change.done:
        async with change.applying() as key:
            await queries.resend_delivery(database, delivery_id, account_id, key=key)
        request.state["publisher"].call_scheduler()
        rows = await queries.list_deliveries(database, subject_id, account_id)
    return render_deliveries(rows, change.headers)


def _render_secrets(secret_key: str, rows: Sequence[Row], headers: Mapping[str, str] | None = None) -> Response:
    data = [
        {
            "id": row.id,
            "object": "webhook_secret",
            "secret": derive_secret(secret_key, row.id),
            "created_at": row.created_at,
            "expires_at": row.expires_at,
        }
        for row in rows
    ]
    return render_json({"object": "list", "data": data}, {"cache-control": "no-store", **(headers or {})})


@router.get("/webhook-secrets", summary="List webhook secrets", responses={200: {"model": WebhookSecretList}})
async def list_secrets(request: ApiRequest, principal: WebhookManager) -> Response:
    """List the account's valid secrets. An account always has at least one."""
    secret_key = require_secret_key(request.state["settings"])
    return _render_secrets(secret_key, await queries.list_secrets(request.state["database"], principal.account_id))


@router.post("/webhook-secrets", summary="Rotate the webhook secret", responses={200: {"model": WebhookSecretList}})
async def rotate_secret(request: ApiRequest, principal: WebhookManager) -> Response:
    """Create a new secret. The previous one signs webhooks too for one more day."""
    secret_key = require_secret_key(request.state["settings"])
    database, account_id = request.state["database"], principal.account_id
    secret_id, repeated = await resource_id(request, principal, new_id("secret"), b"{}")
    rows = await queries.list_secrets(database, account_id)
    if not repeated or all(row.id != secret_id for row in rows):
        if len(rows) >= MOST_SECRETS:
            raise ConflictError(
                f"An account has at most {MOST_SECRETS} valid secrets: wait until the oldest ones expire."
            )
        rows = await queries.rotate_secret(database, account_id, secret_id, overlap_seconds=_OVERLAP_SECONDS)
    return _render_secrets(secret_key, rows, replay_headers(repeated))
