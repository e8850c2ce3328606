"""The query parameter `include` of OpenAI's endpoints for responses and items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, get_args

from api.http.query import list_of
from headrace.errors import invalid_parameter
from headrace.formats.responses import options

_INCLUDABLE = get_args(options.Include)

Include = Annotated[list[str], list_of("include", "Accepted as OpenAI does; items always have all of their fields")]


def check_include(include: Sequence[str]) -> None:
    """Check what a client asks to include.

    Raises:
        InvalidRequestError: OpenAI's API has no such value.
    """
    for name in include:
        if name not in _INCLUDABLE:
            raise invalid_parameter("include", f"there are: {', '.join(sorted(_INCLUDABLE))}")
