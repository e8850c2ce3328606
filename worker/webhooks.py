"""Sends webhooks: what is due, again and again, until its receiver has taken it or a day has passed."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
from sqlalchemy.exc import SQLAlchemyError

from headrace.database import Database
from headrace.telemetry import bind
from headrace.webhooks import queries
from headrace.webhooks.addresses import ForbiddenAddressError, resolve
from headrace.webhooks.queries import Delivery
from headrace.webhooks.signing import derive_secret, sign

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_AT_ONCE = 32
_PATIENCE_SECONDS = 15.0
# After each failure; a day and a bit in all. Nobody who is away is called by many at the same moment.
_DELAYS = (5, 30, 120, 600, 1800, 3600, 7200, 14_400, 28_800, 28_800)
_JITTER = 0.2
_GONE = 410


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt went: the status of an answer, or why there was none."""

    status: int | None
    error: str | None = None

    @property
    def taken(self) -> bool:
        """Whether the receiver has it."""
        return self.status is not None and 200 <= self.status < 300


class WebhookSender:
    """The sender of one process. Several may run: what one has claimed, no other sends for a minute."""

    def __init__(self, database: Database, *, secret_key: str, allow_private: bool) -> None:
        """`allow_private` lets webhooks go to this machine and its network: for development."""
        self._database = database
        self._secret_key = secret_key
        self._allow_private = allow_private
        # No proxy and no redirect: the address that was looked at is the one that is called.
        self._http = httpx.AsyncClient(timeout=_PATIENCE_SECONDS, follow_redirects=False, trust_env=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            sent = 0
            try:
                sent = await self.send_due()
            except SQLAlchemyError as error:
                log.warning("could not look for webhooks: %s", error)
            except Exception:
                log.exception("could not send webhooks")
            if sent < _AT_ONCE:
                await asyncio.sleep(_LOOK_SECONDS)

    async def send_due(self) -> int:
        """Send what is due, up to 32 at a time; returns how many there were."""
        claimed = await queries.claim_deliveries(self._database, limit=_AT_ONCE)
        await asyncio.gather(*(self._deliver(delivery) for delivery in claimed))
        return len(claimed)

    async def _deliver(self, delivery: Delivery) -> None:
        with bind(webhook=delivery.id):
            outcome = await self._send(delivery)
            state, delay = "pending", 0.0
            if outcome.taken:
                state = "delivered"
            elif outcome.status == _GONE or delivery.attempts > len(_DELAYS):
                state = "failed"
            else:
                delay = _DELAYS[delivery.attempts - 1] * random.uniform(1 - _JITTER, 1 + _JITTER)
            if not outcome.taken:
                log.info("a webhook was not taken: %s", outcome.error or outcome.status)
            await queries.record_delivery(
                self._database, delivery, state, status=outcome.status, error=outcome.error, delay_seconds=delay
            )

    async def _send(self, delivery: Delivery) -> Outcome:
        secrets = [derive_secret(self._secret_key, secret_id) for secret_id in delivery.secret_ids]
        signed = sign(secrets, webhook_id=delivery.id, sent_at=datetime.now(UTC), payload=delivery.payload)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                url = httpx.URL(delivery.url)
                port = url.port or (443 if url.scheme == "https" else 80)
                address = await resolve(url.host, port, allow_private=self._allow_private)
                request = self._http.build_request(
                    "POST",
                    url.copy_with(host=address),
                    content=delivery.payload,
                    headers={"content-type": "application/json", "host": url.netloc.decode(), **signed},
                    # The certificate is that of the name, whichever address is called.
                    extensions={"sni_hostname": url.host},
                )
                response = await self._http.send(request, stream=True)
                await response.aclose()  # what it says is nobody's business, however long it is
        except ForbiddenAddressError as error:
            return Outcome(None, str(error))
        except TimeoutError:
            return Outcome(None, f"No answer within {_PATIENCE_SECONDS:g} s.")
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return Outcome(None, f"The connection failed: {type(error).__name__}.")
        return Outcome(response.status_code)
