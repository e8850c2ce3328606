"""Lua scripts: each says what it takes, and Redis compiles it."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from headrace.dev.valkey import EmbeddedValkey

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = [
    path.relative_to(ROOT)
    for part in ("headrace", "worker", "scheduler", "api")
    for path in (ROOT / part).rglob("*.lua")
]


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_a_script_compiles_and_documents_its_arguments(valkey: EmbeddedValkey, script: Path) -> None:
    text = (ROOT / script).read_text()
    header = text.partition("\n\n")[0].splitlines()
    assert all(line.startswith("--") for line in header)
    assert any(line.startswith("-- KEYS") for line in header)
    assert any(line.startswith("-- ARGV") for line in header)
    with Redis.from_url(valkey.url) as redis:
        redis.script_load(text)


def test_the_scripts_are_found() -> None:
    assert {"admit.lua", "peers.lua", "throttle.lua"} <= {script.name for script in SCRIPTS}
