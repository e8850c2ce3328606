"""Accepting a job: the row is committed, then a worker is waked. What the API promises, it promises from here on."""

from __future__ import annotations

import orjson
from fastapi import Request

from headrace.chat.request import ChatRequest
from headrace.errors import InvalidRequestError
from headrace.ids import new_id
from headrace.jobs.queries import NewJob
from headrace.keys.queries import Principal

# `auto` and `scale` are OpenAI's own affair; `fast` is its newer name for the tier that goes first.
_TIERS = {"priority": "priority", "fast": "priority", "flex": "flex"}


def new_job(
    request: Request,
    principal: Principal,
    chat: ChatRequest,
    body: str,
    *,
    tier: str | None = None,
    metadata: dict[str, str] | None = None,
    timeout: float | None = None,
    background: bool,
) -> NewJob:
    """Return the job that a chat request asks for. What is given besides wins over what the request says.

    Raises:
        ModelNotFoundError: Nobody serves the model, or one of its fallbacks.
        InvalidRequestError: It asks for what is not there yet.
    """
    if chat.webhook is not None:
        raise InvalidRequestError("Webhooks are not supported yet.", param="webhook", code="unsupported_parameter")
    labels = metadata if metadata is not None else chat.metadata
    if "\0" in chat.model or any("\0" in key + value for key, value in (labels or {}).items()):
        raise InvalidRequestError("A model's name and metadata may not contain the character U+0000.")
    # That each model is served is worth knowing before the job is accepted rather than after.
    request.state.catalogue.routes(chat.model, chat.fallbacks or ())
    return NewJob(
        id=new_id("job"),
        account_id=principal.account_id,
        key_id=principal.key_id,
        model=chat.model,
        request=body,
        metadata=orjson.dumps(labels).decode() if labels else None,
        tier=tier or _TIERS.get(chat.service_tier or "", "default"),
        background=background,
        streamed=bool(chat.stream) and not background,
        origin=None if background else request.state.hub.origin,
        timeout_seconds=timeout or chat.timeout or request.state.settings.job_timeout_seconds,
    )


async def accept(request: Request, job: NewJob) -> int:
    """Commit the job and wake a worker for it; returns when it was created, in Unix seconds."""
    created: int = await request.state.inserts.submit(job)
    request.state.queue.wake([job.id], tier=job.tier)
    return created
