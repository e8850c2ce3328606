"""Query parameters: unknown ones are refused, and lists are read in every form that clients write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from fastapi import Depends, Query
from fastapi.dependencies.models import Dependant

from api.http.request import ApiRequest
from headrace.errors import InvalidRequestError, invalid_parameter

_METADATA = re.compile(r"metadata\[(.{1,64})\]")
# Filters of metadata in one query.
_MOST_METADATA = 16
# Values of one list.
_MOST_VALUES = 100
# Characters of an unknown parameter's name that the error repeats.
_LONGEST_NAME = 100


def check_query(request: ApiRequest) -> None:
    """Check that an endpoint reads every query parameter: the answer to an ignored filter would look right.

    An endpoint without parameters accepts any, because some clients add their version or a random number everywhere.

    Raises:
        InvalidRequestError: The endpoint has no such parameter, or a parameter with a single value is repeated.
    """
    dependant: Dependant = request.scope["route"].dependant
    lists = dict(_parameters(dependant))
    labelled = _reads_metadata(dependant)
    if not lists and not labelled:
        return
    seen = set[str]()
    for name, _ in request.query_params.multi_items():
        if name not in lists and not (labelled and _METADATA.fullmatch(name)):
            param = name[:_LONGEST_NAME]
            raise InvalidRequestError(
                f"Unknown query parameter: '{param}'. There are: {', '.join(lists)}.",
                param=param,
                code="unknown_parameter",
            )
        if name in seen and not lists.get(name):
            raise invalid_parameter(name, "it may be given only once")
        seen.add(name)


def _parameters(dependant: Dependant) -> Iterator[tuple[str, bool]]:
    """Yield the names of an endpoint's query parameters, and whether each is a list."""
    for field in dependant.query_params:
        kind = field.field_info.annotation
        yield field.alias, any(get_origin(one) is list for one in (kind, *get_args(kind)))
    for dependency in dependant.dependencies:
        yield from _parameters(dependency)


def _reads_metadata(dependant: Dependant) -> bool:
    return any(dependency.call is _metadata_filter for dependency in dependant.dependencies)


def _metadata_filter(request: ApiRequest) -> dict[str, str]:
    """Return the metadata filters of a query.

    Raises:
        InvalidRequestError: The query has too many, or one has the character U+0000.
    """
    wanted = {match[1]: value for name, value in request.query_params.items() if (match := _METADATA.fullmatch(name))}
    if any("\0" in name + value for name, value in wanted.items()):
        raise invalid_parameter("metadata", "it has the character U+0000")
    if len(wanted) > _MOST_METADATA:
        raise invalid_parameter("metadata", f"at most {_MOST_METADATA} filters are possible")
    return wanted


MetadataFilter = Annotated[dict[str, str], Depends(_metadata_filter)]
"""The metadata that a list is narrowed to: `metadata[key]=value`."""

DESCRIBED_METADATA: dict[str, Any] = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "description": "`metadata[key]=value`: only items with this metadata",
            "style": "deepObject",
            "explode": True,
            "schema": {
                "type": "object",
                "maxProperties": _MOST_METADATA,
                "additionalProperties": {"type": "string", "pattern": "^[^\\x00]*$"},
                "propertyNames": {"minLength": 1, "maxLength": 64, "pattern": "^[^\\x00\\n\\[\\]]*$"},
            },
        }
    ]
}
"""The documentation of a `MetadataFilter`, for the `openapi_extra` of an endpoint."""


def list_of(name: str, description: str, *, commas: bool = False) -> Any:
    """Return a dependency on a list: `name=a&name=b`, `name[]=a&name[]=b` as OpenAI's clients and PHP write, or both.

    With `commas`, `name=a,b` is two values as well; a value that contains a comma then needs the form with `[]`.
    """

    def values(plain: list[str] | None = None, bracketed: list[str] | None = None) -> list[str]:
        given = plain or []
        if commas:
            given = [value.strip() for text in given for value in text.split(",")]
        return list(dict.fromkeys([*(bracketed or ()), *given]))

    # FastAPI evaluates annotations, and written as text they could not name local variables.
    most = _MOST_VALUES
    values.__annotations__ = {
        "plain": Annotated[list[str] | None, Query(alias=name, max_length=most, description=description)],
        "bracketed": Annotated[list[str] | None, Query(alias=f"{name}[]", max_length=most, include_in_schema=False)],
    }
    return Depends(values)
