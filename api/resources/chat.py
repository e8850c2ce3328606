"""Chat completions, as OpenAI has them: waited for, streamed, or in the background."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.http.authentication import Authenticated
from api.http.body import read_body
from api.jobs.accept import Asked, Submission, accept, answering, new_job
from api.jobs.foreground import Foreground
from headrace.formats.chat.completion import ChatCompletion
from headrace.formats.chat.request import ChatRequest
from headrace.jobs.job_object import Job, find_job
from headrace.keys.queries import Principal
from headrace.runtime.offload import offloaded

router = APIRouter(tags=["Chat"])


@router.post(
    "/chat/completions",
    summary="Create a chat completion",
    responses={
        200: {"model": ChatCompletion, "content": {"text/event-stream": {}}},
        202: {"model": Job, "description": "With `background`: the job"},
    },
)
async def create_chat_completion(request: Request, principal: Authenticated) -> Response:
    """Answer with the completion, stream it, or with `background` start a job and return it."""
    submission, includes_usage = await _submit(request, principal)
    if submission.job.background:
        return await start(request, submission)
    foreground = Foreground(request, principal, submission)
    return await (foreground.stream(includes_usage) if submission.job.streamed else foreground.whole())


async def _submit(request: Request, principal: Principal) -> tuple[Submission, bool]:
    """Return the job that is asked for, and whether its stream is to tell its usage; what was sent is let go of."""
    body = await read_body(request)
    asked = await offloaded(len(body), Asked.parse, body)
    submission = await new_job(request, principal, asked, sent=body, background=bool(asked.chat.background))
    return submission, _includes_usage(asked.chat)


async def start(request: Request, submission: Submission) -> Response:
    """Accept a job that runs in the background, and return its answer: the job."""
    job = submission.job
    async with answering(request, job) as made:
        await accept(request, submission)
        made()
        rendered = await find_job(request.state.database, job.id, job.account_id)
    headers = {"location": f"/api/v1/jobs/{job.id}", **submission.headers}
    return Response(orjson.dumps(rendered), 202, headers, "application/json")


def _includes_usage(chat: ChatRequest) -> bool:
    return chat.stream_options is not None and bool(chat.stream_options.include_usage)
