"""`Idempotency-Key`: a request that is sent again makes nothing twice, and changes nothing twice."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

import orjson
from fastapi import Request

from headrace.errors import invalid_parameter
from headrace.idempotency import queries
from headrace.ids import new_id
from headrace.keys.queries import Principal
from headrace.runtime.offload import offloaded

LONGEST_KEY = 255
_HEADER = "idempotency-key"
_VALID = re.compile(rf"[\x20-\x7e]{{1,{LONGEST_KEY}}}")


def has_key(request: Request) -> bool:
    """Tell whether a request may be sent again, and its client so expects what it makes to be there."""
    return _HEADER in request.headers


def replay_headers(repeated: bool) -> dict[str, str]:
    """Return what an answer's headers say of an earlier request with the same key."""
    return {"idempotent-replayed": "true"} if repeated else {}


async def resource_id(request: Request, principal: Principal, fresh: str, body: bytes) -> tuple[str, bool]:
    """Return the id of what a request is to make, and whether an earlier one with its key may have made it.

    That is `fresh`, unless an earlier one was to make it by another. `body` is JSON, which with the path has to be the
    same again. Whatever may be wrong with the request is looked for before, so that it can be put right under its key.

    Raises:
        ConflictError: The key was sent with something else.
        InvalidRequestError: It is not a key.
    """
    key = _key(request)
    if key is None:
        return fresh, False
    fingerprint = await offloaded(len(body), _fingerprint, request, body)
    found = await queries.claim_id(request.state.database, principal.account_id, key, fingerprint, fresh)
    return found, found != fresh


async def earlier_id(request: Request, principal: Principal, body: bytes) -> str | None:
    """Return the id of what an earlier request with the key was to make, or None if there was none.

    Raises:
        ConflictError: The key was sent with something else.
        InvalidRequestError: It is not a key.
    """
    claim = await _find_claim(request, principal, body)
    return None if claim is None else claim.resource_id


@dataclass(frozen=True, slots=True)
class Change:
    """What a request is to change, and whether an earlier one with its key has: then it is not changed again."""

    done: bool
    _request: Request
    _principal: Principal
    _body: bytes

    @classmethod
    async def of(cls, request: Request, principal: Principal, body: bytes = b"{}") -> Self:
        """Look for an earlier request. `body` is JSON, which with the path has to be the same again.

        Raises:
            ConflictError: The key was sent with something else.
            InvalidRequestError: It is not a key.
        """
        claim = await _find_claim(request, principal, body)
        return cls(claim is not None and claim.applied, request, principal, body)

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's headers say of it."""
        return replay_headers(self.done)

    @contextlib.asynccontextmanager
    async def applying(self) -> AsyncIterator[str | None]:
        """Claim the key, if there is one, and yield it; mark it as applied when what is done within has not failed.

        Who dies within leaves it unmarked, and the request that is sent again makes the change, perhaps once more. So
        do two that come at the same moment. Hence what is done within does no harm a second time, or marks the key in
        the same statement.

        Raises:
            ConflictError: Something else was sent with it meanwhile.
        """
        key = _key(self._request)
        await resource_id(self._request, self._principal, new_id("change"), self._body)
        yield key
        if key is not None:
            await queries.mark_applied(self._request.state.database, self._principal.account_id, key)


async def _find_claim(request: Request, principal: Principal, body: bytes) -> queries.Claim | None:
    key = _key(request)
    if key is None:
        return None
    fingerprint = await offloaded(len(body), _fingerprint, request, body)
    return await queries.find_claim(request.state.database, principal.account_id, key, fingerprint)


def _key(request: Request) -> str | None:
    key = request.headers.get(_HEADER)
    if key is not None and not _VALID.fullmatch(key):
        raise invalid_parameter("Idempotency-Key", f"it has 1 to {LONGEST_KEY} printable ASCII characters")
    return key


def _fingerprint(request: Request, body: bytes) -> bytes:
    # The same API is at two prefixes.
    path = request.url.path.removeprefix("/api") + "?" + request.url.query
    asked = orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(path.encode() + b"\0" + asked).digest()
