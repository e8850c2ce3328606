"""OpenAI's chat completions, and every server that speaks them: https://platform.openai.com/docs/api-reference/chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from headrace.chat.request import EXTENSIONS
from headrace.errors import UpstreamError
from worker.providers.failures import failure
from worker.providers.lenient import parse_json

MANY_CHOICES = True
_DONE = b"[DONE]"


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
    """Return the body: the client's request as it came, without what is ours. A stream always reports its usage."""
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
        UpstreamError: It is none, or an error.
    """
    answer = _parse_object(body)
    if not isinstance(answer.get("choices"), list):
        raise _reported(answer, body) or UpstreamError(
            "The model's provider answered with something that is not a chat completion."
        )
    return answer


def parse_stream() -> StreamParser:
    """Return the parser of a new stream."""
    return StreamParser()


class StreamParser:
    """A stream that is OpenAI's already: each event but the last is a chunk."""

    def __init__(self) -> None:
        self.done = False

    def parse(self, data: bytes, name: bytes = b"") -> Sequence[dict[str, Any]]:
        """Return the `chat.completion.chunk` of an event.

        Raises:
            UpstreamError: It is none, or it is an error.
        """
        if data.startswith((b":", b"[", b" ")) or not data:
            data = data.strip()
            if data == _DONE:
                self.done = True
                return ()
            if not data or data.startswith(b":"):
                return ()  # a comment that was sent as data
        chunk = _parse_object(data)
        if name == b"error":
            raise _error_of(chunk, data)
        if "choices" not in chunk:
            if (reported := _reported(chunk, data)) is not None:
                raise reported
            if chunk.get("usage") is None:
                return ()  # an event of another kind
        return (chunk,)


def parse_error(body: bytes) -> dict[str, Any]:
    """Return OpenAI's error object, or what there is of one, from the body of an error status."""
    try:
        document = parse_json(body)
    except ValueError:
        return {}
    return _said(document)


def _said(document: Any) -> dict[str, Any]:
    """Return what a document says of an error, in any of the shapes that servers use."""
    if isinstance(document, list) and document:
        document = document[0]
    if not isinstance(document, dict):
        return {}
    error = document.get("error") or document
    if isinstance(error, str):
        error = {**document, "message": error}
    if not isinstance(error, dict):
        return {}
    said = {**error, "message": _message(error)}
    metadata = error.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    if isinstance(raw, str) and raw:  # what the provider behind this one said
        said["message"] = f"{said['message']}: {raw}" if said["message"] else raw
    return said


def _message(error: Mapping[str, Any]) -> str | None:
    for name in ("message", "detail", "details", "error_message", "msg"):
        value = error.get(name)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, list) and value:  # FastAPI's: what is wrong, by field
            return "; ".join(str(item.get("msg", item) if isinstance(item, dict) else item) for item in value)
    return None


_STATUSES = {
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "BadRequestError": 400,
    "authentication_error": 401,
    "AuthenticationError": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "RateLimitError": 429,
}


def _error_of(document: Mapping[str, Any], data: bytes) -> UpstreamError:
    """Return the error that stands where an answer should, with status 200."""
    said = parse_error(data)
    status = 500
    for word in (said.get("code"), said.get("status"), said.get("type"), document.get("code")):
        known = str(_STATUSES.get(str(word), word))
        if known.isascii() and known.isdecimal() and 400 <= int(known) < 600:
            status = int(known)
            break
    message = said.get("message") or "it did not say which"
    return failure({**said, "message": f"The model's provider reported an error: {str(message)[:500]}"}, status)


def _reported(document: Mapping[str, Any], data: bytes) -> UpstreamError | None:
    """Return the error of a document that is no answer but says what went wrong."""
    return _error_of(document, data) if _message(document) is not None else None


def _parse_object(data: bytes) -> dict[str, Any]:
    try:
        document = parse_json(data)
    except ValueError:
        raise UpstreamError("The model's provider answered with something that is not JSON.") from None
    if not isinstance(document, dict):
        raise UpstreamError("The model's provider answered with something that is not a chat completion.")
    if document.get("error"):
        raise _error_of(document, data)
    return document
