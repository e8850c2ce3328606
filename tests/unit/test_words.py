"""The check that keeps vague words out finds them in prose alone."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
problems = runpy.run_path(str(ROOT / ".ci" / "words.py"))["problems"]


@pytest.mark.parametrize(
    "text", ["Nobody reads it.", '"""Whoever asks."""', "Redis is\n    # away", "def test_nobody_reads_it() -> None:"]
)
def test_a_vague_word_is_found(text: str) -> None:
    [problem] = problems(text, "a.py")
    assert problem.startswith("a.py:1: ")


@pytest.mark.parametrize("text", ["runs as `nobody`", 'pwd.getpwnam("nobody")', "if row is None:"])
def test_names_and_code_are_let_through(text: str) -> None:
    assert problems(text, "a.py") == []
