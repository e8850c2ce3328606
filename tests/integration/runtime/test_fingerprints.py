"""Processes that have another configuration or secret key than the others are noticed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from headrace.catalogue.file import CatalogueFile
from headrace.runtime.chores import going_on
from headrace.runtime.fingerprints import Fingerprint, of_configuration, of_secret_key, read_fingerprints
from headrace.settings import Settings
from headrace.stores.database import Database, execute
from tests.waiting import eventually

FILE = """
[providers.fake]
kind = "openai"
base_url = "http://127.0.0.1:1/v1"
[models.{model}]
routes = ["fake/{model}"]
"""


def process(
    database: Database, folder: Path, name: str, *, model: str = "m", part: str = "api", key: str | None = "k" * 32
) -> Fingerprint:
    path = folder / f"{model}.toml"
    path.write_text(FILE.format(model=model))
    options: dict[str, Any] = {"config": path, "secret_key": key}
    fingerprint = Fingerprint(Settings(**options), CatalogueFile(path), database, part=part)
    fingerprint._process = name
    return fingerprint


@pytest.fixture
async def alone(database: Database) -> None:
    await execute(database.durable, "DELETE FROM process_fingerprints")


async def test_processes_that_have_the_same_are_silent(
    alone: None, database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for fingerprint in (
        process(database, tmp_path, "a:1"),
        process(database, tmp_path, "b:1", part="scheduler"),
        process(database, tmp_path, "b:2", part="worker", key=None),
    ):
        await fingerprint.compare()
    assert caplog.records == []
    assert [row.process for row in await read_fingerprints(database)] == ["a:1", "b:1", "b:2"]


@pytest.mark.parametrize(
    ("differing", "what"),
    [
        ({"model": "other"}, "headrace.toml"),
        ({"key": "x" * 32}, "HEADRACE_SECRET_KEY"),
        ({"key": None}, "HEADRACE_SECRET_KEY"),
    ],
    ids=["configuration", "another key", "no key"],
)
async def test_a_process_that_has_another_is_named_once(
    alone: None,
    database: Database,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    differing: dict[str, Any],
    what: str,
) -> None:
    await process(database, tmp_path, "a:1").compare()
    other = process(database, tmp_path, "b:1", part="scheduler", **differing)
    for _ in range(2):
        await other.compare()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "a:1 has another" in record.message
    assert what in record.message


async def test_processes_that_are_gone_are_forgotten(alone: None, database: Database, tmp_path: Path) -> None:
    await process(database, tmp_path, "a:1").compare()
    await execute(database.durable, "UPDATE process_fingerprints SET seen_at = now() - interval '1 hour'")
    await process(database, tmp_path, "b:1").compare()
    assert [row.process for row in await read_fingerprints(database)] == ["b:1"]


async def test_a_process_that_ends_in_order_is_forgotten_at_once(
    alone: None, database: Database, tmp_path: Path
) -> None:
    await process(database, tmp_path, "a:1").compare()
    async with going_on(process(database, tmp_path, "b:1", part="worker").run):
        await eventually(lambda: known(database, "a:1", "b:1"), "both processes")
    assert [row.process for row in await read_fingerprints(database)] == ["a:1"]


async def test_a_process_that_reads_its_file_again_writes_at_once_and_gives_the_others_time(
    alone: None, database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await process(database, tmp_path, "a:1").compare()
    changing = process(database, tmp_path, "b:1", part="scheduler")
    async with going_on(changing.run):
        await eventually(lambda: known(database, "a:1", "b:1"), "both processes")
        (tmp_path / "m.toml").write_text(FILE.format(model="other"))
        changing._file.reload()
        wanted = of_configuration(changing._file.current)

        async def written() -> bool:
            rows = await read_fingerprints(database)
            return any((row.process, row.configuration) == ("b:1", wanted) for row in rows)

        await eventually(written, "the digest of the changed file")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def known(database: Database, *names: str) -> bool:
    return [row.process for row in await read_fingerprints(database)] == [*names]


def test_digests_reveal_nothing_and_tell_apart() -> None:
    keys: list[Any] = ["k" * 32, "x" * 32, None]
    digests = [of_secret_key(Settings(secret_key=key)) for key in keys]
    assert len(set(digests)) == 3
    assert not any(key in digest for key in keys if key for digest in digests)
    assert of_configuration(CatalogueFile(None).current) == of_configuration(CatalogueFile(None).current)
