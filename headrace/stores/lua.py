"""Lua scripts, which Redis runs as one step: each is a `.lua` file beside the module that calls it."""

from __future__ import annotations

from importlib.resources import files


def read_script(package: str, name: str) -> str:
    """Return the text of a package's script."""
    return files(package).joinpath(name).read_text(encoding="utf-8")
