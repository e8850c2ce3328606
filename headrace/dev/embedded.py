"""The stores that a running `headrace dev` started, and the settings that lead to them."""

from __future__ import annotations

import fcntl
from pathlib import Path

from headrace.dev.store import EmbeddedStoreError
from headrace.settings import Settings
from headrace.stores.database_url import connection_parameters
from headrace.stores.redis_url import broker_settings


def _running_url(data_dir: Path) -> str:
    """Return the URL of the store that runs over a directory, or nothing if none does."""
    try:
        with (data_dir / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return ""
    except BlockingIOError:
        return (data_dir / "url").read_text()
    except OSError:
        return ""


def secret_key_file(data_dir: Path) -> Path:
    """Return where the secret key is kept that `headrace dev` made with its own Postgres."""
    return data_dir / "secret-key"


def locate(settings: Settings, *, redis: bool = True) -> Settings:
    """Return the settings with URLs: their own, or else those of the stores that a running `headrace dev` started.

    Raises:
        EmbeddedStoreError: A URL that is needed is not set, and no `headrace dev` runs over the data directory.
        SettingError: A URL is of no form that every part knows.
    """
    found = {
        "database_url": settings.database_url or _running_url(settings.data_dir / "postgres"),
        "redis_url": settings.redis_url or _running_url(settings.data_dir / "valkey"),
    }
    if not found["database_url"] or (redis and not found["redis_url"]):
        needed = "DATABASE_URL and REDIS_URL" if redis else "DATABASE_URL"
        raise EmbeddedStoreError(f"Set {needed}, or start `headrace dev`: none is running over {settings.data_dir}.")
    located = settings.model_copy(update=found)
    check_urls(located if redis else located.model_copy(update={"redis_url": ""}))
    return located


def check_urls(settings: Settings) -> None:
    """See that the URLs that are set are of forms that every part knows.

    Raises:
        SettingError: One is not.
    """
    if settings.database_url:
        connection_parameters(settings.database_url)
    if settings.redis_url:
        broker_settings(settings.redis_url)
