"""The errors of Headrace, as a tree.

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
    - QuotaExceededError            429 insufficient_quota: a budget or a quota of stored data is used up
  + UnavailableError                503 service_unavailable
  + OutcomeUnknownError             504 timeout outcome_unknown
  + JobCancelledError               499 cancelled
  + JobExpiredError                 504 timeout
  + UpstreamError                   502 upstream_error: the provider failed
    - UpstreamRefusedError          the provider's own 4xx, passed on
    - UpstreamKeyError              the provider does not accept our key, or our account has no credit
    - UpstreamTimeoutError          504
    - UpstreamTooLargeError         the answer has no end, or is larger than any completion
    - UpstreamRateLimitError        429
      + UpstreamBusyError           429, without a call: the provider's limits are used up, or it is paused
    - UpstreamOverloadedError       the provider has too many calls
    - UpstreamUnavailableError      503, without a call: the provider's circuit is open
    - AnswerInterruptedError        502 worker_lost: a stream that has begun lost its worker

Each class has its HTTP status, OpenAI's `type` and `code`, whether a retry can help, and a default message for clients.
Error objects are OpenAI's: `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self

import orjson

# A code such as `context_length_exceeded`: words, unlike a prompt of one word or a key.
_CODE = re.compile(r"(?=.{1,64}$)[a-z]+(?:_[a-z]+)+")
# Characters of a client's or a provider's text that an error repeats.
_LONGEST_ECHO = 80


class HeadraceError(Exception):
    """An error that may reach a client."""

    default: ClassVar[str] = "The server had an error while processing your request."
    status: int = 500
    type: str = "server_error"
    code: str | None = None
    retryable: bool = False
    """Whether the same request, sent again soon, may get another answer."""
    detail: str | None = None
    """Details for operators, in the log and in a job's attempts: the address, and the cause."""
    headers: Mapping[str, str] = MappingProxyType({})
    """Extra response headers."""

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
        """Take what the client gets, and `detail` for operators. `retry_after` is in seconds."""
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
        """Return the error for a log: its class, status, type, code and detail.

        The message is left out, as a provider may quote the prompt in it. So is a code that is not words joined by
        underscores, as a provider may write any text there.
        """
        code = self.code if self.code is not None and _CODE.fullmatch(self.code) else None
        text = f"{type(self).__name__} {self.status} {self.type}" + ("" if code is None else f" {code}")
        return text if self.detail is None else f"{text}: {self.detail}"

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

    def about(self, param: str) -> InvalidRequestError:
        """Return the error with another path of the same parameter, which its message names in quotation marks."""
        message = self.message if self.param is None else self.message.replace(f"'{self.param}'", f"'{param}'")
        return InvalidRequestError(message, param=param, code=self.code)


class NotFoundError(InvalidRequestError):
    """What the request names does not exist, or belongs to another account."""

    default: ClassVar[str] = "Nothing with this id exists."
    status = 404
    code = "not_found"


class ListTooLongError(InvalidRequestError):
    """A list would have to read more rows than its time allows."""

    default: ClassVar[str] = (
        "This list would have to read too many jobs: narrow it with 'created_after' and 'created_before'."
    )
    code = "list_too_long"


class ModelNotFoundError(InvalidRequestError):
    """The model does not exist, or the key may not use it."""

    default: ClassVar[str] = "The model does not exist or you do not have access to it."
    status = 404
    code = "model_not_found"

    asked: str = ""
    """The requested name, shortened."""

    @classmethod
    def of(cls, name: str, *, param: str = "model") -> Self:
        """Return the error for a model name. It does not tell a missing model from a forbidden one."""
        error = cls(f"The model '{shorten(name)}' does not exist or you do not have access to it.", param=param)
        error.asked = shorten(name)
        return error


class PayloadTooLargeError(InvalidRequestError):
    """The body is larger than the server accepts."""

    default: ClassVar[str] = "The request body is too large."
    status = 413
    code = "request_too_large"


class ConflictError(InvalidRequestError):
    """The object that the request names is not in the state that the request needs."""

    default: ClassVar[str] = "The request conflicts with the state of the object that it names."
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

    default: ClassVar[str] = "This API key lacks the scope for this request."
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
    """A budget of the key or its account is spent, or its quota of stored data."""

    default: ClassVar[str] = "You exceeded your current quota, please check your plan and billing details."
    type = "insufficient_quota"
    code = "insufficient_quota"
    retryable = False


class UnavailableError(HeadraceError):
    """The server cannot accept the request at the moment."""

    default: ClassVar[str] = "The service is unavailable at the moment: try again shortly."
    status = 503
    type = "service_unavailable"
    code = "service_unavailable"
    retryable = True


class OutcomeUnknownError(HeadraceError):
    """The request may run although its client gets no answer: Postgres did not answer in time, or this process ends."""

    default: ClassVar[str] = (
        "This server cannot tell whether the request still runs. An Idempotency-Key makes it safe to send it again."
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
    """The provider does not accept our key, or our account with it has no credit."""

    default: ClassVar[str] = "The model's provider did not accept this server's credentials."
    code = "upstream_authentication"
    retryable = False


class UpstreamTimeoutError(UpstreamError):
    """The provider was silent for too long."""

    default: ClassVar[str] = "The model's provider did not answer in time."
    status = 504
    type = "timeout"
    code = "upstream_timeout"


class UpstreamTooLargeError(UpstreamError):
    """The provider's answer has no end, or is larger than any completion."""

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

    default: ClassVar[str] = "The model's provider takes no more calls at the moment."


class AnswerInterruptedError(UpstreamError):
    """The worker of a stream is gone, and the stream's client has read a part of it."""

    default: ClassVar[str] = "The answer was interrupted and would have to start over."
    code = "worker_lost"


class UpstreamOverloadedError(UpstreamError):
    """The provider has too many calls at the moment, from all of its clients together."""


class UpstreamUnavailableError(UpstreamError):
    """The provider was not called: its circuit is open."""

    default: ClassVar[str] = "The model's provider keeps failing and is not called for a while."
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


def shorten(text: str, limit: int = _LONGEST_ECHO) -> str:
    """Return the beginning of a text, so that an error message does not repeat a whole body."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


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
