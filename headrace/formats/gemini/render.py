"""A chat request as Gemini's: https://ai.google.dev/api/generate-content.

Written from the types of Google's own Python client of 2026-08-21, read 2026-11. System and developer messages become
`systemInstruction`, wherever they stand. A tool's result names the function and not only the call. A call's signature
goes back from `extra_content.google.thought_signature`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from headrace.errors import invalid_parameter
from headrace.formats.chat.dropped import asks_for_json
from headrace.formats.chat.generations import (
    EFFORTS,
    GEMINI_LEVELS_SINCE,
    GEMINI_THINKS_SINCE,
    gemini_budget_range,
    gemini_least_level,
    gemini_mixes,
    gemini_penalises,
    gemini_version,
)
from headrace.formats.chat.support import LimitParameter
from headrace.formats.gemini.parse import Json
from headrace.formats.lenient import parse_lenient_json
from headrace.formats.media import audio_of, file_of, image_of
from headrace.formats.tools import offered_tools, parse_arguments

MANY_CHOICES = True

# What Google says to send with a call whose signature is lost: https://ai.google.dev/gemini-api/docs/thought-signatures.
_NO_SIGNATURE = "skip_thought_signature_validator"
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 32768, "max": 32768}
_LEVELS = {"low": "low", "medium": "medium"}

_PASSED = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "n": "candidateCount",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
}
_PENALTIES = ("presence_penalty", "frequency_penalty")


def render_url(base_url: str, *, model: str, stream: bool) -> str:
    """Return where the request goes; the model is part of it.

    A name with `/` is a resource's, such as `tunedModels/NAME`. Each of its parts is quoted, so that none of them can
    end the path, leave it or add a query.
    """
    parts = model.split("/") if "/" in model else ("models", model)
    name = "/".join(quote(part, safe="") for part in parts)
    return f"{base_url.rstrip('/')}/{name}:{'streamGenerateContent?alt=sse' if stream else 'generateContent'}"


def render_headers(secret: str | None) -> dict[str, str]:
    """Return the headers that carry the provider's key."""
    return {} if secret is None else {"x-goog-api-key": secret}


def render_request(
    request: Mapping[str, Any],
    *,
    model: str,
    stream: bool,  # noqa: ARG001  (it is in the URL)
    output_limit: int | None,  # noqa: ARG001  (Gemini has its own default)
    limit_parameter: LimitParameter | None = None,  # noqa: ARG001  (the format has one name for it)
) -> bytes:
    """Return the body.

    Raises:
        InvalidRequestError: It holds a medium or a result that the format cannot carry, or no text at all.
    """
    given = {name: value for name, value in request.items() if value is not None}
    system, contents = _render_messages(given["messages"], signed=gemini_version(model) >= GEMINI_LEVELS_SINCE)
    if not contents:
        # A conversation needs a turn of the user's.
        system, contents = [], [{"role": "user", "parts": system}]
    if not contents[0]["parts"]:
        raise invalid_parameter("messages", "there is no text in them", code=None)
    body: Json = {"contents": contents}
    if system:
        body["systemInstruction"] = {"parts": system}
    body |= _render_tools(given, model)
    if config := _render_config(given, model):
        body["generationConfig"] = config
    if "safety_settings" in given:
        body["safetySettings"] = given["safety_settings"]
    return orjson.dumps(body)


def _render_config(given: Json, model: str) -> Json:
    left_out = () if gemini_penalises(model) else _PENALTIES
    config: Json = {theirs: given[ours] for ours, theirs in _PASSED.items() if ours in given and ours not in left_out}
    if limit := given.get("max_completion_tokens") or given.get("max_tokens"):
        config["maxOutputTokens"] = limit
    if stop := given.get("stop"):
        config["stopSequences"] = [stop] if isinstance(stop, str) else stop
    form = given.get("response_format", {})
    if asks_for_json(given):
        config["responseMimeType"] = "application/json"
    if form.get("type") == "json_schema" and form["json_schema"].get("schema"):
        config["responseJsonSchema"] = form["json_schema"]["schema"]
    effort, version = given.get("reasoning_effort"), gemini_version(model)
    if effort not in EFFORTS:
        return config
    if version >= GEMINI_LEVELS_SINCE:
        level = gemini_least_level(model) if effort in ("none", "minimal") else _LEVELS.get(effort, "high")
        config["thinkingConfig"] = {"thinkingLevel": level, "includeThoughts": effort != "none"}
    elif version >= GEMINI_THINKS_SINCE:
        least, most = gemini_budget_range(model)
        budget = max(least, min(_BUDGETS[effort], most))
        config["thinkingConfig"] = {"thinkingBudget": budget, "includeThoughts": effort != "none"}
    return config


