"""OpenAI's chat completions, and every server that speaks them: https://platform.openai.com/docs/api-reference/chat."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from headrace.errors import UpstreamError
from headrace.formats.chat.request import EXTENSIONS
from headrace.formats.failures import failure
from headrace.formats.lenient import parse_json

MANY_CHOICES = True
# How a stream says that it is over, and what servers send that says nothing.
_DONE = frozenset({b"[DONE]", b"[done]", b'"[DONE]"', b"DONE"})
_NOTHING = frozenset({b"", b"null", b'""', b"{}"})


def render_url(base_url: str, *, model: str, stream: bool) -> str:  # noqa: ARG001  (other formats have both in the URL)
    """Return where the request goes."""
    return f"{base_url.rstrip('/')}/chat/completions"


def render_headers(secret: str | None) -> dict[str, str]:
    """Return the headers that carry the provider's key."""
    return {} if secret is None else {"authorization": f"Bearer {secret}"}


def render_request(
    request: Mapping[str, Any],
    *,
    model: str,
    stream: bool,
    output_limit: int | None,  # noqa: ARG001  (OpenAI has its own default)
) -> bytes:
    """Return the body: the client's request without `EXTENSIONS`. A stream always reports its usage."""
    body = {name: value for name, value in request.items() if name not in EXTENSIONS}
    body["model"] = model
    if stream:
        body["stream"] = True
        body["stream_options"] = {**(request.get("stream_options") or {}), "include_usage": True}
    else:
        body.pop("stream", None)
        body.pop("stream_options", None)
    return orjson.dumps(body)


def parse_completion(body: bytes) -> dict[str, Any]:
    """Return the `chat.completion` of a whole answer, as exact as its provider made it.

    Raises:
        UpstreamError: The body is not a completion, or reports an error.
    """
    answer = _parse_object(body)
    _check_errors(answer)
    if not answer.get("choices") or not isinstance(answer["choices"], list):
        raise _reported(answer) or UpstreamError(
            "The model's provider answered with something that is not a chat completion."
        )
    return answer


def parse_stream() -> StreamParser:
    """Return the parser of a new stream."""
    return StreamParser()


class StreamParser:
    """Reads a stream in OpenAI's own format: each event but the last is a chunk."""

    def __init__(self) -> None:
        self.done = False

    def parse(self, data: bytes, name: bytes = b"") -> Sequence[dict[str, Any]]:
        """Return the `chat.completion.chunk` of an event.

        Raises:
            UpstreamError: The event is not a chunk, or reports an error.
        """
        if not data.startswith(b"{"):
            data = data.strip()
            while data.startswith(b"data:"):  # a proxy that frames what is framed already
                data = data[5:].lstrip()
            if data in _DONE:
                self.done = True
                return ()
            if data in _NOTHING or data.startswith(b":"):
                return ()  # a comment that was sent as data
        try:
            chunk = orjson.loads(data)  # nearly all are whole and exact
        except orjson.JSONDecodeError:
            chunk = None
        if type(chunk) is not dict or "error" in chunk or "x_groq" in chunk:
            try:
                chunk = _parse_object(data)
            except _NotJSONError:
                if name == b"error":
                    raise _error_of({"message": data.decode("utf-8", "replace")}) from None
                if b"\n" not in data:
                    raise
                # No blank lines between the events: each line is one.
                return [chunk for line in data.split(b"\n") for chunk in self.parse(line, name)]
            _check_errors(chunk)
        if name == b"error":
            raise _error_of(chunk)
        choices = chunk.get("choices")
        if not choices:
            if (reported := _reported(chunk)) is not None:
                raise reported
            if "choices" not in chunk and chunk.get("usage") is None:
                return ()  # an event of another kind
            return (chunk,)
        try:
            first = choices[0]
            odd = "error" in first or ("tool_calls" in first["delta"] and _has_objects(first["delta"]["tool_calls"]))
        except (LookupError, TypeError):
            odd = True
        if odd:
            chunk = _parse_object(data)
            _check_errors(chunk)
        return (chunk,)


def _has_objects(calls: Any) -> bool:
    """Tell whether a call's arguments are an object instead of a string: it may have numbers beyond 64 bits."""
    parts = [call.get("function") for call in calls or () if type(call) is dict] if type(calls) is list else ()
    return any(type(part) is dict and type(part.get("arguments", "")) is not str for part in parts)


def parse_error(body: bytes) -> dict[str, Any]:
    """Return OpenAI's error object, as far as the body of an error status has one."""
    try:
        document = parse_json(body)
    except ValueError:
        return {}
    return _named(_said(document))


