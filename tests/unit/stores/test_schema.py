"""Migrations are one chain: two that follow the same one would stop `headrace migrate`."""

from __future__ import annotations

from headrace.stores.schema import head_revision


def test_there_is_one_newest_migration() -> None:
    assert head_revision()
