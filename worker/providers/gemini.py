"""Google's generateContent: https://ai.google.dev/api/generate-content.

Written from the types of Google's own Python client of 2026-08-21, read 2026-11. A whole answer has the form of a
stream's event, so that one parser reads both. Where the vocabularies differ:

* System and developer messages, wherever they stand, become `systemInstruction`.
* A result names the function that was called, and not only the call.
* Thought is `reasoning_content`; a call's signature is `extra_content.google.thought_signature`, as in Google's own
  OpenAI-compatible answers, and goes back from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from headrace.chat.completion import Fold
from headrace.chat.support import gemini_version
from headrace.chat.tool_calls import render_arguments
from headrace.errors import (
    InvalidRequestError,
    UpstreamError,
    UpstreamKeyError,
    UpstreamRateLimitError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
)
from worker.providers.lenient import parse_json
from worker.providers.media import audio_of, file_of, image_of
from worker.providers.skipped import skip
from worker.providers.tools import offered_tools, parse_arguments

MANY_CHOICES = True

_Json = dict[str, Any]

# What Google says to send with a call whose signature is lost: https://ai.google.dev/gemini-api/docs/thought-signatures.
_NO_SIGNATURE = "skip_thought_signature_validator"
_THINKS_SINCE = (2, 5)
_LEVELS_SINCE = (3, 0)
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 32768, "max": 32768}
_LEVELS = {"none": "low", "minimal": "low", "low": "low", "medium": "medium"}

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
_FINISH_REASONS = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
    "UNEXPECTED_TOOL_CALL": "stop",  # of a tool that it was not given: there is no more to say
}
_ERRORS: Mapping[int, type[UpstreamError]] = {
    400: UpstreamRefusedError,
    401: UpstreamKeyError,
    403: UpstreamKeyError,
    404: UpstreamRefusedError,
    429: UpstreamRateLimitError,
    504: UpstreamTimeoutError,
}


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


# ---------------------------------------------------------------------------------------------------------------------
# The request


def render_request(
    request: Mapping[str, Any],
    *,
    model: str,
    stream: bool,  # noqa: ARG001  (it is in the URL)
    output_limit: int | None,  # noqa: ARG001  (Gemini has its own default)
) -> bytes:
    """Return the body.

    Raises:
        InvalidRequestError: It holds a medium or a result that the format cannot carry, or no text at all.
    """
    given = {name: value for name, value in request.items() if value is not None}
    system, contents = _render_messages(given["messages"], signed=gemini_version(model) >= _LEVELS_SINCE)
    if not contents:
        # A conversation needs a turn of the user's.
        system, contents = [], [{"role": "user", "parts": system}]
    if not contents[0]["parts"]:
        raise InvalidRequestError("Invalid 'messages': there is no text in them.", param="messages")
    body: _Json = {"contents": contents}
    if system:
        body["systemInstruction"] = {"parts": system}
    body |= _render_tools(given)
    if config := _render_config(given, model):
        body["generationConfig"] = config
    if "safety_settings" in given:
        body["safetySettings"] = given["safety_settings"]
    return orjson.dumps(body)


def _render_config(given: _Json, model: str) -> _Json:
    config: _Json = {theirs: given[ours] for ours, theirs in _PASSED.items() if ours in given}
    if limit := given.get("max_completion_tokens") or given.get("max_tokens"):
        config["maxOutputTokens"] = limit
    if stop := given.get("stop"):
        config["stopSequences"] = [stop] if isinstance(stop, str) else stop
    form = given.get("response_format", {})
    if form.get("type") in ("json_object", "json_schema"):
        config["responseMimeType"] = "application/json"
    if form.get("type") == "json_schema" and form["json_schema"].get("schema"):
        config["responseJsonSchema"] = form["json_schema"]["schema"]
    effort, version = given.get("reasoning_effort"), gemini_version(model)
    if effort is not None and version >= _LEVELS_SINCE:
        config["thinkingConfig"] = {"thinkingLevel": _LEVELS.get(effort, "high"), "includeThoughts": True}
    elif effort is not None and version >= _THINKS_SINCE:
        config["thinkingConfig"] = {"thinkingBudget": _BUDGETS[effort], "includeThoughts": effort != "none"}
    return config


def _render_tools(given: _Json) -> _Json:
    tools, choice = offered_tools(given)
    if not tools:
        return {}
    body: _Json = {"tools": [{"functionDeclarations": [_render_function(tool["function"]) for tool in tools]}]}
    if isinstance(choice, str):
        config: _Json = {"mode": {"none": "NONE", "required": "ANY"}.get(choice, "AUTO")}
    else:
        config = {"mode": "ANY", "allowedFunctionNames": [choice["function"]["name"]]}
    # What happens anyway is not said.
    return body if config == {"mode": "AUTO"} else {**body, "toolConfig": {"functionCallingConfig": config}}


def _render_function(function: _Json) -> _Json:
    rendered = {"name": function["name"]}
    if function.get("description"):
        rendered["description"] = function["description"]
    if function.get("parameters"):
        rendered["parametersJsonSchema"] = function["parameters"]
    return rendered


def _render_messages(messages: Sequence[_Json], *, signed: bool) -> tuple[list[_Json], list[_Json]]:
    """Return the parts of the system's instruction, and the turns: consecutive messages of a side are one turn."""
    system: list[_Json] = []
    turns: list[_Json] = []
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


