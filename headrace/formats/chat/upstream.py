"""OpenAI's chat completions, and every server that speaks them: https://platform.openai.com/docs/api-reference/chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from headrace.errors import UpstreamError
from headrace.formats.chat.request import EXTENSIONS
from headrace.formats.chat.support import LimitParameter
from headrace.formats.error_objects import error_of, parse_error, reported_error
from headrace.formats.lenient import parse_lenient_json

__all__ = [
    "MANY_CHOICES",
    "parse_completion",
    "parse_error",
    "parse_stream",
    "render_headers",
    "render_request",
    "render_url",
]

MANY_CHOICES = True
# The fields of an answer that Headrace alone makes, and those in which another format's thoughts are.
_HEADRACES = frozenset({"thinking_origin", "reasoning_items"})
_THOUGHTS = frozenset({"thinking_blocks", "reasoning_content"})
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
    limit_parameter: LimitParameter | None = None,
) -> bytes:
    """Return the body: the client's request without `EXTENSIONS`, and without what other formats' providers gave.

    A stream always reports its usage.
    """
    body = {name: value for name, value in request.items() if name not in EXTENSIONS}
    body["model"] = model
    body["messages"] = [
        _own_answer(message) if message["role"] == "assistant" else message for message in request["messages"]
    ]
    if limit_parameter is not None:
        older, newer = body.pop("max_tokens", None), body.pop("max_completion_tokens", None)
        if (limit := older if newer is None else newer) is not None:
            body[limit_parameter] = limit
    if stream:
        body["stream"] = True
        body["stream_options"] = {**(request.get("stream_options") or {}), "include_usage": True}
    else:
        body.pop("stream", None)
        body.pop("stream_options", None)
    return orjson.dumps(body)


def _own_answer(message: dict[str, Any]) -> dict[str, Any]:
    """Return an answer without what a provider of another format wants back: many chat servers refuse its fields.

    What a chat server gave has no origin, and goes back to it.
    """
    left_out = _HEADRACES & message.keys()
    if (message.get("thinking_origin") or {}).get("format") or message.get("reasoning_items"):
        left_out |= _THOUGHTS
    if left_out:
        message = {name: value for name, value in message.items() if name not in left_out}
    calls = message.get("tool_calls") or ()
    if any(map(_has_origin, calls)):
        message = {**message, "tool_calls": [_unsigned(call) if _has_origin(call) else call for call in calls]}
    return message


def _has_origin(call: Mapping[str, Any]) -> bool:
    extra = call.get("extra_content")
    return isinstance(extra, dict) and isinstance(extra.get("origin"), dict)


def _unsigned(call: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call.items() if name != "extra_content"}


def parse_completion(body: bytes) -> dict[str, Any]:
    """Return the `chat.completion` of a whole answer, as exact as its provider made it.

    Raises:
        UpstreamError: The body is not a completion, or reports an error.
    """
    answer = _parse_object(body)
    _check_errors(answer)
    if not answer.get("choices") or not isinstance(answer["choices"], list):
        raise reported_error(answer) or UpstreamError(
            "The model's provider answered with something that is not a chat completion."
        )
    return answer


def parse_stream() -> StreamParser:
    """Return the parser of a new stream."""
    return StreamParser()


class StreamParser:
    """Reads a stream in OpenAI's own format: each event but the last is a chunk."""

    texts_are_alike = True

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
                    raise error_of({"message": data.decode("utf-8", "replace")}) from None
                if b"\n" not in data:
                    raise
                # No blank lines between the events: each line is one.
                return [chunk for line in data.split(b"\n") for chunk in self.parse(line, name)]
            _check_errors(chunk)
        if name == b"error":
            raise error_of(chunk)
        choices = chunk.get("choices")
        if not choices:
            if (reported := reported_error(chunk)) is not None:
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
    """Return whether a call's arguments are an object instead of a string: it may have numbers beyond 64 bits."""
    parts = [call.get("function") for call in calls or () if type(call) is dict] if type(calls) is list else ()
    return any(type(part) is dict and type(part.get("arguments", "")) is not str for part in parts)


class _NotJSONError(UpstreamError):
    pass


def _parse_object(data: bytes) -> dict[str, Any]:
    try:
        document = parse_lenient_json(data)
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
        raise error_of(document)
    document.pop("error", None)
    choices = document.get("choices")
    for part in (document.get("x_groq"), *(choices if isinstance(choices, list) else ())):
        if isinstance(part, dict) and part.get("error"):
            raise error_of(part)
