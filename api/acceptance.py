"""Accepting a job: the row is committed, then a worker is waked. What the API promises, it promises from here on."""

from __future__ import annotations

import orjson
from fastapi import Request

from headrace.catalogue import Catalogue
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
    for param, text in (
        ("model", chat.model),
        *((f"metadata.{key}", key + value) for key, value in (labels or {}).items()),
    ):
        if "\0" in text:
            raise InvalidRequestError(
                f"Invalid '{param}': it has the character U+0000.", param=param, code="invalid_value"
            )
    # That each model is served is worth knowing before the job is accepted rather than after.
    catalogue: Catalogue = request.state.catalogue
    catalogue.find(chat.model)
    for index, fallback in enumerate(chat.fallbacks or ()):
        catalogue.find(fallback, param=f"fallbacks[{index}]")
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
