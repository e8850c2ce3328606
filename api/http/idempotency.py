"""`Idempotency-Key`: a repeated request creates nothing twice, and changes nothing twice."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

import orjson
from sqlalchemy.exc import SQLAlchemyError

from api.http.request import ApiRequest
from headrace.errors import invalid_parameter
from headrace.idempotency import queries
from headrace.ids import new_id
from headrace.keys.principal import Principal
from headrace.runtime.offload import offloaded

LONGEST_KEY = 255
"""The most characters of a key."""
_HEADER = "idempotency-key"
_VALID = re.compile(rf"[\x20-\x7e]{{1,{LONGEST_KEY}}}")


def has_key(request: ApiRequest) -> bool:
    """Return whether a request has a key: its client may repeat it, and expects to find what the first one created."""
    return _HEADER in request.headers


def replay_headers(repeated: bool) -> dict[str, str]:
    """Return the headers that mark the answer to a repeated request."""
    return {"idempotent-replayed": "true"} if repeated else {}


async def resource_id(request: ApiRequest, principal: Principal, fresh: str, body: bytes) -> tuple[str, bool]:
    """Return the id of the resource to create, and whether an earlier request with the key may have created it.

    The id is `fresh`, unless an earlier request claimed the key for another id. A repeated request has the same path
    and the same `body`, which is JSON. Callers check a request before they call this, so that a client can correct it
    under the same key.

    Raises:
        ConflictError: The key came with another request.
        InvalidRequestError: The key is malformed.
    """
    key = _key(request)
    if key is None:
        return fresh, False
    fingerprint = await offloaded(len(body), _fingerprint, request, body)
    found = await queries.claim_id(request.state["database"], principal.account_id, key, fingerprint, fresh)
    return found, found != fresh


async def give_up_claim(request: ApiRequest, account_id: str, claimed: str) -> None:
    """Free the request's key, which it has claimed for the id of a resource that is not created."""
    key = _key(request)
    if key is not None:
        with contextlib.suppress(SQLAlchemyError):  # then the key stands for the refused request until tomorrow
            await queries.give_up_claim(request.state["database"], account_id, key, claimed)


async def earlier_id(request: ApiRequest, principal: Principal, body: bytes) -> str | None:
    """Return the id that an earlier request with the key claimed, or None if this request is the first.

    Raises:
        ConflictError: The key came with another request.
        InvalidRequestError: The key is malformed.
    """
    claim = await _find_claim(request, principal, body)
    return None if claim is None else claim.resource_id


@dataclass(frozen=True, slots=True)
class Change:
    """A change that a request asks for. If `done`, an earlier request with the key has made it."""

    done: bool
    _request: ApiRequest
    _principal: Principal
    _body: bytes

    @classmethod
    async def of(cls, request: ApiRequest, principal: Principal, body: bytes = b"{}") -> Self:
        """Look for an earlier request with the key. A repeated one has the same path and `body`, which is JSON.

        Raises:
            ConflictError: The key came with another request.
            InvalidRequestError: The key is malformed.
        """
        claim = await _find_claim(request, principal, body)
        return cls(claim is not None and claim.applied, request, principal, body)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that mark the answer to a repeated request."""
        return replay_headers(self.done)

    @contextlib.asynccontextmanager
    async def applying(self) -> AsyncIterator[str | None]:
        """Claim the key and yield it, or yield None without a key. Mark it as applied if the context does not fail.

        If the process dies inside the context, the key stays unmarked and a repeated request makes the change again.
        Two requests at the same moment both make it. So the statements inside do no harm a second time, or mark the key
        themselves.

        Raises:
            ConflictError: Another request claimed the key meanwhile.
        """
        key = _key(self._request)
        await resource_id(self._request, self._principal, new_id("change"), self._body)
        yield key
        if key is not None:
            await queries.mark_applied(self._request.state["database"], self._principal.account_id, key)


async def _find_claim(request: ApiRequest, principal: Principal, body: bytes) -> queries.Claim | None:
    key = _key(request)
    if key is None:
        return None
    fingerprint = await offloaded(len(body), _fingerprint, request, body)
    return await queries.find_claim(request.state["database"], principal.account_id, key, fingerprint)


def _key(request: ApiRequest) -> str | None:
    key = request.headers.get(_HEADER)
    if key is not None and not _VALID.fullmatch(key):
        raise invalid_parameter("Idempotency-Key", f"it has 1 to {LONGEST_KEY} printable ASCII characters")
    return key


def _fingerprint(request: ApiRequest, body: bytes) -> bytes:
    # The same API has two prefixes.
    path = request.url.path.removeprefix("/api") + "?" + request.url.query
    asked = orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(path.encode() + b"\0" + asked).digest()
