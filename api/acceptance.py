"""Accepting a job: the row is committed, then a worker is waked. What the API promises, it promises from here on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import orjson
from fastapi import Request

from headrace.agents.persona import AGENT_PREFIX, resolve
from headrace.agents.queries import AgentVersion, find_agent
from headrace.chat.request import ChatRequest, parse_chat_request
from headrace.errors import InvalidRequestError, ModelNotFoundError
from headrace.ids import is_id, new_id
from headrace.jobs.queries import NewJob
from headrace.keys.queries import Principal
from headrace.routing import check_servable

# `auto` and `scale` are OpenAI's own affair; `fast` is its newer name for the tier that goes first.
_TIERS = {"priority": "priority", "fast": "priority", "flex": "flex"}
_LONGEST_HEADER = 2048


@dataclass(frozen=True, slots=True)
class Submission:
    """A job to be accepted, and what the headers of its answer say of it."""

    job: NewJob
    headers: Mapping[str, str]


async def new_job(
    request: Request,
    principal: Principal,
    chat: ChatRequest,
    body: bytes,
    *,
    tier: str | None = None,
    metadata: dict[str, str] | None = None,
    timeout_seconds: float | None = None,
    background: bool,
) -> Submission:
    """Return the job that a chat request asks for, of a model or an agent.

    What is given besides wins over what the request says.

    Raises:
        ModelNotFoundError: Nobody serves the model, or one of its fallbacks; or the account has no such agent.
        InvalidRequestError: It asks for what is not there yet, or for what no route to the model can honour.
    """
    if chat.webhook is not None:
        raise InvalidRequestError("Webhooks are not supported yet.", param="webhook", code="unsupported_parameter")
    labels = metadata if metadata is not None else chat.metadata
    asked = orjson.loads(body)
    agent = None
    if chat.model.startswith(AGENT_PREFIX):
        agent = await _agent(request, principal, chat.model)
        asked = resolve(orjson.loads(agent.definition), asked)
        body = orjson.dumps(asked)
        chat = parse_chat_request(body)  # what each may say alone may be wrong together
    job_id = new_id("job")
    first = check_servable(request.state.catalogue.current, chat, asked, metadata=labels, seed=job_id)
    job = NewJob(
        id=job_id,
        account_id=principal.account_id,
        key_id=principal.key_id,
        model=chat.model,
        request=body.decode(),
        agent_id=None if agent is None else agent.id,
        agent_version=None if agent is None else agent.version,
        metadata=orjson.dumps(labels).decode() if labels else None,
        tier=tier or _TIERS.get(chat.service_tier or "", "default"),
        background=background,
        streamed=bool(chat.stream) and not background,
        origin=None if background else request.state.hub.origin,
        timeout_seconds=timeout_seconds or chat.timeout or request.state.settings.job_timeout_seconds,
    )
    return Submission(job, _headers(job_id, first.dropped))


async def _agent(request: Request, principal: Principal, agent_id: str) -> AgentVersion:
    agent = None
    if is_id(agent_id, "agent"):
        agent = await find_agent(request.state.database, agent_id, principal.account_id)
    if agent is None:
        raise ModelNotFoundError(
            f"The model '{agent_id[:100]}' does not exist or you do not have access to it.", param="model"
        )
    return agent


def _headers(job_id: str, dropped: Sequence[str]) -> dict[str, str]:
    headers = {"x-headrace-job": job_id}
    if dropped:
        # Names are the client's, so they may hold anything; and no client reads more than a few kilobytes of a header.
        names = ", ".join(quote(name, safe="[].") for name in dropped)
        headers["x-headrace-dropped-params"] = names[:_LONGEST_HEADER]
    return headers


async def accept(request: Request, job: NewJob) -> int:
    """Commit the job and wake a worker for it; returns when it was created, in Unix seconds."""
    created: int = await request.state.inserts.submit(job)
    request.state.queue.wake([job.id], tier=job.tier)
    return created
