"""The tree of errors in the module's docstring is that of the classes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from headrace import errors
from headrace.errors import HeadraceError

LINE = re.compile(r"^( *)[*+-] (\w+) +(?:(\d{3})((?: \w+)*))?", re.MULTILINE)


def classes(base: type[HeadraceError]) -> Iterator[type[HeadraceError]]:
    yield base
    for derived in base.__subclasses__():
        if derived.__module__ == errors.__name__:
            yield from classes(derived)


def test_the_tree_has_each_class_below_its_base_with_its_status_type_and_code() -> None:
    assert errors.__doc__ is not None
    above: dict[int, type[HeadraceError]] = {}
    named = []
    for indent, name, status, words in LINE.findall(errors.__doc__):
        error: type[HeadraceError] = getattr(errors, name)
        named.append(name)
        depth = len(indent) // 2
        above[depth] = error
        assert depth == 0 or error.__base__ is above[depth - 1], name
        assert not status or error.status == int(status), name
        assert set(words.split()) <= {error.type, error.code}, name
    assert sorted(named) == sorted(error.__name__ for error in classes(HeadraceError))
