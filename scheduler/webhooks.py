"""Sends webhooks: what is due, again and again, until its receiver has taken it or a day has passed."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence

import httpx
from sqlalchemy.exc import SQLAlchemyError

from headrace.providers.cooldown import cooldown_seconds
from headrace.stores.database import Database
from headrace.telemetry.logs import bind
from headrace.webhooks import queries
from headrace.webhooks.addresses import ForbiddenAddressError, ascii_host, resolve
from headrace.webhooks.queries import Delivery, Outcome
from headrace.webhooks.signing import derive_secret, sign

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
# Deliveries in flight at one time. One account gets half of them, and the next half of what is left.
_AT_ONCE = 128
# Deliveries of those to one host for one account: one that hangs does not hold up the account's others.
_SHARE = 4
_PATIENCE_SECONDS = 15.0
# After each failure; a day and a bit in all. Nobody who is away is called by many at the same moment.
_DELAYS = (5, 30, 120, 600, 1800, 3600, 7200, 14_400, 28_800, 28_800)
_JITTER = 0.2
# Seconds of a receiver's `Retry-After` that are heeded.
_LONGEST_WAIT = 86_400.0


class WebhookSender:
    """The sender of one process. Several may run: what one has claimed, no other sends for a minute."""

    def __init__(
        self, database: Database, *, secret_key: str, previous_keys: Sequence[str] = (), allow_private: bool
    ) -> None:
        """Sign with secrets made of the secret key, and of those before it, which some receivers still check with.

        `allow_private` lets webhooks go to this machine and its network: for development.
        """
        self._database = database
        self._secret_keys = (secret_key, *previous_keys)
        self._allow_private = allow_private
        self._in_flight: dict[asyncio.Task[None], Delivery] = {}
        # No proxy and no redirect: the address that was looked at is the one that is called. No connection is kept, as
        # it would be kept by its address, which may be that of several names.
        self._http = httpx.AsyncClient(
            timeout=_PATIENCE_SECONDS,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def run(self) -> None:
        """Send until cancelled."""
        try:
            while True:
                try:
                    await self.send_due()
                except SQLAlchemyError as error:
                    log.warning("could not look for webhooks: %s", error)
                except Exception:
                    log.exception("could not send webhooks")
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            for task in self._in_flight:
                task.cancel()
            await asyncio.gather(*self._in_flight, return_exceptions=True)
            self._in_flight.clear()

    async def send_due(self) -> int:
        """Send what is due, and what comes due meanwhile, until nothing is in flight; returns how many there were.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: Postgres is away. What is in flight stays so.
        """
        sent = 0
        while True:
            room = _AT_ONCE - len(self._in_flight)
            claimed = await queries.claim_deliveries(
                self._database, limit=room, share=_SHARE, in_flight=self._in_flight.values()
            )
            self._in_flight |= {asyncio.create_task(self._deliver(delivery)): delivery for delivery in claimed}
            sent += len(claimed)
            if not self._in_flight:
                return sent
            ended, _ = await asyncio.wait(self._in_flight, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                del self._in_flight[task]

    async def _deliver(self, delivery: Delivery) -> None:
        with bind(webhook=delivery.id):
            try:
                await self._attempt(delivery)
            except SQLAlchemyError as error:
                log.warning("could not note how a webhook fared, so it is sent again: %s", error)
            except Exception:
                log.exception("could not send a webhook")

    async def _attempt(self, delivery: Delivery) -> None:
        at, start = time.time(), time.monotonic()
        status, error, wait = await self._send(delivery)
        outcome = Outcome(status, error, at, round((time.monotonic() - start) * 1000))
        state, delay = "pending", 0.0
        if outcome.taken:
            state = "delivered"
        elif outcome.gone or delivery.tries > len(_DELAYS):
            state = "failed"
        else:
            delay = max(wait, _DELAYS[delivery.tries - 1] * random.uniform(1 - _JITTER, 1 + _JITTER))
        if not outcome.taken:
            log.info("a webhook was not taken: %s", error or status)
        await queries.record_delivery(self._database, delivery, state, outcome, delay_seconds=delay)

    async def _send(self, delivery: Delivery) -> tuple[int | None, str | None, float]:
        """Return the status of the answer, or why there was none, and how many seconds the receiver wants to wait."""
        secrets = [derive_secret(key, secret_id) for key in self._secret_keys for secret_id in delivery.secret_ids]
        signed = sign(secrets, webhook_id=delivery.id, sent_at=delivery.claimed_at, payload=delivery.payload)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                url = httpx.URL(delivery.url)
                port = url.port or (443 if url.scheme == "https" else 80)
                host = ascii_host(url)
                address = await resolve(host, port, allow_private=self._allow_private)
                request = self._http.build_request(
                    "POST",
                    url.copy_with(host=address),
                    content=delivery.payload,
                    headers={"content-type": "application/json", "host": url.netloc.decode(), **signed},
                    # The certificate is that of the name, whichever address is called.
                    extensions={"sni_hostname": host},
                )
                response = await self._http.send(request, stream=True)
                await response.aclose()  # what it says is nobody's business, however long it is
        except ForbiddenAddressError as error:
            return None, str(error), 0.0
        except TimeoutError:
            return None, f"No answer within {_PATIENCE_SECONDS:g} s.", 0.0
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return None, f"The connection failed: {type(error).__name__}.", 0.0
        return response.status_code, None, min(cooldown_seconds(response.headers) or 0.0, _LONGEST_WAIT)
