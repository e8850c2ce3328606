"""The endpoints that a batch can have. All of its lines are requests to its endpoint, in the endpoint's format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from headrace.errors import InvalidRequestError, invalid_parameter
from headrace.formats.chat.request import ChatRequest, check_request
from headrace.formats.chat.support import Format
from headrace.formats.registry import CLIENT_FORMATS
from headrace.formats.responses.context import expand, kind_of, with_ids
from headrace.formats.responses.request import ResponseRequest, check_response_request
from headrace.formats.translation import Translation

DEFAULT_ENDPOINT: Final = "/v1/chat/completions"

# The id of a job stands for any other here: a request means the same whatever the ids of its items are.
_ANY_JOB = "job_" + "0" * 32

Terms = ChatRequest | ResponseRequest
"""The checked body of a line."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint, and what its format makes of the body of a line."""

    path: str
    format: Format
    check: Callable[[dict[str, Any]], Terms]
    """Returns a body's checked model. Raises InvalidRequestError; the error names the parameter."""
    stored: Callable[[dict[str, Any], str], dict[str, Any]]
    """Returns a checked body as the job with an id stores it."""

    def translate(self, body: dict[str, Any]) -> Translation:
        """Return the chat request that a checked body means, be it as its client sent it or as its job stores it."""
        return CLIENT_FORMATS[self.format].translate(self.stored(body, _ANY_JOB))


def _check_chat(body: dict[str, Any]) -> ChatRequest:
    chat = check_request(ChatRequest, body)
    _check_line(chat)
    if chat.background is False:
        raise _impossible("background", "false")
    return chat


def _check_response(body: dict[str, Any]) -> ResponseRequest:
    response = check_response_request(body)
    _check_line(response)
    # Lines run in any order, and each is checked before the first one runs, so none has a context besides its own.
    for name in ("previous_response_id", "conversation"):
        if body.get(name) is not None:
            raise _impossible(name, "a value; send the whole input")
    items = body.get("input")
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if kind_of(item) == "item_reference":
            raise _impossible(f"input[{index}]", "a reference; send the item")
    return response


def _store_response(body: dict[str, Any], job_id: str) -> dict[str, Any]:
    return with_ids(expand(body, ()), job_id)


def _check_line(terms: Terms) -> None:
    """Refuse what no line of a batch has: it has no client that waits, and its batch has the webhook."""
    if terms.stream:
        raise _impossible("stream", "true")
    if terms.webhook is not None:
        raise _impossible("webhook", "a value; set it on the batch")


def _impossible(name: str, value: str) -> InvalidRequestError:
    return invalid_parameter(name, f"in a batch it cannot be {value}")


ENDPOINTS: Mapping[str, Endpoint] = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint(DEFAULT_ENDPOINT, "chat", _check_chat, lambda body, _job_id: body),
        Endpoint("/v1/responses", "responses", _check_response, _store_response),
    )
}
"""The endpoints by the paths that a batch and its lines name."""
