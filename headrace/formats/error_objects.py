"""Errors as servers of OpenAI's formats report them, in any of the shapes that they use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import UpstreamError
from headrace.formats.failures import failure, says_too_long
from headrace.formats.lenient import parse_lenient_json


def parse_error(body: bytes) -> dict[str, Any]:
    """Return OpenAI's error object, as far as the body of an error status has one."""
    try:
        document = parse_lenient_json(body)
    except ValueError:
        return {}
    return _named(_said(document))


_MESSAGES = ("message", "detail", "details", "error_message", "error_msg", "msg", "title")
_INNER = ("error", "errors", "detail", "message")
# Fields without which a document has no message, inside or outside of inner objects.
_TELLING = frozenset({*_MESSAGES, *_INNER, "metadata"})
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
    message = said.get("message")
    if isinstance(message, str) and _says_nothing(said.get("code")) and says_too_long(message):
        return {**said, "code": "context_length_exceeded"}
    return said


# Codes that say no more than the status 400 does, written as `_letters` writes them.
_VAGUE = frozenset({
    "badrequest", "badrequesterror", "clientspecifiedaninvalidargument", "invalidargument", "invalidrequest",
    "invalidrequesterror", "validationerror",
})  # fmt: skip


def _says_nothing(code: Any) -> bool:
    """Return whether a code leaves it to the message to say what is wrong."""
    return not isinstance(code, str) or code.isdecimal() or _letters(code) in _VAGUE


def _letters(word: str) -> str:
    return "".join(filter(str.isalpha, word.lower()))


def _message(error: Mapping[str, Any]) -> str | None:
    for name in _MESSAGES:
        value = error.get(name)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, list) and value:  # FastAPI's: what is wrong, by field
            return "; ".join(str(item.get("msg", item) if isinstance(item, dict) else item) for item in value)
    return None


# Statuses by the names of errors, written as `_letters` writes them.
_STATUSES = {
    400: "badrequest badrequesterror biopolicy contentfilter contentpolicyviolation contextlengthexceeded cyberpolicy"
    " emptyimagefile failedtodownloadimage imagecontentpolicyviolation imagefilenotfound imagefiletoolarge"
    " imageparseerror imagetoolarge imagetoosmall invalidargument invalidbase64image invalidimage invalidimageformat"
    " invalidimagemode invalidimageurl invalidprompt invalidrequest invalidrequesterror stringabovemaxlength"
    " unsupportedimagemediatype validationerror",
    401: "authenticationerror unauthenticated unauthorized",
    402: "billingerror insufficientbalance insufficientcredits paymentrequired",
    403: "permissiondenied permissiondeniederror permissionerror forbidden",
    404: "modelnotfound notfound notfounderror",
    408: "requesttimeout",
    413: "requesttoolarge",
    422: "unprocessableentity unprocessableentityerror",
    429: "insufficientquota ratelimit ratelimiterror ratelimitexceeded resourceexhausted toomanyrequests",
    503: "enginesoverloaded modeloverloaded overloaded overloadederror serviceunavailable unavailable",
    504: "deadlineexceeded gatewaytimeout vectorstoretimeout",
}
_STATUS_OF = {word: status for status, words in _STATUSES.items() for word in words.split()}


def _status(said: Mapping[str, Any]) -> int:
    """Return the HTTP status that an error object means."""
    for value in (said.get(name) for name in _CODES):
        if isinstance(value, str) and not value.isdecimal():
            status = _STATUS_OF.get(_letters(value))
            if status is not None:
                return status
        elif isinstance(value, (int, float, str)) and 400 <= float(value) < 600:
            return int(value)
    return 500


def error_of(document: Any) -> UpstreamError:
    """Return the error that a provider sent with status 200 in the place of an answer."""
    said = _named(_said(document))
    message = said.get("message") or "it did not say which"
    return failure({**said, "message": f"The model's provider reported an error: {str(message)[:500]}"}, _status(said))


def reported_error(document: Mapping[str, Any]) -> UpstreamError | None:
    """Return the error that a document without an answer reports, or None."""
    if _TELLING.isdisjoint(document):  # the usage of nearly every stream
        return None
    return error_of(document) if _said(document).get("message") else None
