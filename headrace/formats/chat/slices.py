"""A long list in a request, checked in slices, so that no call into pydantic takes more than some milliseconds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypeVar

from pydantic import BaseModel

from headrace.errors import InvalidRequestError
from headrace.formats.chat.validation import validate

_Model = TypeVar("_Model", bound=BaseModel)

# Items of the list, and of lists inside of them, that are checked in one call: some milliseconds.
_SLICE = 500


def validate_in_slices(
    model: type[_Model],
    document: Any,
    field: str,
    part: type[BaseModel],
    *,
    most: int,
    within: str | None = None,
) -> _Model:
    """Return parsed JSON as a `model`, which has the first slice of the list `field` alone.

    `part` is a model of that one field. The field is in the object `within` of the document, or in the document itself.
    A list of more than `most` items is left to `model`, which refuses it.

    Raises:
        InvalidRequestError: The document is not valid; the error names the path of the field that is wrong.
    """
    holder = document.get(within) if within is not None and isinstance(document, dict) else document
    if not isinstance(holder, dict) or not isinstance(holder.get(field), list):
        return validate(model, document)
    items = holder[field]
    if len(items) < 2 or len(items) > most or len(ends := list(_slices(items))) < 2:
        return validate(model, document)
    first = {**holder, field: items[: ends[0]]}
    checked = validate(model, first if within is None else {**document, within: first})
    for start, end in pairwise(ends):
        try:
            validate(part, {field: items[start:end]})
        except InvalidRequestError as error:
            if error.param is None:
                raise
            raise error.about(_moved(error.param, field, start, within)) from None
    return checked


def _slices(items: list[Any]) -> Iterator[int]:
    """Yield where each slice ends."""
    weight = 0
    for index, item in enumerate(items):
        weight += 1
        if type(item) is dict:
            for value in item.values():
                if type(value) is list:
                    weight += len(value)
        if weight >= _SLICE:
            yield index + 1
            weight = 0
    if weight:
        yield len(items)


def _moved(path: str, field: str, start: int, within: str | None) -> str:
    """Return the path, in the whole document, of what a slice has at `path`."""
    prefix = "" if within is None else f"{within}."
    return re.sub(rf"^{field}\[(\d+)\]", lambda match: f"{prefix}{field}[{int(match[1]) + start}]", path)
