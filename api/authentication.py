"""Who a request comes from: one place reads the key, whichever header carries it."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import Depends, Request

from headrace.database import Database
from headrace.errors import AuthenticationError
from headrace.keys.queries import Principal, find_principal, hash_key

# A revoked key works no longer than this in a process that has just seen it.
_CACHE_SECONDS = 1.0
_CACHE_SIZE = 10_000


class Authenticator:
    """Looks keys up by their hash. Only valid ones are remembered, briefly, so every refusal takes the same path."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cache: dict[bytes, tuple[float, Principal]] = {}

    async def authenticate(self, key: str) -> Principal:
        """Return whose key this is.

        Raises:
            AuthenticationError: Nobody's: there is none, or it is malformed, unknown, revoked or expired.
        """
        key_hash = hash_key(key)
        cached = self._cache.get(key_hash)
        now = time.monotonic()
        if cached is not None and cached[0] > now:
            return cached[1]
        principal = await find_principal(self._database, key_hash)
        if principal is None:
            self._cache.pop(key_hash, None)
            raise AuthenticationError
        if len(self._cache) >= _CACHE_SIZE:
            self._cache.clear()
        self._cache[key_hash] = (now + _CACHE_SECONDS, principal)
        return principal


async def authenticate(request: Request) -> Principal:
    """Return who sent the request, by `Authorization: Bearer` or else by `X-API-Key`.

    Raises:
        AuthenticationError: Nobody that we know.
    """
    scheme, _, credential = request.headers.get("authorization", "").partition(" ")
    key = credential.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    authenticator: Authenticator = request.state.authenticator
    return await authenticator.authenticate(key)


Authenticated = Annotated[Principal, Depends(authenticate)]
