"""The playground: a conversation with a model.

Each message is a background job, so a page that is closed loses nothing.
"""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.datastructures import FormData
from starlette.responses import Response

from console.client import Api, ApiError, ApiUnavailableError
from console.forms import FieldError, read_form
from console.pages.job import FINAL, input_path, read_input, times_of
from console.render import Given, page, redirect
from console.security import Reading, Writing
from console.transcript import turns_of_answer

router = APIRouter(prefix="/playground")

FORMATS = {"chat": "Chat Completions", "responses": "Responses"}
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
TIERS = ("default", "priority", "flex")
STREAMS = {"on": "as the model writes it", "off": "whole, at its end"}
# What a form says besides its message; the page's URL keeps it for the next message.
_SETTINGS = ("model", "format", "temperature", "max_tokens", "effort", "tier", "stream")
# Messages or items that one request to the API asks for.
_PAGE = 100


@router.get("")
async def show_playground(request: Request, api: Reading) -> Response:
    """Show the form, and above it the conversation up to the job that the query names."""
    return await _show(request, api, Given(request.query_params))


@router.post("")
async def send(request: Request, api: Writing) -> Response:
    """Submit a message as a background job and show the page that streams its answer."""
    form = await read_form(request)
    values = Given({name: str(value) for name, value in form.items()})
    try:
        job_id = await _submit(api, form, values)
    except (ApiError, ApiUnavailableError, FieldError) as error:
        return await _show(request, api, values, error=error)
    kept = {name: values[name] for name in _SETTINGS if values[name]}
    return redirect(f"/playground?{urlencode({**kept, 'job': job_id})}")


_Problem = ApiError | ApiUnavailableError | FieldError


async def _submit(api: Api, form: FormData, values: Given) -> str:
    """Submit the message of a form and return the job's id. A form that is sent twice submits one job.

    Raises:
        ApiError: The API refused it.
        FieldError: A setting is not a number.
    """
    once = {"idempotency-key": str(form.get("once", "")) or secrets.token_urlsafe(16)}
    if values["format"] == "responses":
        body = {**_response_body(values), **await _earlier_items(api, values), "background": True}
        response = await api.post("/responses", body, **once)
        return "job_" + str(response["id"]).removeprefix("resp_")
    earlier = await _earlier_messages(api, values["job"]) if values["job"] else []
    job = await api.post("/jobs", {"request": _chat_body(values, earlier)}, **once)
    return str(job["id"])


def _chat_body(values: Given, earlier: list[dict[str, Any]]) -> dict[str, Any]:
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
    body |= _numbers(values, max_tokens="max_output_tokens")
    if values["effort"]:
        body["reasoning"] = {"effort": values["effort"]}
    return body | _tier(values)


def _numbers(values: Given, *, max_tokens: str) -> dict[str, float]:
    """Return the settings that are numbers, under the names of the format.

    Raises:
        FieldError: One is not a number.
    """
    found: dict[str, float] = {}
    for field, name, kind in (("temperature", "temperature", float), ("max_tokens", max_tokens, int)):
        if not values[field]:
            continue
        try:
            found[name] = kind(values[field])
        except ValueError as error:
            raise FieldError(field) from error
    return found


def _tier(values: Given) -> dict[str, str]:
    return {"service_tier": values["tier"]} if values["tier"] not in {"", "default"} else {}


async def _earlier_messages(api: Api, job_id: str) -> list[dict[str, Any]]:
    """Return the messages of a job and its answer, as the next request sends them."""
    job = await api.get(f"/jobs/{job_id}")
    choices = (job["result"] or {}).get("choices") or []
    return [*map(_sendable, await _input(api, job)), *(_sendable(choice["message"]) for choice in choices[:1])]


async def _earlier_items(api: Api, values: Given) -> dict[str, Any]:
    """Return the fields by which a response goes on after a job: its response, or what a job without one was asked."""
    if not values["job"]:
        return {}
    job = await api.get(f"/jobs/{values['job']}")
    if job["status"] == "completed":
        return {"previous_response_id": "resp_" + values["job"].removeprefix("job_")}
    items = map(_without_id, await _input(api, job))
    return {"input": [*items, {"role": "user", "content": values["message"]}]}


