"""The pages of lists, in OpenAI's shape."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

import orjson
from fastapi import Query
from pydantic import BaseModel
from starlette.responses import Response

from api.http.errors import render_json
from headrace.errors import invalid_parameter
from headrace.ids import is_id

STORABLE_TEXT = r"^[^\x00]*$"
"""The pattern of a text in a query: Postgres cannot store U+0000."""

TextFilter = Annotated[str | None, Query(pattern=STORABLE_TEXT, max_length=256)]

Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]

# The largest position, and the largest Unix time, of a page token.
_LAST = 2**40

PageToken = Annotated[
    str | None,
    Query(description="The `next_page` of the previous page", json_schema_extra={"pattern": "^[A-Za-z0-9_-]+$"}),
]
"""The token of an answer's next page. `read_page_token` checks it."""


Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """A page of a list, as `render_page` writes it. `last_id` is the `after` of the next page."""

    object: Literal["list"]
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


def after_id(prefix: str) -> Any:
    """Return the documentation of a list's parameter `after`; ids have this prefix, which ends with a separator."""
    pattern = f"^{prefix}[0-9a-f]{{32}}$"
    return Query(description="The last id of the previous page", json_schema_extra={"pattern": pattern})


def check_after(after: str | None, prefix: str) -> None:
    """Check that a list's `after` has the form of an id with this prefix.

    Ids sort by age, so a list continues after an id even if that resource is deleted: a client may delete resources
    while it lists them.

    Raises:
        InvalidRequestError: `after` has another form.
    """
    if after is not None and not is_id(after, prefix):
        raise invalid_parameter("after", f"it is not an id of the form '{prefix}…'")


def render_page(
    items: Sequence[Any],
    *,
    limit: int | None = None,
    has_more: bool = False,
    ids: Sequence[str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a page of the first `limit` items, or of all. The list continues if more are given, or if it `has_more`.

    `ids` are those of items that are text already.
    """
    limit = len(items) if limit is None else limit
    page = items[:limit]
    ids = [item["id"] for item in page] if ids is None else ids[:limit]
    document = {
        "object": "list",
        "data": page,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": has_more or len(items) > limit,
    }
    return render_json(document, headers)


def render_page_after(
    items: list[dict[str, Any]], *, after: str | None, limit: int, order: Order, kind: str
) -> Response:
    """Return the page behind the item with the id `after` of a whole list, whose oldest item is first.

    Raises:
        InvalidRequestError: The list has no such item; the error calls it `kind`.
    """
    if order == "desc":
        items = items[::-1]
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise invalid_parameter("after", f"there is no such {kind}")
        items = items[ids.index(after) + 1 :]
    return render_page(items, limit=limit)


def render_page_token(query: str, position: int, until: int) -> str:
    """Return a token for the page of an answer to `query` from `position` on, which ends at `until`."""
    return base64.urlsafe_b64encode(orjson.dumps([_digest(query), position, until])).decode().rstrip("=")


def read_page_token(token: str, query: str) -> tuple[int, int]:
    """Return the position and the end that a token holds.

    Raises:
        InvalidRequestError: The token is malformed, or belongs to another query.
    """
    try:
        digest, position, until = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if digest == _digest(query) and 0 <= position <= _LAST and 0 <= until <= _LAST:
            return int(position), int(until)
    except (ValueError, TypeError):
        pass
    raise invalid_parameter("page", "it is not a page of this query")


def _digest(query: str) -> str:
    return hashlib.sha256(query.encode("utf-8", "surrogatepass")).hexdigest()[:16]
