"""Every variable that Headrace reads, with its unit and its default.

A variable's name is `HEADRACE_` and the field's name in capitals, except for `DATABASE_URL` and `REDIS_URL`, which have
their usual names. Providers' keys are not settings: `headrace.toml` names the variable of each key
(`api_key = "env:OPENAI_API_KEY"`), so that no settings object that might be printed has a key.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def default_data_dir() -> Path:
    """Return the directory of the embedded stores for an unset `HEADRACE_DATA_DIR`.

    Postgres refuses to run as root, and other users cannot enter root's home: root's stores lie under /var/lib.
    """
    if os.name == "posix" and os.geteuid() == 0:
        return Path("/var/lib/headrace")
    return Path.home() / ".local" / "share" / "headrace"


# Days of a century. A longer time is a mistake, and may exceed the range of Postgres's timestamps.
_MOST_DAYS = 36_525
# The largest value of a setting by the end of its name: days, seconds, bytes, and all others.
_LARGEST = {"_days": _MOST_DAYS, "_seconds": _MOST_DAYS * 86_400, "_bytes": 2**53, "": 2**31 - 1}
_ORIGIN = re.compile(r"\*|[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#]+")
_ADDRESS = re.compile(r"https?://\S+")


def _check_origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text):
        raise ValueError("an origin is `*`, or a scheme and a host, as in https://app.example.com")
    return text


def _check_address(text: str) -> str:
    if text and not _ADDRESS.fullmatch(text):
        raise ValueError("it has to be an http or https address, such as https://headrace.example.com")
    return text


class SettingError(ValueError):
    """A variable's value is not valid. The message is one line, which names the variable and quotes no secret."""


