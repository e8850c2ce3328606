"""A client of Headrace's public HTTP API, with the key of one session."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx

log = logging.getLogger(__name__)

# Seconds that the API may take to answer a page, and to accept a connection. Streams and uploads wait without a limit.
_ANSWER_SECONDS = 30.0
_CONNECT_SECONDS = 5.0
_PATIENCE = httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS)
_UNLIMITED = httpx.Timeout(None, connect=_CONNECT_SECONDS)

Parameter = str | int | float | bool | None | Sequence[str]
Parameters = Mapping[str, Parameter]


class ApiUnavailableError(Exception):
    """The API cannot be reached, or says that it is unavailable."""


class ApiError(Exception):
    """The API refused a request."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        """Take the parts of the error that the API answered."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param


class Api:
    """The API as one key sees it."""

    def __init__(self, http: httpx.AsyncClient, key: str, account_id: str | None = None) -> None:
        """Use a key. With `account_id`, which needs an admin key, reads are of that account's rows."""
        self._http = http
        self._headers = {"authorization": f"Bearer {key}"}
        if account_id is not None:
            self._headers["headrace-account"] = account_id

    async def get(self, path: str, **parameters: Parameter) -> Any:
        """Return the JSON at a path, as `get("/jobs", limit=20)`. A parameter that is None or empty is not sent.

        One with several values is sent once for each.

        Raises:
            ApiUnavailableError: The API cannot be reached.
            ApiError: It refused the request.
        """
        return (await self._ask("GET", path, params=_sent(parameters))).json()

    async def post(self, path: str, body: Mapping[str, Any] | None = None, **headers: str) -> Any:
        """Return the JSON that a change answers. It is sent once. Raises as `get` does."""
        return (await self._ask("POST", path, json=body or {}, headers=headers)).json()

    async def delete(self, path: str, **parameters: str | float | bool | None) -> Any:
        """Delete what is at a path and return the answer. Raises as `get` does."""
        return (await self._ask("DELETE", path, params=_sent(parameters))).json()

    async def model_names(self) -> list[str]:
        """Return the names of the models that the key may ask."""
        return [model["id"] for model in (await self.get("/models"))["data"] if model["owned_by"] != "agent"]

    async def forward(self, path: str, body: AsyncIterator[bytes], headers: Mapping[str, str]) -> Any:
        """Send a body on as it arrives, such as an upload, and return the answer. Raises as `get` does."""
        return (await self._ask("POST", path, content=body, headers=headers, patience=_UNLIMITED)).json()

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, *, params: Parameters | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Open an answer whose body is read as it comes: events or a file. Raises as `get` does."""
        asked = self._http.build_request(
            "GET",
            path,
            params=_sent(params or {}),
            headers=self._headers | dict(headers or {}),
            timeout=_UNLIMITED,
        )
        response = await self._send(asked, stream=True)
        try:
            await _check(response)
            yield response
        finally:
            await response.aclose()

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        patience: httpx.Timeout = _PATIENCE,
        **content: Any,
    ) -> httpx.Response:
        asked = self._http.build_request(
            method, path, headers=self._headers | dict(headers or {}), timeout=patience, **content
        )
        response = await self._send(asked, stream=False)
        await _check(response)
        return response

    async def _send(self, asked: httpx.Request, *, stream: bool) -> httpx.Response:
        try:
            return await self._http.send(asked, stream=stream)
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            log.warning("cannot reach the API at %s (HEADRACE_CONSOLE_API_URL): %s", self._http.base_url, reason)
            raise ApiUnavailableError(type(error).__name__) from error


def open_http(api_url: str) -> httpx.AsyncClient:
    """Return the connections to the API, which the process keeps. A proxy in the environment is not used."""
    return httpx.AsyncClient(
        base_url=f"{api_url.rstrip('/')}/api/v1",
        timeout=_PATIENCE,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
        trust_env=False,
    )


async def pieces_of(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Return the body of a stream as it comes: whole, or up to where the connection broke."""
    with contextlib.suppress(httpx.TransportError):
        async for piece in answer.aiter_bytes():
            yield piece


def _sent(parameters: Parameters) -> dict[str, str | int | float | bool | Sequence[str]]:
    return {name: value for name, value in parameters.items() if value is not None and value != ""}


async def _check(response: httpx.Response) -> None:
    """Raise the error of an answer that is one."""
    if response.is_success:
        return
    await response.aread()
    try:
        error = response.json()["error"]
        message, code, param = str(error["message"]), error.get("code"), error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code, param = f"The API answered {response.status_code}.", None, None
    if response.status_code in {502, 503, 504}:
        raise ApiUnavailableError(message)
    raise ApiError(response.status_code, message, code, param)
