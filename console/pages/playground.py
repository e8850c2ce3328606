"""The playground: a conversation with a model.

Each message is a background job, so a page that is closed loses nothing.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.datastructures import FormData
from starlette.responses import Response

from console.client import Api, ApiError
from console.pages.job import FINAL, read_input, times_of
from console.render import Given, page, redirect
from console.security import Acting, Reading, SignedIn, Writing
from console.transcript import turns_of_answer

router = APIRouter(prefix="/playground")

FORMATS = {"chat": "Chat Completions", "responses": "Responses"}
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
TIERS = ("default", "priority", "flex")
# What a form says besides its message; the page's URL keeps it for the next message.
_SETTINGS = ("model", "format", "temperature", "max_tokens", "effort", "tier")
# Messages of a conversation that the next one takes along.
_MOST_MESSAGES = 100


@router.get("")
async def show_playground(request: Request, session: SignedIn, api: Reading) -> Response:  # noqa: ARG001
    """Show the form, and above it the conversation up to the job that the query names."""
    return await _show(request, api, Given(request.query_params))


@router.post("")
async def send(request: Request, session: Acting, api: Writing) -> Response:  # noqa: ARG001
    """Submit a message as a background job and show the page that streams its answer."""
    form = await request.form()
    values = Given({name: str(value) for name, value in form.items()})
    try:
        job_id = await _submit(api, form, values)
    except (ApiError, _NumberError) as error:
        return await _show(request, api, values, error=error)
    kept = {name: values[name] for name in _SETTINGS if values[name]}
    return redirect(f"/playground?{urlencode({**kept, 'job': job_id})}")


class _NumberError(ValueError):
    """A setting is not a number."""

    def __init__(self, param: str) -> None:
        super().__init__(param)
        self.param = param
        self.message = "This is not a number."


async def _submit(api: Api, form: FormData, values: Given) -> str:
    """Submit the message of a form and return the job's id. A form that is sent twice submits one job.

    Raises:
        ApiError: The API refused it.
        _NumberError: A setting is not a number.
    """
    once = {"idempotency-key": str(form.get("once", "")) or secrets.token_urlsafe(16)}
    if values["format"] == "responses":
        body = {**_response_body(values), "background": True}
        response = await api.post("/responses", body, **once)
        return "job_" + str(response["id"]).removeprefix("resp_")
    earlier = await _earlier_messages(api, values["job"]) if values["job"] else []
    job = await api.post("/jobs", {"request": _chat_body(values, earlier)}, **once)
    return str(job["id"])


def _chat_body(values: Given, earlier: list[dict[str, str]]) -> dict[str, Any]:
    messages = list(earlier)
    if values["system"] and not earlier:
        messages.append({"role": "system", "content": values["system"]})
    if values["message"]:
        messages.append({"role": "user", "content": values["message"]})
    body: dict[str, Any] = {"model": values["model"], "messages": messages}
    body |= _numbers(values, max_tokens="max_completion_tokens")
    if values["effort"]:
        body["reasoning_effort"] = values["effort"]
    return body | _tier(values)


def _response_body(values: Given) -> dict[str, Any]:
    body: dict[str, Any] = {"model": values["model"], "input": values["message"]}
    if values["system"]:
        body["instructions"] = values["system"]
    if values["job"]:
        body["previous_response_id"] = "resp_" + values["job"].removeprefix("job_")
    body |= _numbers(values, max_tokens="max_output_tokens")
    if values["effort"]:
        body["reasoning"] = {"effort": values["effort"]}
    return body | _tier(values)


def _numbers(values: Given, *, max_tokens: str) -> dict[str, float]:
    """Return the settings that are numbers, under the names of the format.

    Raises:
        _NumberError: One is not a number.
    """
    found: dict[str, float] = {}
    for field, name, kind in (("temperature", "temperature", float), ("max_tokens", max_tokens, int)):
        if not values[field]:
            continue
        try:
            found[name] = kind(values[field])
        except ValueError as error:
            raise _NumberError(field) from error
    return found


def _tier(values: Given) -> dict[str, str]:
    return {"service_tier": values["tier"]} if values["tier"] not in {"", "default"} else {}


async def _earlier_messages(api: Api, job_id: str) -> list[dict[str, str]]:
    """Return the messages of a job and its answer, as the next request sends them: the text of each."""
    digits = job_id.removeprefix("job_")
    asked, job = await asyncio.gather(
        api.get(f"/chat/completions/chatcmpl-{digits}/messages", limit=_MOST_MESSAGES), api.get(f"/jobs/{job_id}")
    )
    messages = [{"role": one["role"], "content": one["content"]} for one in asked["data"] if one.get("content")]
    choices = (job["result"] or {}).get("choices") or [{"message": {}}]
    answer = choices[0]["message"].get("content")
    return [*messages, {"role": "assistant", "content": answer}] if answer else messages


async def _show(request: Request, api: Api, values: Given, *, error: ApiError | _NumberError | None = None) -> Response:
    models = (await api.get("/models"))["data"]
    job = await api.get(f"/jobs/{values['job']}") if values["job"] else None
    if job is not None:
        kept = {"format": job["format"], "model": values["model"] or job["model"]}
        if (
            job["format"] == "responses" and not values["system"]
        ):  # a response's instructions do not go on by themselves
            kept["system"] = (job["result"] or {}).get("instructions") or ""
        values = Given({**values, **kept})
    values.setdefault("format", "chat")
    asked = None if job is None else await read_input(api, job)
    return page(
        request,
        "playground.html",
        status=200 if error is None else 422,
        values=values,
        models=[model["id"] for model in models] or [""],
        formats=FORMATS,
        efforts=EFFORTS,
        tiers=TIERS,
        job=job,
        ended=job is None or job["status"] in FINAL,
        times=None if job is None else times_of(job),
        turns=[] if asked is None else asked.turns,
        answer=[] if job is None else turns_of_answer(job),
        code=None if job is None else await _code(request, api, job, values),
        once=secrets.token_urlsafe(16),
        error=error,
        wrong=_field(error),
    )


def _field(error: ApiError | _NumberError | None) -> str:
    """Return the field of the form that an error is about, or an empty text."""
    param = "" if error is None else error.param or ""
    names = {
        "max_completion_tokens": "max_tokens",
        "max_output_tokens": "max_tokens",
        "reasoning_effort": "effort",
        "service_tier": "tier",
        "input": "message",
        "messages": "message",
        "instructions": "system",
    }
    name = param.removeprefix("request.").partition(".")[0].partition("[")[0]
    return "effort" if name == "reasoning" else names.get(name, name)


async def _code(request: Request, api: Api, job: Mapping[str, Any], values: Given) -> dict[str, str]:
    """Return what sends the same request: a curl command and a Python program. Neither holds the key."""
    base = f"{request.app.state.api_url.rstrip('/')}/api/v1"
    settings = Given({name: values[name] for name in _SETTINGS})
    digits = job["id"].removeprefix("job_")
    if job["format"] == "chat":
        path, call = "/chat/completions", "client.chat.completions.create"
        asked = (await api.get(f"/chat/completions/chatcmpl-{digits}/messages", limit=_MOST_MESSAGES))["data"]
        messages = [{"role": one["role"], "content": one["content"]} for one in asked]
        body = {**_chat_body(settings, messages), "stream": True}
        shown = "        print(choice.delta.content or '', end='', flush=True)"
        loop = f"for chunk in {call}(**request):\n    for choice in chunk.choices:\n{shown}"
    else:
        path, call = "/responses", "client.responses.create"
        items = (await api.get(f"/responses/resp_{digits}/input_items", limit=_MOST_MESSAGES, order="asc"))["data"]
        said = [{name: item[name] for name in ("role", "content") if name in item} for item in items]
        body = {**_response_body(settings), "input": said, "stream": True}
        shown = "        print(event.delta, end='', flush=True)"
        loop = f"for event in {call}(**request):\n    if event.type == 'response.output_text.delta':\n{shown}"
    text = json.dumps(body, ensure_ascii=False)
    curl = (
        f"curl -N {base}{path} \\\n"
        '  -H "Authorization: Bearer $HEADRACE_API_KEY" \\\n'
        "  -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(text)}"
    )
    python = (
        "import json\nimport os\n\nfrom openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{base}", api_key=os.environ["HEADRACE_API_KEY"])\n'
        f"request = json.loads({text!r})\n{loop}\n"
    )
    return {"curl": curl, "Python": python}