class Settings(BaseSettings):
    """The configuration of one process, read from the environment once, at its start."""

    model_config = SettingsConfigDict(
        env_prefix="HEADRACE_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    database_url: str = Field(
        default="",
        validation_alias="DATABASE_URL",
        description="Postgres, in any form that libpq takes: `postgresql://user:password@host:port/database`, with "
        "`?sslmode=`, `?options=` and the rest; `@host1,host2/…?target_session_attrs=read-write`; a socket's "
        "directory as `@%2Frun%2Fpostgresql/…` or `?host=`; `host=… dbname=…`. Empty: `headrace dev` starts one.",
    )
    redis_url: str = Field(
        default="",
        validation_alias="REDIS_URL",
        description="Redis or Valkey: `redis://:password@host:6379/0`; `rediss://…?ssl_ca_certs=/path/ca.pem` for "
        "TLS; `unix://:password@/path/redis.sock?db=0`; `sentinel://:password@host1:26379,host2:26379/0?master=NAME` "
        "to ask Sentinels, with `sentinel_password` for theirs, and `sentinels://` for TLS to both. Other options are "
        "refused: Headrace sets its own time-outs and health checks. Empty: `headrace dev` starts a Valkey.",
    )
    redis_namespace: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_-]{1,40}$",
        description="What the names of this deployment's keys, queues and channels in Redis begin with, the same in "
        "every process. Unset: the database's own. Set it for a database that was restored from the dump of another "
        "deployment on the same Redis, or if two that are older than namespaces share one.",
    )
    config: Path | None = Field(
        default=None,
        description="Path of the model and provider file. Unset: `headrace.toml` in the working directory, else the "
        "built-in catalogue.",
    )
    demo: bool = Field(
        default=True,
        description="Whether the demo models are served in addition to the configured models: the same in "
        "every process.",
    )
    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="Directory of the embedded stores. When root starts them, they run as the system user `nobody`, "
        "which cannot enter root's home.",
    )
    host: str = Field(
        default="127.0.0.1",
        description="Address on which the API listens. The default is loopback, so that nothing is exposed by "
        "accident.",
    )
    port: int = Field(
        default=8700,
        ge=0,
        le=65535,
        description="Port of the API; 0 takes any free port.",
    )
    bootstrap_key: SecretStr | None = Field(
        default=None,
        min_length=20,
        description="An admin key of the account `default` that exists from the first start, for automation. Changing "
        "it revokes the previous one.",
    )
    secret_key: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="Key from which each account's webhook secrets are derived: at least 32 random characters, the "
        "same in every process. Changing it changes all secrets. Unset: no webhooks are sent, except that "
        "`headrace dev` keeps a key beside its embedded Postgres.",
    )
    previous_secret_keys: Annotated[list[Annotated[SecretStr, Field(min_length=32)]], NoDecode] = Field(
        default=[],
        max_length=4,
        description="Earlier values of `HEADRACE_SECRET_KEY`, separated by commas. Webhooks carry signatures made "
        "with these too, until every receiver has the new secrets.",
    )
    limits_without_redis: Literal["open", "closed"] = Field(
        default="open",
        description="Limits of keys while Redis is unavailable: `open` lets every request through, `closed` "
        "answers 503.",
    )
    webhook_allow_private: bool = Field(
        default=False, description="Allow webhooks to this machine and its network: for development."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        default="INFO",
        description="The least severe level that every process logs: DEBUG, INFO, WARNING, ERROR or CRITICAL. At INFO "
        "there is a line for each request and each attempt.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        description="The format of every process's log: `text` for people, or `json`, one object a line, for machines.",
    )

    metrics_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port on which a process serves `/metrics`, `/livez` and `/readyz` without a key; 0 serves none. "
        "Processes on one machine need a port each: `headrace dev` gives its parts free ones, or this one and those "
        "after it.",
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        description="Address of the metrics port. The default is loopback; a scraper on another machine needs another.",
    )
    console_host: str = Field(
        default="127.0.0.1",
        description="Address of the web console. The default is loopback: put a proxy with TLS in front for others.",
    )
    console_port: int = Field(
        default=8701,
        ge=0,
        le=65535,
        description="Port of the web console of `headrace console` and `headrace dev`; 0 takes any free port.",
    )
    console_api_url: Annotated[str, AfterValidator(_check_address)] = Field(
        default="",
        description="Address of the API whose console it is, such as `https://headrace.example.com`. Unset: the API of "
        "this machine, at `HEADRACE_PORT`.",
    )
    public_url: Annotated[str, AfterValidator(_check_address)] = Field(
        default="",
        description="Address of the API for its clients, such as `https://headrace.example.com`: the programs that the "
        "console's playground shows use it. Unset: `HEADRACE_CONSOLE_API_URL`.",
    )
    console_url: Annotated[str, AfterValidator(_check_address)] = Field(
        default="",
        description="Address of the web console for its users, such as `https://console.example.com`: the API's "
        "`GET /` names it. `headrace dev` sets it to that of its own console. Unset: `GET /` names none.",
    )
    docs: bool = Field(
        default=True,
        description="Whether the API serves an interactive reference of itself at `/docs`. It needs no key and shows "
        "what `/openapi.json` shows; its files are the server's own.",
    )
    cors_origins: Annotated[list[Annotated[str, AfterValidator(_check_origin)]], NoDecode] = Field(
        default=[],
        description="Origins whose pages may call the API from a browser, such as `https://app.example.com`, "
        "separated by commas; `*` allows every origin. Unset: none.",
    )
    max_connections: int = Field(
        default=10_000,
        ge=1,
        description="Client connections that one API process holds, fewer where the system lets it open fewer files. "
        "At the limit, connections without a request are closed to make room; if all have one, the new one is "
        "answered 503.",
    )
    client_timeout_seconds: float = Field(
        default=30,
        gt=0,
        description="Seconds a client may take to send a request's headers (408), may send almost nothing of its body "
        "(408), or may read almost nothing of its answer (it is disconnected).",
    )
    max_body_bytes: int = Field(
        default=20 * 1024 * 1024,
        ge=1024,
        description="Bytes of the largest request body. A larger one is refused while it is read.",
    )
    body_memory_bytes: int = Field(
        default=128 * 1024 * 1024,
        ge=1024 * 1024,
        description="Bytes of request bodies beyond 64 KiB that one API process reads and checks at one time, half of "
        "them for one account (429). Further requests wait up to 10 s (503). The parsed documents take a few times as "
        "much memory.",
    )
    job_timeout_seconds: float = Field(
        default=86_400,
        gt=0,
        description="Seconds until a job's deadline when the request sets no `timeout`. The default is OpenAI's batch "
        "window.",
    )
    header_wait_seconds: float = Field(
        default=5,
        ge=0,
        description="Seconds a stream's headers wait for a first delta, or for an error that then has its own HTTP "
        "status.",
    )
    ping_seconds: float = Field(
        default=15,
        gt=0,
        description="Seconds of silence after which a comment keeps a stream open; many proxies end one after 60 s.",
    )
    wait_limit_seconds: float = Field(
        default=60,
        gt=0,
        description="Seconds of the longest `?wait=`; a longer one is cut to this. Many proxies end a request at 60 s.",
    )
    subscribers_per_key: int = Field(
        default=1000,
        ge=1,
        description="Event streams and waits of one key that one API process holds open; the next is refused with 429.",
    )
    subscriber_buffer_bytes: int = Field(
        default=1024 * 1024,
        ge=4096,
        description="Bytes of live events held for one slow reader, which then replays from Postgres.",
    )

    max_file_bytes: int = Field(
        default=512 * 1024 * 1024,
        ge=1024,
        description="Bytes of the largest uploaded file. The default is OpenAI's limit.",
    )
    account_files: int = Field(
        default=100_000,
        ge=0,
        description="Files that an account may have, outputs of batches included; more uploads are refused.",
    )
    account_file_bytes: int = Field(
        default=100 * 1024**3,
        ge=0,
        description="Bytes that an account's files may have together, outputs of batches included.",
    )
    account_conversations: int = Field(
        default=100_000,
        ge=0,
        description="Conversations that an account may have; more are refused until it deletes some.",
    )
    batch_max_lines: int = Field(
        default=100_000,
        ge=1,
        description="Requests in one batch, at most.",
    )
    account_waiting_jobs: int = Field(
        default=100_000,
        ge=1,
        description="Jobs of one account that may wait for a worker, not counting lines of batches; the next is "
        "refused with 429.",
    )
    batches_in_progress: int = Field(
        default=200, ge=1, description="Batches of one account that have not ended; the next is refused with 429."
    )
    batch_window: int = Field(
        default=2000,
        ge=1,
        description="Lines of batches that are queued or running at one time, over all batches. It bounds what Redis "
        "holds of them. Set it above the slots of all workers, or some stay idle.",
    )

    native_poll_seconds: float = Field(
        default=60, gt=0, description="Seconds between two questions to a provider about the progress of its own batch."
    )

    usage_metadata_keys: Annotated[list[Annotated[str, Field(max_length=64)]], NoDecode] = Field(
        default=[],
        max_length=16,
        description="Metadata keys, separated by commas, by which usage is summed. Every request adds to a cell for "
        "each key; a change rebuilds all sums.",
    )

    # Both are at least the 24 hours of an `Idempotency-Key`: were its job deleted before, a repetition would run again.
    retention_days: float | None = Field(
        default=None,
        ge=1,
        description="Days after which ended jobs, and files that no batch has read since, are deleted, a few at a "
        "time. Usage is kept. It is at least the day for which an `Idempotency-Key` finds its job. Unset: never.",
    )
    batch_retention_days: float | None = Field(
        default=None,
        ge=1,
        description="Days after which ended batches are deleted with their webhooks, once their jobs are deleted. "
        "Usage is kept. It is at least the day for which an `Idempotency-Key` finds its batch. Unset: never.",
    )
    delta_retention_seconds: float = Field(
        default=86_400,
        gt=0,
        description="Seconds after a job's end during which its stream is replayed delta by delta. Later, a replay has "
        "the whole answer as one delta.",
    )
    unstored_seconds: float = Field(
        default=600,
        ge=0,
        description='Seconds during which the answer to a request with `"store": false` can be read when no client '
        "waited for it.",
    )

    worker_slots: int = Field(default=512, ge=1, description="Calls in flight in one worker process.")
    heartbeat_seconds: float = Field(
        default=3,
        gt=0,
        description="Seconds between two heartbeats, which extend a worker's leases.",
    )
    lease_seconds: float = Field(
        default=10,
        gt=0,
        description="Seconds until a lease expires that its worker does not extend: at least three heartbeats, so that "
        "the loss of one does no harm.",
    )
    sweep_seconds: float = Field(
        default=2,
        gt=0,
        description="Seconds between two sweeps, in which the scheduler looks for lost jobs.",
    )
    resend_seconds: float = Field(
        default=5,
        gt=0,
        description="Seconds after its last wake-up when a due job that is still queued gets another one.",
    )
    attempts_per_route: int = Field(default=3, ge=1, description="Calls to one route before the next route is tried.")
    circuit_failures: int = Field(
        default=5, ge=1, description="Failures of a provider in a row after which a worker's circuit to it opens."
    )
    max_lost_attempts: int = Field(
        default=3,
        ge=1,
        description="Attempts of a job that may lose their worker. Then the job counts as the cause, and fails.",
    )
    drain_seconds: float = Field(
        default=30,
        ge=0,
        description="Seconds that running jobs get to end after SIGTERM; then the worker hands them back. A scheduler "
        "gives as long to parts of batches that it is handing to a provider's own batch API.",
    )
    segment_seconds: float = Field(
        default=0.25,
        gt=0,
        description="Seconds between two writes of deltas to Postgres, each of many jobs in one statement.",
    )
    publish_seconds: float = Field(
        default=0.005,
        ge=0,
        description="Seconds at most during which successive events are collected and published together.",
    )

    @field_validator("usage_metadata_keys", "previous_secret_keys", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [key.strip() for key in value.split(",") if key.strip()] if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_capitals(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("*")
    @classmethod
    def _check_size(cls, value: object, info: ValidationInfo) -> object:
        largest = next(most for end, most in _LARGEST.items() if str(info.field_name).endswith(end))
        if isinstance(value, int | float) and value > largest:
            raise ValueError(f"the largest value is {largest}")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Check that a lease outlives the time between two heartbeats, or no worker would keep one."""
        if self.heartbeat_seconds >= self.lease_seconds:
            raise ValueError("HEADRACE_HEARTBEAT_SECONDS has to be less than HEADRACE_LEASE_SECONDS")
        return self


def read_settings() -> Settings:
    """Return the settings of the environment.

    Raises:
        SettingError: A variable's value is not valid.
    """
    try:
        return Settings()
    except ValidationError as error:
        # Without the values, which may be secrets, and without pydantic's links.
        raise SettingError("; ".join(dict.fromkeys(map(_problem, error.errors())))) from None


def _problem(problem: ErrorDetails) -> str:
    reason = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return reason
    name = str(problem["loc"][0])
    variable = name if name.isupper() else f"HEADRACE_{name}".upper()
    if problem["type"] == "too_short":  # pydantic counts a secret's characters as items
        return f"{variable}: it has to have at least {problem['ctx']['min_length']} characters"
    return f"{variable}: {reason}"