async def _input(api: Api, job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all messages or items that a job's model reads, oldest first. A job that stores none has none."""
    found: list[dict[str, Any]] = []
    after = None
    try:
        while True:
            part = await api.get(input_path(job), order="asc", limit=_PAGE, after=after)
            found += part["data"]
            if not part["has_more"]:
                return found
            after = part["last_id"]
    except ApiError as error:
        if error.status != 404:
            raise
        return found


def _sendable(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message that the API lists, or that of an answer, as a request has it."""
    names = ("role", "name", "tool_calls", "tool_call_id", "refusal")
    kept = {name: message[name] for name in names if message.get(name)}
    content = message.get("content_parts") or message.get("content")
    return kept if content is None and "tool_calls" in kept else {**kept, "content": content or ""}


def _without_id(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in {"id", "status"}}


async def _show(request: Request, api: Api, values: Given, *, error: _Problem | None = None) -> Response:
    """Return the page. What was written stays on it, also while the API is unavailable."""
    try:
        models = (await api.get("/models"))["data"]
        job = await api.get(f"/jobs/{values['job']}") if values["job"] else None
        asked = None if job is None else await read_input(api, job)
        code = None if job is None else await _code(request, api, job, values)
    except ApiUnavailableError:
        if error is None:
            raise
        models, job, asked, code = [], None, None, None
    if job is not None:
        kept = {"format": job["format"], "model": values["model"] or job["model"]}
        # A response's instructions do not go on by themselves.
        if job["format"] == "responses" and not values["system"]:
            kept["system"] = (job["result"] or {}).get("instructions") or ""
        values = Given({**values, **kept})
    values.setdefault("format", "chat")
    values.setdefault("stream", "on")
    unsent = isinstance(error, ApiUnavailableError)
    return page(
        request,
        "playground.html",
        status=200 if error is None else 503 if unsent else 422,
        values=values,
        models=[model["id"] for model in models] or [""],
        formats=FORMATS,
        efforts=EFFORTS,
        tiers=TIERS,
        streams=STREAMS,
        job=job,
        ended=job is None or job["status"] in FINAL,
        times=None if job is None else times_of(job),
        turns=[] if asked is None else asked.turns,
        answer=[] if job is None else turns_of_answer(job),
        code=code,
        once=(unsent and values["once"]) or secrets.token_urlsafe(16),
        problem_text="" if error is None else _text(error),
        wrong=_field(error),
    )


def _text(error: _Problem) -> str:
    """Return what the page says of an error."""
    if isinstance(error, ApiUnavailableError):
        return "The API is unavailable. Nothing is lost: send the message again in a moment."
    return error.message


def _field(error: _Problem | None) -> str:
    """Return the field of the form that an error is about, or an empty text."""
    param = "" if error is None or isinstance(error, ApiUnavailableError) else error.param or ""
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
    base = f"{request.app.state.public_url.rstrip('/')}/api/v1"
    settings = Given({"model": job["model"]} | {name: values[name] for name in _SETTINGS if values[name]})
    asked = await _input(api, job)
    if job["format"] == "chat":
        path, call = "/chat/completions", "client.chat.completions.create"
        body = _chat_body(settings, [_sendable(message) for message in asked])
        shown = "        print(choice.delta.content or '', end='', flush=True)"
        loop = f"for chunk in {call}(**request):\n    for choice in chunk.choices:\n{shown}"
        whole = f"print({call}(**request).choices[0].message.content)"
    else:
        path, call = "/responses", "client.responses.create"
        body = {**_response_body(settings), "input": [_without_id(item) for item in asked]}
        shown = "        print(event.delta, end='', flush=True)"
        loop = f"for event in {call}(**request):\n    if event.type == 'response.output_text.delta':\n{shown}"
        whole = f"print({call}(**request).output_text)"
    if settings["stream"] == "off":
        loop = whole
    else:
        body["stream"] = True
    text = json.dumps(body, ensure_ascii=False)
    curl = (
        f"curl {'-N ' if 'stream' in body else ''}{base}{path} \\\n"
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