def _render_content(message: _Json, param: str) -> list[_Json]:
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    rendered = [
        _render_part(part, f"{param}.content[{index}]")
        for index, part in enumerate(parts)
        if part["type"] != "text" or part["text"]
    ]
    return [*rendered, {"text": message["refusal"]}] if message.get("refusal") else rendered


def _render_part(part: _Json, param: str) -> _Json:
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


def _render_calls(message: _Json, *, signed: bool) -> list[_Json]:
    parts = []
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = call["function"]
        rendered = {"name": function["name"], "args": parse_arguments(function["arguments"]), "id": call["id"]}
        part: _Json = {"functionCall": rendered}
        signature = _signature(call)
        if signature or (signed and not index):
            part["thoughtSignature"] = signature or _NO_SIGNATURE
        parts.append(part)
    return parts


def _signature(call: _Json) -> str | None:
    """Return the signature that came with a call, if the client has kept it where it was."""
    held: Any = call
    for name in ("extra_content", "google", "thought_signature"):
        held = held.get(name) if isinstance(held, dict) else None
    return held if isinstance(held, str) else None


def _render_result(message: _Json, names: Mapping[str, str], param: str) -> _Json:
    call_id = message["tool_call_id"]
    if call_id not in names:
        param = f"{param}.tool_call_id"
        raise InvalidRequestError(f"Invalid '{param}': no message before calls a tool by this id.", param=param)
    content = message["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    try:
        response = parse_json(text.encode("utf-8", "replace"))
    except ValueError:
        response = None
    if not isinstance(response, dict) or _has_reference(response):
        response = {"output": text}
    return {"functionResponse": {"name": names[call_id], "id": call_id, "response": response}}


def _has_reference(value: Any) -> bool:
    """Tell whether a key of a document begins with `$`: Google takes `$ref` for a reference of its own, and refuses."""
    if isinstance(value, list):
        return any(map(_has_reference, value))
    return isinstance(value, dict) and any(
        name.startswith("$") or _has_reference(inner) for name, inner in value.items()
    )


# ---------------------------------------------------------------------------------------------------------------------
# The answer


def parse_completion(body: bytes) -> dict[str, Any]:
    """Return the `chat.completion` of a whole answer, but for what the job gives it.

    Raises:
        UpstreamError: It is none.
    """
    fold, parser = Fold(), StreamParser()
    chunks = [chunk for answer in _answers(body) for chunk in parser.parse(answer)]
    for chunk in chunks:
        fold.add(chunk)
    if not fold.finished:
        raise _nonsense()
    completion = fold.completion(id="", created=0, model=chunks[0]["model"])
    return {name: value for name, value in completion.items() if name not in ("id", "object", "created")}


def _answers(body: bytes) -> list[bytes]:
    """Return the answers of a body: one, or all of a stream as one array, as Google sends it without `alt=sse`."""
    if not body.lstrip().startswith(b"["):
        return [body]
    try:
        document = parse_json(body)
    except ValueError:
        return [body]
    return [orjson.dumps(answer) for answer in document]


def parse_stream() -> StreamParser:
    """Return the parser of a new stream."""
    return StreamParser()


class StreamParser:
    """Where a stream of candidates stands. Nothing in it says that it is over: it ends with its last finish reason."""

    def __init__(self) -> None:
        self.done = False
        self._calls: dict[int, int] = {}

    def parse(self, data: bytes, name: bytes = b"") -> Sequence[dict[str, Any]]:  # noqa: ARG002  (its events have none)
        """Return the chunks of an event.

        Raises:
            UpstreamError: It makes no sense, or it is an error, or the prompt was blocked.
        """
        answer = _parse_object(data)
        try:
            return self._parse(answer)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            raise _nonsense() from None

    def _parse(self, answer: _Json) -> Sequence[_Json]:
        model = answer.get("modelVersion", "")
        candidates = answer.get("candidates")
        if not candidates:
            return self._without_candidates(answer, model)
        chunks: list[_Json] = []
        finished = False
        for candidate in candidates:
            index = candidate.get("index", 0)
            if index not in self._calls:
                self._calls[index] = 0
                chunks.append(_chunk(model, index, {"role": "assistant", "content": None}))
            for part in (candidate.get("content") or {}).get("parts") or ():
                delta = self._delta(part, index, answer)
                if delta is not None:
                    chunks.append(_chunk(model, index, delta))
            if (reason := candidate.get("finishReason")) is not None:
                chunks.append(self._finish(model, index, reason, candidate))
                finished = True
            elif candidate.get("logprobsResult"):
                chunks.append(_chunk(model, index, {}))
                chunks[-1]["choices"][0]["logprobs"] = _logprobs(candidate["logprobsResult"])
        if finished and (usage := answer.get("usageMetadata")) is not None:
            chunks.append({"model": model, "choices": [], "usage": _usage(usage)})
        return chunks

    def _without_candidates(self, answer: _Json, model: str) -> Sequence[_Json]:
        reason = (answer.get("promptFeedback") or {}).get("blockReason")
        if reason is not None:
            raise UpstreamRefusedError(f"The model's provider blocked the prompt: {reason}.", code="content_filter")
        usage = answer.get("usageMetadata")
        if usage is None:
            raise _nonsense()
        return ({"model": model, "choices": [], "usage": _usage(usage)},)

    def _delta(self, part: _Json, index: int, answer: _Json) -> _Json | None:
        if "text" in part:
            return {"reasoning_content" if part.get("thought") else "content": part["text"]}
        if "functionCall" in part:
            return {"tool_calls": [self._call(part, index, answer)]}
        if "thoughtSignature" not in part:
            skip("gemini", f"part {', '.join(part)}")
        return None

    def _call(self, part: _Json, index: int, answer: _Json) -> _Json:
        called = part["functionCall"]
        number = self._calls[index]
        self._calls[index] += 1
        call = {
            "index": number,
            "id": called.get("id") or _call_id(answer, f"{index}/{number}"),
            "type": "function",
            "function": {
                "name": called["name"],
                "arguments": render_arguments(called.get("args") or {}),
            },
        }
        if signature := part.get("thoughtSignature"):
            call["extra_content"] = {"google": {"thought_signature": signature}}
        return call

    def _finish(self, model: str, index: int, reason: str, candidate: _Json) -> _Json:
        if reason not in _FINISH_REASONS:
            said = candidate.get("finishMessage")
            because = f": {said[:500]}" if isinstance(said, str) else "."
            raise UpstreamError(f"The model's provider ended its answer with the reason {reason[:100]!r}{because}")
        ours = _FINISH_REASONS[reason]
        chunk = _chunk(model, index, {}, "tool_calls" if reason == "STOP" and self._calls[index] else ours)
        choice = chunk["choices"][0]
        choice["native_finish_reason"] = reason
        if candidate.get("logprobsResult"):
            choice["logprobs"] = _logprobs(candidate["logprobsResult"])
        return chunk


def _call_id(answer: _Json, place: str) -> str | None:
    """Return an id for the call at a place of an answer that has one, the same whenever it is read."""
    if not (named := answer.get("responseId")):
        return None
    return f"call_{hashlib.sha256(f'{named}/{place}'.encode()).hexdigest()[:24]}"


def _chunk(model: str, index: int, delta: _Json, finish_reason: str | None = None) -> _Json:
    return {"model": model, "choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]}


def _logprobs(result: _Json) -> _Json:
    chosen, top = result.get("chosenCandidates") or [], result.get("topCandidates") or []
    content = [
        _logprob(token) | {"top_logprobs": [_logprob(other) for other in (top[place]["candidates"] if top else ())]}
        for place, token in enumerate(chosen)
    ]
    return {"content": content, "refusal": None}


def _logprob(candidate: _Json) -> _Json:
    token = candidate.get("token", "")
    return {"token": token, "logprob": candidate.get("logProbability", 0.0), "bytes": list(token.encode())}


def _usage(usage: _Json) -> _Json:
    """Return OpenAI's usage: what tools brought is part of the prompt there, and thought part of the completion."""
    prompt = (usage.get("promptTokenCount") or 0) + (usage.get("toolUsePromptTokenCount") or 0)
    thought = usage.get("thoughtsTokenCount") or 0
    completion = (usage.get("candidatesTokenCount") or 0) + thought
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": usage.get("cachedContentTokenCount") or 0,
            "audio_tokens": _audio(usage.get("promptTokensDetails")),
        },
        "completion_tokens_details": {
            "reasoning_tokens": thought,
            "audio_tokens": _audio(usage.get("candidatesTokensDetails")),
        },
    }


