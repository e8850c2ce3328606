"""The response object, with every field that OpenAI's `Response` and Open Responses' `ResponseResource` require.

It begins with `id`, `object`, `created_at` and `status`, so that the status is read without the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import orjson

from headrace.formats.responses.moderation import moderation_of_response
from headrace.ids import response_id

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]

_STATUS = b'"status":"'
_STATUSES: Mapping[str, ResponseStatus] = {
    "queued": "queued",
    "running": "in_progress",
    "completed": "completed",
    "failed": "failed",
    "expired": "failed",
    "cancelled": "cancelled",
}
CUT_OFF = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Finish reasons of an incomplete response, and what it says of them."""

# A response without an answer, to a request that leaves out all that may be left out.
_DEFAULTS: Mapping[str, Any] = {
    "id": "",
    "object": "response",
    "created_at": 0,
    "status": "in_progress",
    "background": False,
    "completed_at": None,
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "model": "",
    "output": (),
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "conversation": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "auto",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": (),
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "usage": None,
    "metadata": {},
}
# What a response repeats of its request. No null stands for `user` and `prompt` in OpenAI's schema.
_ASKED = frozenset({*_DEFAULTS, "user", "prompt"}) - {
    "id", "object", "created_at", "status", "background", "completed_at", "error", "incomplete_details", "output",
    "usage",
}  # fmt: skip


# OpenAI's `ResponseErrorCode`.
_ERROR_CODES = frozenset(
    {
        "server_error",
        "rate_limit_exceeded",
        "invalid_prompt",
        "data_residency_mismatch",
        "bio_policy",
        "vector_store_timeout",
        "invalid_image",
        "invalid_image_format",
        "invalid_base64_image",
        "invalid_image_url",
        "image_too_large",
        "image_too_small",
        "image_parse_error",
        "image_content_policy_violation",
        "invalid_image_mode",
        "image_file_too_large",
        "unsupported_image_media_type",
        "empty_image_file",
        "failed_to_download_image",
        "image_file_not_found",
    }
)
# Statuses of a provider's answer that blame the prompt.
_INVALID = frozenset({400, 413, 422})


def skeleton(
    document: Mapping[str, Any],
    *,
    job_id: str,
    created: int,
    background: bool,
    status: ResponseStatus,
    model: str | None = None,
) -> dict[str, Any]:
    """Return the response to a stored request, without an answer. `created` is in Unix seconds.

    It repeats the request's parameters, and the defaults of those that are left out. `model` is the one that answered;
    until then it is the one that was asked for.
    """
    response: dict[str, Any] = {
        **_DEFAULTS,
        "id": response_id(job_id),
        "created_at": created,
        "status": status,
        "background": background,
        "output": [],
        "tools": [],
        "metadata": {},
    }
    for name, asked in document.items():
        if asked is not None and name in _ASKED:
            whole = _WHOLE.get(name)
            response[name] = asked if whole is None else whole(asked)
    if model:
        response["model"] = model
    return response


def completed(
    document: Mapping[str, Any],
    *,
    job_id: str,
    created: int,
    background: bool,
    completion: Mapping[str, Any],
    reason: str | None,
    output: list[dict[str, Any]],
    finished: int,
) -> dict[str, Any]:
    """Return the response with its answer: the items of its output, and the rest of an exact chat completion.

    `reason` is the finish reason; the response is incomplete if the model was cut off. `finished` is in Unix seconds.
    """
    cut_off = CUT_OFF.get(reason or "")
    response = skeleton(
        document,
        job_id=job_id,
        created=created,
        background=background,
        status="completed" if cut_off is None else "incomplete",
        model=completion.get("model"),
    )
    if cut_off is None:
        response["completed_at"] = finished
    else:
        response["incomplete_details"] = {"reason": cut_off}
    tier = completion.get("service_tier")
    if tier is not None or response["service_tier"] == "auto":
        response["service_tier"] = tier or "default"
    if (found := completion.get("moderation")) is not None:
        response["moderation"] = moderation_of_response(found)
    response["output"] = output
    response["usage"] = response_usage(completion.get("usage"))
    return response


def failed(response: dict[str, Any], error: Mapping[str, Any]) -> dict[str, Any]:
    """Return a response that failed with the error of its job, one of `HeadraceError.document`."""
    code, status = error.get("code"), error.get("status")
    if code not in _ERROR_CODES:
        invalid = "invalid_prompt" if status in _INVALID else "server_error"
        code = "rate_limit_exceeded" if status == 429 else invalid
    return response | {"status": "failed", "error": {"code": code, "message": error.get("message") or ""}}


def render_stored(
    document: Mapping[str, Any],
    *,
    job_id: str,
    created: int,
    background: bool,
    state: str,
    model: str | None = None,
    response: bytes | None = None,
    error: bytes | None = None,
    finished: int | None = None,
) -> dict[str, Any] | bytes:
    """Return the response of a job in any state: the stored one as it is, or one made of the request and the error.

    `created` and `finished` are in Unix seconds.
    """
    if response is not None:
        return response
    status = _STATUSES[state]
    whole = skeleton(document, job_id=job_id, created=created, background=background, status=status, model=model)
    if status == "completed":
        whole["completed_at"] = finished
    return failed(whole, orjson.loads(error or b"{}")) if status == "failed" else whole


def status_of(response: bytes) -> str:
    """Return the status of a response's JSON, which stands at its head."""
    start = response.index(_STATUS) + len(_STATUS)
    return response[start : response.index(b'"', start)].decode()


def _conversation(asked: Any) -> dict[str, Any]:
    return {"id": asked if isinstance(asked, str) else asked["id"]}


def _reasoning(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {"effort": None, "summary": None, **asked}


def _text(asked: Mapping[str, Any]) -> dict[str, Any]:
    form = asked.get("format") or {"type": "text"}
    if form["type"] == "json_schema":
        form = {"type": "json_schema", "name": form["name"], "description": None, "strict": True, **form}
    return {**asked, "format": form, "verbosity": asked.get("verbosity") or "medium"}


def _tools(asked: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [_tool(tool) for tool in asked]


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    if tool.get("type") != "function":
        return tool
    whole = {"type": "function", "name": tool["name"], "description": None, "parameters": None, **tool}
    strict = whole.get("strict")
    return {**whole, "strict": True if strict is None else strict}


# What makes a parameter of the request whole, where a response has more of it.
_WHOLE: Mapping[str, Callable[[Any], Any]] = {
    "conversation": _conversation,
    "reasoning": _reasoning,
    "text": _text,
    "tools": _tools,
}


def response_usage(usage: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return chat's usage object, one of `exact_usage`, under the names that the Responses API has."""
    if usage is None:
        return None
    read = usage.get("prompt_tokens_details") or {}
    written = usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": read.get("cached_tokens", 0),
            "cache_write_tokens": read.get("cache_write_tokens", 0),
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": written.get("reasoning_tokens", 0)},
        "total_tokens": usage["total_tokens"],
    }
