"""Everything that can be wrong, as a tree.

* HeadraceError                     500 server_error
  + InvalidRequestError             400 invalid_request_error
    - NotFoundError                 404
    - ModelNotFoundError            404 model_not_found
    - ListTooLongError              400 list_too_long
    - PayloadTooLargeError          413
    - ConflictError                 409
  + AuthenticationError             401 authentication_error
  + PermissionDeniedError           403 permission_error
  + RateLimitError                  429 rate_limit_error
    - QuotaExceededError            429 insufficient_quota: a budget is used up
  + UnavailableError                503 service_unavailable
  + JobCancelledError               499 cancelled
  + JobExpiredError                 504 timeout
  + UpstreamError                   502 upstream_error: the provider failed
    - UpstreamRefusedError          the provider's own 4xx, passed on
    - UpstreamKeyError              the provider does not take the key that we have for it
    - UpstreamTimeoutError          504
    - UpstreamTooLargeError         its answer has no end, or is larger than any completion
    - UpstreamRateLimitError        429
      + UpstreamBusyError           429, and it was not asked: its limits are used up, or it wants no calls yet
    - UpstreamUnavailableError      503: it kept failing, and is left alone for a while

Each class knows its HTTP status, OpenAI's `type` and `code`, whether trying again can help, and the message that
clients get where none is given. Error objects are OpenAI's: `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self

import orjson

_CODE = re.compile(r"[A-Za-z0-9_.\-]{1,64}")

INTERRUPTED = "The answer was interrupted and would have to start over."


class HeadraceError(Exception):
    """Any error that a client may hear of."""

    default: ClassVar[str] = "The server had an error while processing your request."
    status: int = 500
    type: str = "server_error"
    code: str | None = None
    retryable: bool = False
    """Whether the same request, sent again soon, may get another answer."""
    detail: str | None = None
    """What an operator is told besides, in the log and in a job's attempts: which address, and why."""
    headers: Mapping[str, str] = MappingProxyType({})
    """What the answer says besides."""

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        detail: str | None = None,
    ) -> None:
        """Keep what the client is told; `retry_after` is in seconds."""
        self.message = message or self.default
        self.param = param
        self.code = code or self.code
        self.status = status or self.status
        self.retry_after = retry_after
        self.detail = detail
        super().__init__(self.message)

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error object, without the `error` key around it."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def summary(self) -> str:
        """Return what a log says of the error: its kind, status, type, code and detail, but no text of a provider's.

        That may be a prompt.

        A provider may write what it likes into a code, so one that is no plain word is left out.
        """
        code = self.code if self.code is not None and _CODE.fullmatch(self.code) else None
        told = f"{type(self).__name__} {self.status} {self.type}" + ("" if code is None else f" {code}")
        return told if self.detail is None else f"{told}: {self.detail}"

    def document(self) -> dict[str, Any]:
        """Return what a job's row keeps: the error object with the answer's status and `retry_after`."""
        return {**self.body(), "status": self.status, "retry_after": self.retry_after}

    def stored(self) -> str:
        """Return `document` as the JSON of a job's row."""
        return orjson.dumps(self.document()).decode()


class InvalidRequestError(HeadraceError):
    """The client has to change its request."""

    default: ClassVar[str] = "The request is not valid."
    status = 400
    type = "invalid_request_error"


class NotFoundError(InvalidRequestError):
    """What the request names does not exist, or belongs to another account."""

    default: ClassVar[str] = "There is nothing here by that id."
    status = 404
    code = "not_found"


class ListTooLongError(InvalidRequestError):
    """A list has to look at more rows than it has time for."""

    default: ClassVar[str] = (
        "This list has to look at too many jobs: narrow it with 'created_after' and 'created_before'."
    )
    code = "list_too_long"


class ModelNotFoundError(InvalidRequestError):
    """The model does not exist, or the key may not ask it."""

    default: ClassVar[str] = "The model does not exist or you do not have access to it."
    status = 404
    code = "model_not_found"

    asked: str = ""
    """The name that was asked for, cut to 100 characters."""

    @classmethod
    def of(cls, name: str, *, param: str = "model") -> Self:
        """Return the error for a model of that name, in whichever of the two ways it is not there."""
        error = cls(f"The model '{name[:100]}' does not exist or you do not have access to it.", param=param)
        error.asked = name[:100]
        return error


class PayloadTooLargeError(InvalidRequestError):
    """The body is larger than the server takes."""

    default: ClassVar[str] = "The request body is too large."
    status = 413
    code = "request_too_large"


class ConflictError(InvalidRequestError):
    """What the request names is in another state than the request needs."""

    default: ClassVar[str] = "The request conflicts with the state of what it names."
    status = 409
    code = "conflict"


