"""Accepting a job: the API commits its row, then wakes a worker. Once committed, the job is not lost."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from decimal import Decimal
from urllib.parse import quote

import orjson

from api.http.idempotency import give_up_claim, has_key, resource_id
from api.http.request import ApiRequest
from api.jobs.asked import Asked
from api.jobs.cancel import cancel
from api.jobs.client_events import Begin, events_for
from api.jobs.tracing import trace_submission
from headrace.agents.queries import AgentVersion, find_agent
from headrace.catalogue.models import Route
from headrace.catalogue.routing import UsableRoute, check_servable
from headrace.errors import HeadraceError, ModelNotFoundError
from headrace.formats.chat.usage import estimate_demand
from headrace.ids import AGENT_PREFIX, is_id, new_id
from headrace.jobs.records import NewJob
from headrace.jobs.sql.read import read_progress
from headrace.keys.principal import Principal
from headrace.quotas.cost import check_priced, highest_cost
from headrace.quotas.gate import Demand, Scope
from headrace.runtime.offload import offloaded
from headrace.telemetry import rates
from headrace.telemetry.context import note
from headrace.telemetry.metrics import JOBS_SUBMITTED, bound
from headrace.webhooks.acceptance import accept_webhook

# OpenAI's `auto` and `scale` have no meaning here. `fast` is its newer name for `priority`.
_TIERS = {"priority": "priority", "fast": "priority", "flex": "flex"}
_submitted = bound(JOBS_SUBMITTED)
# Characters of a header's value: many clients read only a few kilobytes of headers.
_LONGEST_HEADER = 2048


@dataclass(slots=True)
class Submission:
    """A job to accept, the limits that it counts against, and the headers of its answer."""

    job: NewJob
    headers: dict[str, str]
    scopes: Sequence[Scope]
    routes: Sequence[Route]
    """The routes that the worker may try, in order."""
    asked: Asked | None
    """The request, until Postgres has it."""
    events: Begin
    """Makes the stream that the client reads, if it asked for one."""
    repeated: bool
    """Whether an earlier request with the same Idempotency-Key may have created the job."""


async def new_job(
    request: ApiRequest,
    principal: Principal,
    asked: Asked,
    *,
    sent: bytes,
    tier: str | None = None,
    metadata: dict[str, str] | None = None,
    timeout_seconds: float | None = None,
    webhook: str | None = None,
    background: bool,
) -> Submission:
    """Return the job that a request to a model or an agent asks for.

    `sent` is the whole body, which a repeated request with the same Idempotency-Key repeats. The other arguments
    override fields of the request.

    Raises:
        ModelNotFoundError: No provider serves the model or one of its fallbacks, or the account has no such agent.
        InvalidRequestError: No route to the model supports the request, or its webhook is not allowed.
        ConflictError: The Idempotency-Key came with another request.
    """
    state = request.state
    webhook = webhook or asked.terms.webhook
    if webhook is not None:
        await accept_webhook(state["settings"], state["database"], principal.account_id, webhook)
    principal.check_may_ask(asked.terms.model, asked.terms.fallbacks or ())
    labels = metadata if metadata is not None else asked.terms.metadata
    asked, agent = await resolve_agent(request, principal, asked)
    usable, job_id, repeated = await _usable_routes(request, principal, asked, sent=sent, metadata=labels)
    terms = asked.terms
    job = NewJob(
        id=job_id,
        account_id=principal.account_id,
        key_id=principal.key_id,
        model=terms.model,
        format=asked.format,
        request=await offloaded(len(asked.body), asked.stored, job_id),
        agent_id=None if agent is None else agent.id,
        agent_version=None if agent is None else agent.version,
        metadata=orjson.dumps(labels).decode() if labels else None,
        tier=tier or _TIERS.get(terms.service_tier or "", "default"),
        background=background,
        streamed=bool(terms.stream) and not background,
        # A client with a key may come back to any process, so the events of its job go to no single one.
        origin=None if background or has_key(request) else state["hub"].origin,
        webhook=webhook,
        stored=terms.store is not False,
        conversation_id=asked.conversation_id,
        trace_context=state["trace_context"],
        timeout_seconds=timeout_seconds or terms.timeout or state["settings"].job_timeout_seconds,
    )
    scopes = [Scope(principal.key_id, principal.limits), Scope(principal.account_id, principal.account_limits)]
    return Submission(
        job,
        _headers(job_id, usable[0].dropped),
        scopes,
        [way.route for way in usable],
        asked,
        events_for(asked, job_id),
        repeated=repeated,
    )


async def resolve_agent(request: ApiRequest, principal: Principal, asked: Asked) -> tuple[Asked, AgentVersion | None]:
    """Return a request to an agent as the request to the agent's model, and the agent; any other request as it is.

    Raises:
        ModelNotFoundError: The account has no such agent.
        InvalidRequestError: The request and the agent do not go together.
    """
    agent_id, agent = asked.terms.model, None
    if not agent_id.startswith(AGENT_PREFIX):
        return asked, None
    if is_id(agent_id, "agent"):
        agent = await find_agent(request.state["database"], agent_id, principal.account_id)
    if agent is None:
        raise ModelNotFoundError.of(agent_id)
    return await offloaded(len(agent.definition) + len(asked.body), asked.to_model_of, agent), agent


async def _usable_routes(
    request: ApiRequest, principal: Principal, asked: Asked, *, sent: bytes, metadata: dict[str, str] | None
) -> tuple[list[UsableRoute], str, bool]:
    """Return the routes for a job, the job's id, and whether an earlier request may have created the job.

    The request is checked before its Idempotency-Key is claimed. The order of the routes depends on the id.
    """
    check = functools.partial(
        check_servable,
        request.state["catalogue"].current,
        asked.terms,
        asked.translation,
        format=asked.format,
        metadata=metadata,
    )
    size, fresh = len(asked.body), new_id("job")
    usable = await offloaded(size, check, seed=fresh)
    job_id, repeated = await resource_id(request, principal, fresh, sent)
    note(job=job_id)
    if repeated:
        usable = await offloaded(size, check, seed=job_id)
    return usable, job_id, repeated


def _headers(job_id: str, dropped: Sequence[str]) -> dict[str, str]:
    headers = {"x-headrace-job": job_id}
    if dropped:
        # The client chose the names, so they may contain any character.
        names = ", ".join(quote(name, safe="[].") for name in dropped)
        headers["x-headrace-dropped-params"] = names[:_LONGEST_HEADER]
    return headers


async def accept(request: ApiRequest, submission: Submission) -> int:
    """Commit the job and wake a worker for it. Returns the time of its creation, in Unix seconds.

    Raises:
        RateLimitError: A limit of the key or the account is reached, or too many jobs of the account wait.
        InvalidRequestError: The key or the account has a budget, and the model has no price.
    """
    state, job = request.state, submission.job
    if submission.repeated and (progress := await read_progress(state["database"], job.id)) is not None:
        submission.headers["idempotent-replayed"] = "true"
        _free(request, submission)
        return progress.created
    span = trace_submission(
        job.id,
        job.tier,
        account_id=job.account_id,
        parent=job.trace_context,
        details={"gen_ai.request.model": job.model, "headrace.format": job.format},
    )
    if span is None:
        return await _commit(request, submission)
    with span:
        submission.job = replace(job, trace_context=span.context)
        return await _commit(request, submission)


async def _commit(request: ApiRequest, submission: Submission) -> int:
    """Commit the job within its limits, and wake a worker. Raises as `accept` does."""
    state, job = request.state, submission.job
    state["waiting"].check(job.account_id)
    if any(scope.is_limited for scope in submission.scopes):
        try:
            job = await _admit(request, submission)
        except HeadraceError as error:
            if not (error.retryable or submission.repeated):  # the client has to send another request
                await give_up_claim(request, job.account_id, job.id)
            raise
    try:
        created = await state["inserts"].submit(job)
    except BaseException:
        if job.reserved_cost is not None:
            # In a task of its own, because the client's disconnection may cancel this one.
            await asyncio.shield(asyncio.create_task(state["gate"].settle_ended(submission.scopes, job.id)))
        raise
    _submitted(job.tier, job.format).inc()
    rates.count("submitted")
    state["waiting"].add(job.account_id)
    if job.delay_seconds:
        asyncio.get_running_loop().call_later(job.delay_seconds, lambda: state["queue"].wake([job.id], tier=job.tier))
    else:
        state["queue"].wake([job.id], tier=job.tier)
        await asyncio.sleep(0)  # the wake-up leaves before the rest of the request is done
    _free(request, submission)
    return created


def answering(request: ApiRequest, job: NewJob) -> AbstractAsyncContextManager[Callable[[], None]]:
    """Return the context in which a job is accepted and its client answered: see `Cancellations.answering`."""
    cancellations = request.state["cancellations"]

    async def cancel_if_unanswered() -> bool:
        cancelled = await cancel(request, job.id, job.account_id)
        return cancelled is None or cancelled.never_ran

    return cancellations.answering(request, job.id, cancel_if_unanswered)


def _free(request: ApiRequest, submission: Submission) -> None:
    """Free the memory of a request that Postgres has: its client may wait for the job for a long time."""
    submission.job.request = ""
    submission.asked = None
    request.state["body_memory"].give_back(request)


async def _admit(request: ApiRequest, submission: Submission) -> NewJob:
    job, asked = submission.job, submission.asked
    assert asked is not None
    if any(scope.limits.has_budget for scope in submission.scopes):
        check_priced(request.state["catalogue"].current, submission.routes, asked.document)
    tokens, cost = await offloaded(len(asked.body), _demand, asked, submission.routes)
    demand = Demand(job.id, background=job.background, tokens=tokens, cost=cost)
    admission = await request.state["gate"].admit(submission.scopes, demand)
    submission.headers |= admission.headers
    return replace(job, reserved_cost=cost, delay_seconds=admission.delay_seconds)


def _demand(asked: Asked, routes: Sequence[Route]) -> tuple[int, Decimal]:
    """Return the most tokens and USD that a request may use."""
    tokens = estimate_demand(asked.document, output_limit=routes[0].output_limit)
    return tokens.total_tokens, highest_cost(routes, asked.document)
