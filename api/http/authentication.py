"""Authentication: which key a request has, what the key may do, and whose rows an administrator's request reads."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from sqlalchemy.exc import SQLAlchemyError

from api.http.query import check_query
from api.http.request import ApiRequest
from headrace.errors import AuthenticationError, InvalidRequestError, NotFoundError, PermissionDeniedError, shorten
from headrace.ids import is_id
from headrace.keys.accounts import find_account
from headrace.keys.principal import KeyScope, Principal
from headrace.keys.queries import find_principal, hash_key, mark_used, still_valid
from headrace.runtime.chores import next_tick
from headrace.runtime.flag import Flag
from headrace.stores.connections import Row
from headrace.stores.database import Database
from headrace.telemetry.context import note

log = logging.getLogger(__name__)

ACCOUNT_HEADER = "Headrace-Account"
"""The header by which an administrator's request names the account that it reads."""

# Routes of POSTs that change nothing.
_READING_POSTS = frozenset({"/responses/input_tokens"})

# Seconds for which a process uses a key without looking it up again: a revoked key stops working within them.
_CACHE_SECONDS = 1.0
# Entries at which a cache is emptied.
_CACHE_SIZE = 10_000
# Entries above which a cache is searched for old ones.
_CACHE_WORTH_A_LOOK = 100
# Seconds between two checks of the keys of open streams.
_RECHECK_SECONDS = 2.0
# Seconds between two records of a key's use, and seconds a record waits to be written with those of other keys.
_MARK_SECONDS = 60.0
_GATHER_SECONDS = 0.5

# By key hash: each callback to run when the key becomes invalid, and whether also when it loses the scope `admin`.
_Held = dict[bytes, set[tuple[Callable[[], None], bool]]]


@dataclass(frozen=True, slots=True)
class _Known:
    """A key that was valid when it was looked up. Times are on the monotonic clock."""

    principal: Principal
    until: float
    marked_at: float


class Authenticator:
    """Looks up keys by their hash. It caches valid keys alone, briefly, so every refusal takes the same path."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cache: dict[bytes, _Known] = {}
        self._accounts: dict[str, tuple[Row, float]] = {}
        self._held: _Held = {}
        self._has_work = Flag()
        """Set while there are keys to check, or many to forget."""
        self._used: set[str] = set()
        self._marking: asyncio.Task[None] | None = None

    async def authenticate(self, key: str) -> Principal:
        """Return the principal of a key.

        Raises:
            AuthenticationError: The key is missing, malformed, unknown, revoked or expired.
        """
        key_hash = hash_key(key)
        known = self._cache.get(key_hash)
        now = time.monotonic()
        if known is not None and known.until > now:
            return known.principal
        principal = await find_principal(self._database, key_hash)
        if principal is None:
            self._cache.pop(key_hash, None)
            raise AuthenticationError
        if len(self._cache) >= _CACHE_SIZE:
            self._cache.clear()
        marked_at = -math.inf if known is None else known.marked_at
        if marked_at + _MARK_SECONDS <= now:
            marked_at = now
            self._mark(principal.key_id)
        self._cache[key_hash] = _Known(principal, now + _CACHE_SECONDS, marked_at)
        if self._is_large():
            self._has_work.set()
        return principal

    async def find_account(self, account_id: str) -> Row | None:
        """Return an account, or None if it does not exist. A stream asks for the same one again and again."""
        found, until = self._accounts.get(account_id, (None, -math.inf))
        now = time.monotonic()
        if until <= now:
            found = await find_account(self._database, account_id=account_id) if is_id(account_id, "acct") else None
            if len(self._accounts) >= _CACHE_SIZE:
                self._accounts.clear()
            if found is not None:
                self._accounts[account_id] = found, now + _CACHE_SECONDS
                if self._is_large():
                    self._has_work.set()
        return found

    def holding(self, principal: Principal, end: Callable[[], None]) -> Holding:
        """Return the check that calls `end` when the principal's key is revoked, rotated or expires.

        It also calls `end` if the request names an account and its key loses the scope `admin`.
        """
        return Holding(self._held, self._has_work, principal.key_hash, (end, principal.names_account))

    async def run(self) -> None:
        """End open streams whose keys have become invalid, until cancelled. One query checks all keys."""
        while True:
            await self._has_work.wait()
            await next_tick(_RECHECK_SECONDS)
            self._forget(time.monotonic())
            if not self._held:
                if not self._is_large():
                    self._has_work.clear()
                continue
            hashes = list(self._held)
            try:
                valid = await still_valid(self._database, hashes)
            except SQLAlchemyError as error:
                log.warning("the keys of open streams are not checked while Postgres is unavailable: %s", error)
                continue
            for key_hash in hashes:
                if key_hash not in valid:
                    self._cache.pop(key_hash, None)
                for end, needs_admin in tuple(self._held.get(key_hash, ())):
                    if key_hash not in valid or (needs_admin and not valid[key_hash]):
                        end()

    def _is_large(self) -> bool:
        return max(len(self._cache), len(self._accounts)) > _CACHE_WORTH_A_LOOK

    def _forget(self, now: float) -> None:
        """Drop old entries of large caches: many keys are used once."""
        if len(self._cache) > _CACHE_WORTH_A_LOOK:
            self._cache = {
                key_hash: known
                for key_hash, known in self._cache.items()
                if max(known.until, known.marked_at + _MARK_SECONDS) > now
            }
        if len(self._accounts) > _CACHE_WORTH_A_LOOK:
            self._accounts = {name: found for name, found in self._accounts.items() if found[1] > now}

    def _mark(self, key_id: str) -> None:
        self._used.add(key_id)
        if self._marking is None or self._marking.done():
            self._marking = asyncio.create_task(self._mark_used())

    async def _mark_used(self) -> None:
        """Record the use of keys, many at once. No request waits for it."""
        while self._used:
            await asyncio.sleep(_GATHER_SECONDS)
            used, self._used = self._used, set()
            try:
                await mark_used(self._database, list(used))
            except SQLAlchemyError as error:
                log.warning("could not record the use of %d keys: %s", len(used), error)


class Holding:
    """The check of a stream's key, while the stream lasts."""

    __slots__ = ("_has_work", "_held", "_key_hash", "_one")

    def __init__(self, held: _Held, has_work: Flag, key_hash: bytes, one: tuple[Callable[[], None], bool]) -> None:
        self._held = held
        self._has_work = has_work
        self._key_hash = key_hash
        self._one = one

    def begin(self) -> None:
        """Have the key checked."""
        self._held.setdefault(self._key_hash, set()).add(self._one)
        self._has_work.set()

    def end(self) -> None:
        """Stop checking the key."""
        held = self._held[self._key_hash]
        held.discard(self._one)
        if not held:
            del self._held[self._key_hash]


