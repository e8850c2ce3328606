"""The secret key that `headrace dev` keeps beside its own Postgres."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from headrace.cli.dev import _with_secret_key
from headrace.settings import Settings


@pytest.mark.parametrize("left", [None, ""], ids=["nothing", "an empty file, as of a full disk"])
def test_a_secret_key_is_made_once(tmp_path: Path, left: str | None) -> None:
    path, settings = tmp_path / "secret-key", Settings(data_dir=tmp_path)
    if left is not None:
        path.write_text(left)
    made = _with_secret_key(settings).secret_key
    assert made is not None
    assert len(made.get_secret_value()) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert _with_secret_key(settings).secret_key == made
    assert list(tmp_path.iterdir()) == [path]
