"""How the text of a prepared statement is read."""

from __future__ import annotations

import pytest
from psycopg.adapt import PyFormat

from headrace.stores.plain import Prepared


def test_placeholders_are_numbered_in_the_order_of_their_names() -> None:
    statement = Prepared("SELECT %(b)s, %(a)b::text[], %(b)s WHERE x LIKE '100%%'")
    assert statement.query == b"SELECT $1, $2::text[], $1 WHERE x LIKE '100%'"
    assert statement.names == ("b", "a")
    assert statement.formats == [PyFormat.AUTO, PyFormat.BINARY]
    assert not statement.is_text
    assert Prepared("SELECT %(a)t::int").is_text


@pytest.mark.parametrize("text", ["SELECT 5 % 2", "SELECT %s", "SELECT %(a)d", "SELECT %(a)"])
def test_any_other_percent_sign_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="percent sign"):
        Prepared(text)
