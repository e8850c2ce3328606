"""Signatures of webhooks, as https://www.standardwebhooks.com has them. Pure.

An account's secrets are not stored: each is derived from its row's id and the installation's secret key, so
a reader of the database cannot sign webhooks.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable
from datetime import datetime

from standardwebhooks import Webhook


def derive_secret(secret_key: str, secret_id: str) -> str:
    """Return the secret that receivers know: `whsec_` and 32 bytes in base64."""
    derived = hmac.digest(secret_key.encode(), b"webhook-secret:" + secret_id.encode(), hashlib.sha256)
    return "whsec_" + base64.b64encode(derived).decode()


def sign(secrets: Iterable[str], *, webhook_id: str, sent_at: datetime, payload: str) -> dict[str, str]:
    """Return the headers of a message, signed with every secret that is valid: its receiver knows one of them."""
    signatures = (Webhook(secret).sign(webhook_id, sent_at, payload) for secret in secrets)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
