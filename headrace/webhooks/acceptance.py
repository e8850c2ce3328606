"""Accepts a webhook: checks its URL, and makes sure that the account has a secret to sign it with."""

from __future__ import annotations

from headrace.errors import InvalidRequestError
from headrace.settings import Settings
from headrace.stores.database import Database
from headrace.webhooks.addresses import check_url
from headrace.webhooks.queries import ensure_secret


def require_secret_key(settings: Settings, *, param: str = "webhook") -> str:
    """Return the operator's key from which the secrets of webhooks are derived.

    Raises:
        InvalidRequestError: The operator has set no key, so this server sends no webhooks.
    """
    if settings.secret_key is None:
        raise InvalidRequestError(
            "This server sends no webhooks: its operator has set no HEADRACE_SECRET_KEY.",
            param=param,
            code="unsupported_parameter",
        )
    return settings.secret_key.get_secret_value()


async def accept_webhook(
    settings: Settings, database: Database, account_id: str, url: str, *, param: str = "webhook"
) -> None:
    """Check that a webhook of an account, requested in the field `param`, can be sent and signed.

    Raises:
        InvalidRequestError: Webhooks may not go to this URL, or this server sends no webhooks.
    """
    require_secret_key(settings, param=param)
    check_url(url, allow_private=settings.webhook_allow_private, param=param)
    await ensure_secret(database, account_id)