class AuthenticationError(HeadraceError):
    """The key is missing, malformed, unknown, revoked or expired."""

    default: ClassVar[str] = (
        "Incorrect API key provided. Send a valid key as `Authorization: Bearer <key>` or `X-API-Key: <key>`."
    )
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class PermissionDeniedError(HeadraceError):
    """The key lacks a scope."""

    default: ClassVar[str] = "This API key may not do that."
    status = 403
    type = "permission_error"
    code = "insufficient_permissions"


class RateLimitError(HeadraceError):
    """A limit of the key or its account is reached."""

    default: ClassVar[str] = "Too many requests: try again later."
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retryable = True


class QuotaExceededError(RateLimitError):
    """A budget of the key or its account is spent."""

    default: ClassVar[str] = "You exceeded your current quota, please check your plan and billing details."
    type = "insufficient_quota"
    code = "insufficient_quota"
    retryable = False


class UnavailableError(HeadraceError):
    """The server cannot take the request at the moment."""

    default: ClassVar[str] = "The service is not available for the moment: try again shortly."
    status = 503
    type = "service_unavailable"
    code = "service_unavailable"
    retryable = True


class OutcomeUnknownError(HeadraceError):
    """This process ends and cannot reach Postgres: the request may run although its client gets no answer."""

    default: ClassVar[str] = (
        "This server is shutting down and cannot tell whether the request still runs. An Idempotency-Key makes it safe "
        "to send it again."
    )
    status = 504
    type = "timeout"
    code = "outcome_unknown"
    retryable = True


class JobCancelledError(HeadraceError):
    """The job was cancelled."""

    default: ClassVar[str] = "The job was cancelled."
    status = 499
    type = "cancelled"
    code = "job_cancelled"


class JobExpiredError(HeadraceError):
    """The job passed its deadline."""

    default: ClassVar[str] = "The job did not end before its deadline."
    status = 504
    type = "timeout"
    code = "job_expired"


class UpstreamError(HeadraceError):
    """The provider failed."""

    default: ClassVar[str] = "The model's provider failed to answer."
    status = 502
    type = "upstream_error"
    code: str | None = "upstream_error"
    retryable = True


class UpstreamRefusedError(UpstreamError):
    """The provider's own 4xx, passed on."""

    default: ClassVar[str] = "The model's provider refused the request."
    status = 400
    type = "invalid_request_error"
    code = None
    retryable = False


class UpstreamKeyError(UpstreamError):
    """The provider does not accept our key."""

    default: ClassVar[str] = "The model's provider did not accept the credentials that this server has for it."
    code = "upstream_authentication"
    retryable = False


class UpstreamTimeoutError(UpstreamError):
    """The provider was silent for too long."""

    default: ClassVar[str] = "The model's provider did not answer in time."
    status = 504
    type = "timeout"
    code = "upstream_timeout"


class UpstreamTooLargeError(UpstreamError):
    """The model's provider answered with more than any completion holds."""

    code = "upstream_answer_too_large"
    retryable = False


class UpstreamRateLimitError(UpstreamError):
    """The provider is over its rate limit."""

    default: ClassVar[str] = "The model's provider is over its rate limit."
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class UpstreamBusyError(UpstreamRateLimitError):
    """The provider was not called: its limits are used up, or it is paused."""

    default: ClassVar[str] = "The model's provider takes no more calls for the moment."


class UpstreamUnavailableError(UpstreamError):
    """The provider was not called: its circuit is open."""

    default: ClassVar[str] = "The model's provider keeps failing, and is left alone for a while."
    status = 503
    code = "upstream_unavailable"


def invalid_parameter(param: str, reason: str, *, code: str | None = "invalid_value") -> InvalidRequestError:
    """Return the error for a parameter that is wrong; `reason` is the clause of its message, without a full stop."""
    return InvalidRequestError(f"Invalid '{param}': {reason}.", param=param, code=code)


def missing_parameter(param: str) -> InvalidRequestError:
    """Return the error for a request that lacks a parameter."""
    return InvalidRequestError(
        f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
    )


def restore_error(stored: bytes | str | None) -> HeadraceError:
    """Return the error that a job ended with, from the JSON that its row keeps: `HeadraceError.stored`.

    The answer tells OpenAI's clients, which repeat a 429 or a 5xx, not to: the job has had all its attempts.
    """
    document = orjson.loads(stored or b"{}")
    error = HeadraceError(
        document.get("message"),
        param=document.get("param"),
        code=document.get("code"),
        status=document.get("status"),
        retry_after=document.get("retry_after"),
    )
    error.type = document.get("type", error.type)
    error.headers = {"x-should-retry": "false"}
    return error
