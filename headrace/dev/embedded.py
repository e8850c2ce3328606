"""The stores that a running `headrace dev` started, and the settings that lead to them."""

from __future__ import annotations

from pathlib import Path

from headrace.dev.data_dir import running_url
from headrace.dev.errors import EmbeddedStoreError
from headrace.settings import Settings
from headrace.stores.database_url import connection_parameters
from headrace.stores.redis_url import broker_settings


def secret_key_file(data_dir: Path) -> Path:
    """Return the file of the secret key that `headrace dev` makes with its embedded Postgres."""
    return data_dir / "secret-key"


def locate(settings: Settings, *, redis: bool = True) -> Settings:
    """Return the settings with the stores' URLs: their own, or else those of a running `headrace dev`.

    Raises:
        EmbeddedStoreError: A URL is missing, and no `headrace dev` runs over the data directory.
        SettingError: A URL has a form that some part does not understand.
    """
    found = {
        "database_url": settings.database_url or running_url(settings.data_dir / "postgres"),
        "redis_url": settings.redis_url or running_url(settings.data_dir / "valkey"),
    }
    if not found["database_url"] or (redis and not found["redis_url"]):
        needed = "DATABASE_URL and REDIS_URL" if redis else "DATABASE_URL"
        raise EmbeddedStoreError(
            f"Set {needed}, or start `headrace dev`: it does not run over {settings.data_dir}, or is still starting."
        )
    located = settings.model_copy(update=found)
    check_urls(located if redis else located.model_copy(update={"redis_url": ""}))
    return located


def check_urls(settings: Settings) -> None:
    """Check that every part understands the URLs that are set.

    Raises:
        SettingError: A URL has a form that some part does not understand.
    """
    if settings.database_url:
        connection_parameters(settings.database_url)
    if settings.redis_url:
        broker_settings(settings.redis_url)
