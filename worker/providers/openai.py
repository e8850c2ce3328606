"""OpenAI's chat completions, and every server that speaks them: https://platform.openai.com/docs/api-reference/chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from headrace.chat.request import EXTENSIONS
from headrace.errors import UpstreamError

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
    """Return the `chat.completion` of a whole answer.

    Raises:
        UpstreamError: It is none.
    """
    answer = _parse_object(body)
    choices = answer.get("choices")
    if not isinstance(choices, list) or not all(_has(choice, "message") for choice in choices):
        raise UpstreamError("The model's provider answered with something that is not a chat completion.")
    return answer


def parse_stream() -> StreamParser:
    """Return the parser of a new stream."""
    return StreamParser()


class StreamParser:
    """A stream that is OpenAI's already: each event but the last is a chunk."""

    def __init__(self) -> None:
        self.done = False

    def parse(self, data: bytes) -> Sequence[dict[str, Any]]:
        """Return the `chat.completion.chunk` of an event.

        Raises:
            UpstreamError: It is none, or it is an error.
        """
        if data == _DONE:
            self.done = True
            return ()
        chunk = _parse_object(data)
        choices = chunk.setdefault("choices", [])
        if not isinstance(choices, list) or not all(_has(choice, "delta") for choice in choices):
            raise UpstreamError("The model's provider streamed something that is not a chunk of a chat completion.")
        return (chunk,)


def parse_error(body: bytes) -> dict[str, Any]:
    """Return OpenAI's error object, or what there is of one, from the body of an error status."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) else {"message": error} if isinstance(error, str) else {}


def _parse_object(data: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise UpstreamError("The model's provider answered with something that is not JSON.") from None
    if not isinstance(document, dict):
        raise UpstreamError("The model's provider answered with something that is not a chat completion.")
    if document.get("error"):
        message = parse_error(data).get("message")
        raise UpstreamError(f"The model's provider reported an error: {str(message)[:500]}")
    return document


def _has(choice: object, part: str) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get(part), dict) and isinstance(choice.get("index", 0), int)