def _render_tools(given: Json, model: str) -> Json:
    tools, choice = offered_tools(given)
    # Tools that are not to be called would make the provider refuse a JSON format.
    if not tools or (choice == "none" and asks_for_json(given) and not gemini_mixes(model)):
        return {}
    body: Json = {"tools": [{"functionDeclarations": [_render_function(tool["function"]) for tool in tools]}]}
    if isinstance(choice, str):
        config: Json = {"mode": {"none": "NONE", "required": "ANY"}.get(choice, "AUTO")}
    else:
        config = {"mode": "ANY", "allowedFunctionNames": [choice["function"]["name"]]}
    # What happens anyway is not said.
    return body if config == {"mode": "AUTO"} else {**body, "toolConfig": {"functionCallingConfig": config}}


def _render_function(function: Json) -> Json:
    rendered = {"name": function["name"]}
    if function.get("description"):
        rendered["description"] = function["description"]
    if function.get("parameters"):
        rendered["parametersJsonSchema"] = function["parameters"]
    return rendered


def _render_messages(messages: Sequence[Json], *, signed: bool) -> tuple[list[Json], list[Json]]:
    """Return the parts of the system's instruction, and the turns: consecutive messages of a side are one turn."""
    system: list[Json] = []
    turns: list[Json] = []
    names: dict[str, str] = {}
    for index, message in enumerate(messages):
        role = message["role"]
        param = f"messages[{index}]"
        if role in ("system", "developer"):
            system += _render_content(message, param)
            continue
        side = "model" if role == "assistant" else "user"
        parts = [_render_result(message, names, param)] if role == "tool" else _render_content(message, param)
        if role == "assistant":
            names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls") or ()}
            parts += _render_calls(message, signed=signed)
        if not parts:
            continue
        if turns and turns[-1]["role"] == side:
            turns[-1]["parts"] += parts
        else:
            turns.append({"role": side, "parts": parts})
    return system, turns


def _render_content(message: Json, param: str) -> list[Json]:
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    rendered = [
        _render_part(part, f"{param}.content[{index}]")
        for index, part in enumerate(parts)
        if part["type"] != "text" or part["text"]
    ]
    return [*rendered, {"text": message["refusal"]}] if message.get("refusal") else rendered


def _render_part(part: Json, param: str) -> Json:
    match part["type"]:
        case "text":
            return {"text": part["text"]}
        case "refusal":
            return {"text": part["refusal"]}
        case "image_url":
            medium = image_of(part, param)
        case "input_audio":
            medium = audio_of(part, param)
        case _:
            medium = file_of(part, param)
    if medium.url is not None:
        return {"fileData": {"mimeType": medium.media_type, "fileUri": medium.url}}
    return {"inlineData": {"mimeType": medium.media_type, "data": medium.data}}


def _render_calls(message: Json, *, signed: bool) -> list[Json]:
    parts = []
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = call["function"]
        rendered = {"name": function["name"], "args": parse_arguments(function["arguments"]), "id": call["id"]}
        part: Json = {"functionCall": rendered}
        signature = _signature(call)
        if signature or (signed and not index):
            part["thoughtSignature"] = signature or _NO_SIGNATURE
        parts.append(part)
    return parts


def _signature(call: Json) -> str | None:
    """Return the signature that came with a call, if the client has kept it where it was."""
    held: Any = call
    for name in ("extra_content", "google", "thought_signature"):
        held = held.get(name) if isinstance(held, dict) else None
    return held if isinstance(held, str) else None


def _render_result(message: Json, names: Mapping[str, str], param: str) -> Json:
    call_id = message["tool_call_id"]
    if call_id not in names:
        raise invalid_parameter(f"{param}.tool_call_id", "no message before calls a tool by this id", code=None)
    content = message["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    try:
        response = parse_lenient_json(text.encode("utf-8", "replace"))
    except ValueError:
        response = None
    if not isinstance(response, dict) or _has_reference(response):
        response = {"output": text}
    return {"functionResponse": {"name": names[call_id], "id": call_id, "response": response}}


def _has_reference(value: Any) -> bool:
    """Return whether a key of a document begins with `$`: Google takes `$ref` for its own reference, and refuses."""
    if isinstance(value, list):
        return any(map(_has_reference, value))
    return isinstance(value, dict) and any(
        name.startswith("$") or _has_reference(inner) for name, inner in value.items()
    )
