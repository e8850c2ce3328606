"""Chat completions in OpenAI's shape: whole, streamed, or in the background."""

from __future__ import annotations

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from api.http.authentication import Authenticated
from api.http.body import read_body
from api.http.request import ApiRequest
from api.http.routes import DirectRoute
from api.jobs.accept import Submission, accept, answering, new_job
from api.jobs.asked import Asked
from api.jobs.foreground import Foreground
from headrace.formats.chat.completion import ChatCompletion
from headrace.jobs.job_object import Job, find_job
from headrace.keys.principal import Principal
from headrace.runtime.offload import offloaded

router = APIRouter(tags=["Chat"], route_class=DirectRoute)


@router.post(
    "/chat/completions",
    summary="Create a chat completion",
    responses={
        200: {"model": ChatCompletion, "content": {"text/event-stream": {}}},
        202: {"model": Job, "description": "With `background`: the job"},
    },
)
async def create_chat_completion(request: ApiRequest, principal: Authenticated) -> Response:
    """Return the completion, stream it, or with `background` start a job and return the job."""
    submission = await _submit(request, principal)
    if submission.job.background:
        return await start(request, submission)
    return Foreground(request, principal, submission).answer()


async def _submit(request: ApiRequest, principal: Principal) -> Submission:
    """Return the job that a request asks for. The body is freed on return, before the client waits."""
    body = await read_body(request)
    asked = await offloaded(len(body), Asked.parse, body)
    return await new_job(request, principal, asked, sent=body, background=bool(asked.terms.background))


async def start(request: ApiRequest, submission: Submission) -> Response:
    """Accept a background job, and return it as the answer."""
    job = submission.job
    async with answering(request, job) as made:
        await accept(request, submission)
        made()
        rendered = await find_job(request.state["database"], job.id, job.account_id)
    headers = {"location": f"/api/v1/jobs/{job.id}", **submission.headers}
    return Response(orjson.dumps(rendered), 202, headers, "application/json")
