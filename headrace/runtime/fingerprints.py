"""Whether all processes have the same secret key and configuration: they compare digests that reveal neither.

Each process writes its digests to Postgres at its start and once a minute, and compares them with those of the others.
It writes them when it reads its configuration again, too, and removes them when it ends in order.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from headrace.catalogue.file import CatalogueFile
from headrace.catalogue.models import Catalogue
from headrace.runtime.chores import wait_for
from headrace.settings import Settings
from headrace.stores.connections import Row
from headrace.stores.database import Database, execute
from headrace.stores.tables import instant, metadata

log = logging.getLogger(__name__)

# Seconds between two comparisons, and seconds after which a process that has not written no longer counts.
_COMPARE_SECONDS = 60.0
_GONE_SECONDS = 150.0

process_fingerprints = sa.Table(
    "process_fingerprints",
    metadata,
    sa.Column("part", sa.Text, primary_key=True),
    sa.Column("process", sa.Text, primary_key=True, comment="Its host and its pid"),
    sa.Column("configuration", sa.Text, nullable=False, comment="A digest of the models and providers that it knows"),
    sa.Column("secret_key", sa.Text, comment="A digest made with HEADRACE_SECRET_KEY; null in a part that needs none"),
    instant("seen_at", default=True),
)

_WRITE = """
WITH gone AS (
    DELETE FROM process_fingerprints WHERE seen_at < now() - %(gone)s * interval '1 second'
           AND (part, process) <> (%(part)s, %(process)s)
)
INSERT INTO process_fingerprints (part, process, configuration, secret_key)
VALUES (%(part)s, %(process)s, %(configuration)s, %(secret_key)s)
ON CONFLICT (part, process) DO UPDATE
SET configuration = excluded.configuration, secret_key = excluded.secret_key, seen_at = now()
"""
_REMOVE = "DELETE FROM process_fingerprints WHERE (part, process) = (%(part)s, %(process)s)"
_READ = """
SELECT part, process, configuration, secret_key, floor(extract(epoch FROM seen_at))::bigint AS seen_at
FROM process_fingerprints WHERE seen_at >= now() - %(gone)s * interval '1 second' ORDER BY part, process
"""


def of_configuration(catalogue: Catalogue) -> str:
    """Return a digest of all models and providers, without the values of the providers' keys."""
    # Without defaults, as another release may have settings that the file leaves out.
    document = catalogue.model_dump_json(include={"models", "providers"}, exclude_defaults=True).encode()
    return hashlib.blake2b(document, digest_size=8).hexdigest()


def of_secret_key(settings: Settings) -> str:
    """Return a digest that only a process with the same secret key can make; `none` without a key."""
    if settings.secret_key is None:
        return "none"
    key = settings.secret_key.get_secret_value().encode()[:64]
    return hashlib.blake2b(b"headrace", key=key, digest_size=8).hexdigest()


async def read_fingerprints(database: Database) -> Sequence[Row]:
    """Return `(part, process, configuration, secret_key, seen_at)` of each process that runs, or was killed lately."""
    return await execute(database.relaxed, _READ, {"gone": _GONE_SECONDS})


class Fingerprint:
    """The digests of one process."""

    def __init__(self, settings: Settings, file: CatalogueFile, database: Database, *, part: str) -> None:
        """Write and compare nothing yet: `run` does. A worker needs no secret key."""
        self._file = file
        self._database = database
        self._part = part
        self._process = f"{socket.gethostname()}:{os.getpid()}"
        self._secret_key = None if part == "worker" else of_secret_key(settings)
        self._told: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """Write and compare at once and once a minute, until cancelled; then remove what was written."""
        changed = self._file.changed
        try:
            while True:
                reloaded = changed.is_set()
                changed.clear()
                try:
                    # The others may not have read the changed file yet, so this process compares a minute later.
                    await (self.write() if reloaded else self.compare())
                except SQLAlchemyError as error:
                    log.debug("could not compare with the other processes: %s", error)
                await wait_for(changed, _COMPARE_SECONDS)
        finally:
            with contextlib.suppress(SQLAlchemyError):
                await execute(self._database.relaxed, _REMOVE, {"part": self._part, "process": self._process})

    async def write(self) -> None:
        """Write this process's digests."""
        known = {"part": self._part, "process": self._process, "gone": _GONE_SECONDS}
        await execute(self._database.relaxed, _WRITE, {**known, **self._digests()})

    async def compare(self) -> None:
        """Write this process's digests, and warn once of each other process that differs."""
        await self.write()
        mine = self._digests()
        differing = set()
        for other in await read_fingerprints(self._database):
            if other.configuration != mine["configuration"]:
                differing.add((other.process, "headrace.toml, HEADRACE_DEMO, or the providers' keys that are set"))
            if None not in (other.secret_key, self._secret_key) and other.secret_key != self._secret_key:
                differing.add((other.process, "HEADRACE_SECRET_KEY"))
        for process, what in sorted(differing - self._told):
            log.warning("%s has another %s than this process: all processes need the same", process, what)
        self._told = differing

    def _digests(self) -> dict[str, str | None]:
        return {"configuration": of_configuration(self._file.current), "secret_key": self._secret_key}