def _audio(details: Sequence[_Json] | None) -> int:
    return sum(detail.get("tokenCount") or 0 for detail in details or () if detail.get("modality") == "AUDIO")


def parse_error(body: bytes) -> dict[str, Any]:
    """Return OpenAI's error object, or what there is of one, and `retry_after`, from the body of an error status."""
    try:
        document = parse_json(body)
    except ValueError:
        return {}
    if isinstance(document, list) and document:
        document = document[0]
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict) or not isinstance(message := error.get("message"), str):
        return {}
    said: _Json = {"message": message, "code": None}
    if "token count" in message and "exceeds the maximum" in message:
        said["code"] = "context_length_exceeded"
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, dict):
            continue
        if detail.get("reason") == "API_KEY_INVALID":
            said["code"] = "invalid_api_key"
        delay = detail.get("retryDelay")
        if isinstance(delay, str) and delay.removesuffix("s").replace(".", "", 1).isdecimal():
            said["retry_after"] = float(delay.removesuffix("s"))
    return said


def _parse_object(data: bytes) -> _Json:
    try:
        document = parse_json(data)
    except ValueError:
        raise UpstreamError("The model's provider answered with something that is not JSON.") from None
    if not isinstance(document, dict):
        raise _nonsense()
    if "error" in document:
        error = document["error"]
        code = error.get("code") if isinstance(error, dict) else None
        failure = _ERRORS.get(code, UpstreamError) if type(code) is int else UpstreamError
        if failure is UpstreamKeyError:
            raise UpstreamKeyError
        said = parse_error(data)
        message = f"The model's provider reported an error: {said.get('message', 'it did not say which')[:500]}"
        raise failure(message, code=said.get("code"), retry_after=said.get("retry_after"))
    return document


def _nonsense() -> UpstreamError:
    return UpstreamError("The model's provider answered with something that is not Gemini's format.")
