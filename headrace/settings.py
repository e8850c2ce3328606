"""Every variable that Headrace reads, its unit, and why its default is what it is.

Variables are `HEADRACE_` and the field's name in capitals, but for the two that every host already sets under a name of
their own: `DATABASE_URL` and `REDIS_URL`. The providers' keys are not here: `headrace.toml` names the variable that
holds each (`api_key = "env:OPENAI_API_KEY"`), so that no key is ever part of a settings object that could be printed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def default_data_dir() -> Path:
    """Return where the embedded stores live when `HEADRACE_DATA_DIR` is not set.

    Root's home is closed to everyone else and Postgres refuses to run as root, so root's stores live under /var/lib.
    """
    if os.name == "posix" and os.geteuid() == 0:
        return Path("/var/lib/headrace")
    return Path.home() / ".local" / "share" / "headrace"


class SettingError(ValueError):
    """A variable's value makes no sense. The message is one line, which names the variable and quotes no secret."""


class Settings(BaseSettings):
    """The configuration of one process. Read once at its start and passed down; nothing reads the environment later."""

    model_config = SettingsConfigDict(
        env_prefix="HEADRACE_", env_ignore_empty=True, frozen=True, extra="ignore", hide_input_in_errors=True
    )

    database_url: str = Field(
        default="",
        validation_alias="DATABASE_URL",
        description="Postgres, as `headrace.database_url` has it. Empty: `headrace dev` starts one.",
    )
    redis_url: str = Field(
        default="",
        validation_alias="REDIS_URL",
        description="Redis or Valkey, as `headrace.redis_url` has it. Empty: `headrace dev` starts a Valkey.",
    )
    config: Path | None = Field(
        default=None,
        description="The model and provider file. Unset: `headrace.toml` in the working directory, else the built-in "
        "catalogue.",
    )
    data_dir: Path = Field(default_factory=default_data_dir, description="Home of the embedded stores.")
    host: str = Field(default="127.0.0.1", description="Where the API listens. Loopback until you decide otherwise.")
    port: int = Field(default=8700, ge=0, le=65535, description="The API's port; 0 takes any free one.")
    bootstrap_key: SecretStr | None = Field(
        default=None,
        min_length=20,
        description="An admin key that exists from the first start, for automation. Changing it revokes the last one.",
    )
    secret_key: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="What accounts' webhook secrets are made of, at least 32 random characters, the same in every "
        "process. Changing it changes all of them. Unset: no webhooks; `headrace dev` keeps one beside an embedded "
        "Postgres.",
    )
    previous_secret_keys: Annotated[list[Annotated[SecretStr, Field(min_length=32)]], NoDecode] = Field(
        default=[],
        max_length=4,
        description="Earlier values of `HEADRACE_SECRET_KEY`, with commas between: webhooks are signed with secrets "
        "made of these too, until every receiver has the new ones.",
    )
    limits_without_redis: Literal["open", "closed"] = Field(
        default="open", description="While Redis is away, limits of keys hold nobody, or let nobody through."
    )
    webhook_allow_private: bool = Field(
        default=False, description="Let webhooks go to this machine and its network: for development."
    )
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR, for every process.")

    cors_origins: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="Origins whose pages may call the API from a browser, as `https://app.example.com`, with commas "
        "between; `*` is every origin. Unset: none.",
    )
    max_connections: int = Field(
        default=10_000,
        ge=1,
        description="Connections of clients that one API process holds; it holds fewer where it may not open as many "
        "files. Those without a request are closed to make room, else a new one is answered 503.",
    )
    client_timeout_seconds: float = Field(
        default=30,
        gt=0,
        description="Seconds a client may take over a request's headers, or send next to nothing of its body, or read "
        "next to nothing of its answer.",
    )
    max_body_bytes: int = Field(
        default=20 * 1024 * 1024, ge=1024, description="Largest request body, in bytes; more is refused while reading."
    )
    body_memory_bytes: int = Field(
        default=128 * 1024 * 1024,
        ge=1024 * 1024,
        description="Bytes of large request bodies that one API process reads and checks at one time, half of them of "
        "one account: others wait, then are refused. What is parsed of them takes a few times as much.",
    )
    job_timeout_seconds: float = Field(
        default=86_400, gt=0, description="A job's deadline when the request sets no `timeout`: OpenAI's batch window."
    )
    header_wait_seconds: float = Field(
        default=5, ge=0, description="A stream's headers wait this long for a first delta or an error with its status."
    )
    ping_seconds: float = Field(
        default=15, gt=0, description="A comment this often keeps a silent stream open: proxies cut at 60 s."
    )
    wait_limit_seconds: float = Field(default=60, gt=0, description="Longest `?wait=`: proxies cut at 60 s.")
    subscribers_per_key: int = Field(
        default=1000,
        ge=1,
        description="Event streams and waits of one key that one API process holds open; the next is refused with 429.",
    )
    subscriber_buffer_bytes: int = Field(
        default=1024 * 1024,
        ge=4096,
        description="Live bytes held for one slow reader before it is sent back to replay from Postgres.",
    )

    max_file_bytes: int = Field(
        default=512 * 1024 * 1024, ge=1024, description="Largest file that is uploaded, in bytes: OpenAI's limit."
    )
    account_files: int = Field(
        default=100_000, ge=0, description="Files that an account may have; more uploads are refused."
    )
    account_file_bytes: int = Field(
        default=100 * 1024**3, ge=0, description="Bytes that an account's files may have together, outputs included."
    )
    batch_max_lines: int = Field(default=100_000, ge=1, description="Most requests in one batch.")
    account_waiting_jobs: int = Field(
        default=100_000,
        ge=1,
        description="Jobs of one account that may wait for a worker, lines of batches aside. Above it, 429.",
    )
    batches_in_progress: int = Field(
        default=200, ge=1, description="Batches of one account that have not ended; the next one is refused with 429."
    )
    batch_window: int = Field(
        default=2000,
        ge=1,
        description="Lines of batches that are queued or running at one time, over all of them: all that Redis ever "
        "holds of a batch. More than the slots of all workers, or some are idle.",
    )

    native_poll_seconds: float = Field(
        default=60, gt=0, description="How often a provider is asked how far its own batch is."
    )

    usage_metadata_keys: Annotated[list[str], NoDecode] = Field(
        default=[],
        max_length=16,
        description="Metadata keys, with commas between, by which usage is added up as it comes. Every request adds to "
        "a cell for each of them; a change makes all sums anew.",
    )

    retention_days: float | None = Field(
        default=None,
        gt=0,
        description="Jobs that ended so long ago, and files that no batch has read since, are deleted; usage stays. "
        "Unset: never.",
    )
    batch_retention_days: float | None = Field(
        default=None,
        gt=0,
        description="Batches that ended so long ago are deleted, once their jobs are; usage stays. Unset: never.",
    )
    delta_retention_seconds: float = Field(
        default=86_400,
        gt=0,
        description="So long after a job's end its stream is replayed delta by delta; later as its answer in one.",
    )
    unstored_seconds: float = Field(
        default=600, ge=0, description="What is not to be stored, and nobody waited for, can be read for so long."
    )

    worker_slots: int = Field(
        default=512, ge=1, description="Calls in flight in one worker process; asyncio holds hundreds at ease."
    )
    heartbeat_seconds: float = Field(default=3, gt=0, description="How often a worker extends its leases.")
    lease_seconds: float = Field(
        default=10, gt=0, description="A lease nobody extends ends after this: three heartbeats may get lost."
    )
    sweep_seconds: float = Field(default=2, gt=0, description="How often the scheduler looks for what was lost.")
    resend_seconds: float = Field(
        default=5, gt=0, description="A due job still queued this long after its last wake-up is sent again."
    )
    attempts_per_route: int = Field(
        default=3, ge=1, description="Calls to one route before the next: two retries outlive a provider's hiccup."
    )
    circuit_failures: int = Field(
        default=5, ge=1, description="A provider that fails this often in a row is left alone, by this worker."
    )
    max_lost_attempts: int = Field(
        default=3, ge=1, description="Workers that may die under a job before it is taken for the cause and failed."
    )
    drain_seconds: float = Field(
        default=30, ge=0, description="On SIGTERM a worker lets running jobs finish this long, then hands them back."
    )
    segment_seconds: float = Field(
        default=0.25, gt=0, description="Deltas are written to Postgres this often, many jobs in one statement."
    )
    publish_seconds: float = Field(
        default=0.005, ge=0, description="Deltas that follow each other faster than this are published together."
    )

    @field_validator("usage_metadata_keys", "previous_secret_keys", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [key.strip() for key in value.split(",") if key.strip()] if isinstance(value, str) else value
