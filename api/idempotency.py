"""`Idempotency-Key`: a request that is sent again makes nothing twice."""

from __future__ import annotations

import hashlib
import re

import orjson
from fastapi import Request

from headrace.errors import InvalidRequestError
from headrace.idempotency import queries
from headrace.keys.queries import Principal

_HEADER = "idempotency-key"
_VALID = re.compile(r"[\x20-\x7e]{1,255}")


def has_key(request: Request) -> bool:
    """Tell whether a request may be sent again, and its client so expects what it makes to be there."""
    return _HEADER in request.headers


async def resource_id(request: Request, principal: Principal, fresh: str, body: bytes) -> tuple[str, bool]:
    """Return the id of what a request is to make, and whether an earlier one with its key may have made it.

    That is `fresh`, unless an earlier one was to make it by another. `body` is JSON, which with the path has to be the
    same again.

    Raises:
        ConflictError: The key was sent with something else.
        InvalidRequestError: It is not a key.
    """
    key = request.headers.get(_HEADER)
    if key is None:
        return fresh, False
    if not _VALID.fullmatch(key):
        raise InvalidRequestError(
            "Invalid 'Idempotency-Key': it has 1 to 255 printable ASCII characters.",
            param="Idempotency-Key",
            code="invalid_value",
        )
    # The same API is at two prefixes.
    path = request.url.path.removeprefix("/api").encode()
    asked = orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS)
    fingerprint = hashlib.sha256(path + b"\0" + asked).digest()
    found = await queries.claim_id(request.state.database, principal.account_id, key, fingerprint, fresh)
    return found, found != fresh
