"""Lists, as OpenAI has them, and the `metadata[key]=value` that narrows them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

import orjson
from fastapi import Query, Request
from starlette.responses import Response

from headrace.errors import InvalidRequestError

# Postgres has no place for U+0000 in a text.
ModelFilter = Annotated[str | None, Query(pattern=r"^[^\x00]*$", max_length=256)]

_METADATA = re.compile(r"metadata\[(.{1,64})\]")
_MOST_METADATA = 16


def render_page(items: Sequence[dict[str, Any]], *, limit: int) -> Response:
    """Return a page of up to `limit` items; that there are more of them than that says that the list goes on."""
    page = items[:limit]
    document = {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > limit,
    }
    return Response(orjson.dumps(document), media_type="application/json")


def metadata_filter(request: Request) -> dict[str, str]:
    """Return what the query asks of metadata.

    Raises:
        InvalidRequestError: It asks for more than any metadata has.
    """
    wanted = {
        match[1]: value for name, value in request.query_params.multi_items() if (match := _METADATA.fullmatch(name))
    }
    if any("\0" in name + value for name, value in wanted.items()):
        raise InvalidRequestError("Metadata has no character U+0000.", param="metadata", code="invalid_value")
    if len(wanted) > _MOST_METADATA:
        raise InvalidRequestError("At most 16 metadata filters are possible.", param="metadata", code="invalid_value")
    return wanted