_TOO_LONG = re.compile(
    r"maximum context length|prompt is too long|exceeds? (the )?(available |model'?s? )?(maximum )?context",
    re.IGNORECASE,
)
_MESSAGES = ("message", "detail", "details", "error_message", "error_msg", "msg", "title")
_INNER = ("error", "errors", "detail", "message")
_CODES = ("code", "status", "type", "status_code", "statusCode", "http_status", "http_code", "error_code")


def _said(document: Any, *, levels: int = 3) -> dict[str, Any]:
    """Return an error object made of a document, in any of the shapes that servers use.

    Inner fields win over outer ones, because they say more.
    """
    if isinstance(document, list) and document:
        document = document[0]
    if isinstance(document, str):
        return {"message": document}
    if not isinstance(document, dict):
        return {}
    said = {**document, "message": _message(document)}
    for name in _INNER if levels else ():
        inner = _said(document.get(name), levels=levels - 1) if isinstance(document.get(name), (dict, list)) else {}
        if name == "error" and isinstance(document.get(name), str):
            inner = {"message": document[name]}
        if inner.get("message") or any(inner.get(code) for code in _CODES):
            said |= {key: value for key, value in inner.items() if value is not None or key not in said}
            break
    metadata = document.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    if isinstance(raw, dict):
        raw = _said(raw, levels=0 if levels == 0 else levels - 1).get("message")
    if isinstance(raw, str) and raw:  # the words of the provider behind this one
        said["message"] = f"{said['message']}: {raw}" if said["message"] else raw
    return said


def _named(said: dict[str, Any]) -> dict[str, Any]:
    """Return an error object, with OpenAI's code if its message says that the prompt is too long."""
    if isinstance(said.get("message"), str) and not _is_word(said.get("code")) and _TOO_LONG.search(said["message"]):
        return {**said, "code": "context_length_exceeded"}
    return said


def _is_word(code: Any) -> bool:
    return isinstance(code, str) and not code.isdecimal()


def _message(error: Mapping[str, Any]) -> str | None:
    for name in _MESSAGES:
        value = error.get(name)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, list) and value:  # FastAPI's: what is wrong, by field
            return "; ".join(str(item.get("msg", item) if isinstance(item, dict) else item) for item in value)
    return None


# Statuses by the names of errors, which are written in lower case and with letters alone.
_STATUSES = {
    400: "badrequest badrequesterror contentfilter contentpolicyviolation contextlengthexceeded invalidargument"
    " invalidrequest invalidrequesterror stringabovemaxlength validationerror",
    401: "authenticationerror unauthenticated unauthorized",
    403: "permissiondenied permissiondeniederror permissionerror forbidden",
    404: "modelnotfound notfound notfounderror",
    408: "requesttimeout",
    413: "requesttoolarge",
    422: "unprocessableentity unprocessableentityerror",
    429: "insufficientquota ratelimit ratelimiterror ratelimitexceeded resourceexhausted toomanyrequests",
    503: "enginesoverloaded modeloverloaded overloaded overloadederror serviceunavailable unavailable",
    504: "deadlineexceeded gatewaytimeout",
}
_STATUS_OF = {word: status for status, words in _STATUSES.items() for word in words.split()}


def _status(said: Mapping[str, Any]) -> int:
    """Return the HTTP status that an error object means."""
    for value in (said.get(name) for name in _CODES):
        if isinstance(value, str) and not value.isdecimal():
            status = _STATUS_OF.get("".join(filter(str.isalpha, value.lower())))
            if status is not None:
                return status
        elif isinstance(value, (int, float, str)) and 400 <= float(value) < 600:
            return int(value)
    return 500


def _error_of(document: Any) -> UpstreamError:
    """Return the error that a provider sent with status 200 in the place of an answer."""
    said = _named(_said(document))
    message = said.get("message") or "it did not say which"
    return failure({**said, "message": f"The model's provider reported an error: {str(message)[:500]}"}, _status(said))


def _reported(document: Mapping[str, Any]) -> UpstreamError | None:
    """Return the error that a document without an answer reports, or None."""
    said = _said(document)
    return _error_of(document) if said.get("message") else None


class _NotJSONError(UpstreamError):
    pass


def _parse_object(data: bytes) -> dict[str, Any]:
    try:
        document = parse_json(data)
    except ValueError:
        raise _NotJSONError("The model's provider answered with something that is not JSON.") from None
    if not isinstance(document, dict):
        raise UpstreamError("The model's provider answered with something that is not a chat completion.")
    return document


def _check_errors(document: dict[str, Any]) -> None:
    """Check that a document has no error in or beside its choices; an empty `error` is removed.

    Raises:
        UpstreamError: The document has an error.
    """
    if document.get("error"):
        raise _error_of(document)
    document.pop("error", None)
    choices = document.get("choices")
    for part in (document.get("x_groq"), *(choices if isinstance(choices, list) else ())):
        if isinstance(part, dict) and part.get("error"):
            raise _error_of(part)