async def authenticate(request: ApiRequest) -> Principal:
    """Return the principal of the key in `Authorization: Bearer`, or else in `X-API-Key`.

    Every endpoint for clients depends on this, so it also refuses query parameters that the endpoint does not read, and
    requests of read-only keys that change something. With the header `Headrace-Account` the principal of an
    administrator's key reads the rows of that account.

    Raises:
        AuthenticationError: The key is missing or not valid.
        PermissionDeniedError: The key is read-only and this is no read, or the request names an account and the key is
            no administrator's.
        NotFoundError: The request names an account that does not exist.
        InvalidRequestError: The request names an account and is no read, or the endpoint does not read one of the
            query's parameters.
    """
    scheme, _, credential = request.headers.get("authorization", "").partition(" ")
    key = credential.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    state = request.state
    authenticator = state["authenticator"]
    principal = await authenticator.authenticate(key)
    note(account=principal.account_id)
    if principal.read_only and not _reads(request):
        raise PermissionDeniedError("This API key is read-only: it may send only requests that change nothing.")
    named = request.headers.get(ACCOUNT_HEADER)
    if named is not None:
        principal = await _reading(request, principal, named)
    state["account_id"] = principal.account_id
    state["principal"] = principal
    if request.scope["query_string"]:
        check_query(request)
    return principal


def _reads(request: ApiRequest) -> bool:
    """Return whether a request changes nothing. HEAD has become GET by now."""
    return request.method == "GET" or request.scope["route"].path in _READING_POSTS


async def _reading(request: ApiRequest, principal: Principal, account_id: str) -> Principal:
    """Return the principal that reads the rows of an account; `authenticate` has the errors."""
    if not principal.is_admin:
        raise PermissionDeniedError(
            f"Only a key with the scope 'admin' may send the header '{ACCOUNT_HEADER}'.", param=ACCOUNT_HEADER
        )
    if not _reads(request):
        raise InvalidRequestError(
            f"Invalid '{ACCOUNT_HEADER}': only a request that reads may name an account in this header.",
            param=ACCOUNT_HEADER,
        )
    if "account" in request.query_params:
        raise InvalidRequestError(
            f"Invalid 'account': only allowed without the header '{ACCOUNT_HEADER}'.", param="account"
        )
    found = await request.state["authenticator"].find_account(account_id)
    if found is None:
        raise NotFoundError(f"No account found with id '{shorten(account_id)}'.", param=ACCOUNT_HEADER)
    note(reads_account=account_id)
    return principal.reading(found)


Authenticated = Annotated[Principal, Depends(authenticate)]

REQUIRED_SCOPES: dict[Callable[..., object], KeyScope] = {}
"""The scope that each dependency made by `requires` demands."""


def requires(scope: KeyScope) -> Callable[..., Awaitable[Principal]]:
    """Return a dependency that accepts keys with a scope, or with `admin`.

    It raises PermissionDeniedError for other keys, before the body is read.
    """

    async def authorize(principal: Authenticated) -> Principal:
        if not principal.may(scope):
            raise PermissionDeniedError(f"This needs an API key with the scope '{scope}'.")
        return principal

    REQUIRED_SCOPES[authorize] = scope
    return authorize


Administrator = Annotated[Principal, Depends(requires("admin"))]
UsageReader = Annotated[Principal, Depends(requires("usage:read"))]
KeyManager = Annotated[Principal, Depends(requires("keys:write"))]
MetricsReader = Annotated[Principal, Depends(requires("metrics:read"))]
WebhookManager = Annotated[Principal, Depends(requires("webhooks:write"))]
