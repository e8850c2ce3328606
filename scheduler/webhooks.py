"""Sends webhooks that are due. A failed delivery is tried again for about a day."""

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
from headrace.telemetry.context import bind, note
from headrace.telemetry.metrics import WEBHOOKS
from headrace.telemetry.traceparent import trace_headers, trace_id
from headrace.telemetry.tracing import Span, server_attributes, start_span
from headrace.webhooks import queries
from headrace.webhooks.addresses import ForbiddenAddressError, ascii_host, resolve
from headrace.webhooks.queries import Delivery, Outcome
from headrace.webhooks.signing import derive_secret, sign
from scheduler.lookout import work_or_rest

log = logging.getLogger(__name__)

# Seconds between two looks for deliveries that are due.
_LOOK_SECONDS = 0.5
# Deliveries in flight at one time. One account gets half of them, and the next half of what is left. As many lookups of
# hosts may hang: `headrace/runtime/lookups.py`.
_AT_ONCE = 128
# Deliveries in flight to one host for one account, so that a host that hangs does not delay the account's others.
_SHARE = 4
# Seconds that a receiver has to answer.
_PATIENCE_SECONDS = 15.0
# Seconds to wait after each failure, almost a day in all, and the share by which each varies, so that many
# deliveries do not reach a receiver at the same moment.
_DELAYS = (5, 30, 120, 600, 1800, 3600, 7200, 14_400, 28_800, 28_800)
_JITTER = 0.2
# Seconds that a receiver's `Retry-After` may ask for at most.
_LONGEST_WAIT = 86_400.0


class WebhookSender:
    """The sender of one process. Several may run: a delivery that one claims is not sent by another for a minute."""

    def __init__(
        self, database: Database, *, secret_key: str, previous_keys: Sequence[str] = (), allow_private: bool
    ) -> None:
        """Sign with secrets derived from the secret key, and from `previous_keys`, which receivers may still use.

        `allow_private` allows receivers on this machine and its network, for development.
        """
        self._database = database
        self._secret_keys = (secret_key, *previous_keys)
        self._allow_private = allow_private
        self._in_flight: dict[asyncio.Task[None], Delivery] = {}
        self._places: dict[str, str] = {}
        """Where the next look at an account with many hosts begins."""
        # Without a proxy and redirects, the address that was checked is the one that is called. No connection is kept:
        # the pool would find it by its address, which several host names may share.
        self._http = httpx.AsyncClient(
            timeout=_PATIENCE_SECONDS,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def run(self, pending: asyncio.Event) -> None:
        """Send while `pending` is set, as there are deliveries that have not ended; until cancelled."""
        try:
            while True:
                try:
                    await self.send_due()
                except SQLAlchemyError as error:
                    log.warning("could not look for webhooks: %s", error)
                except Exception:
                    log.exception("could not send webhooks")
                await work_or_rest(pending, least=_LOOK_SECONDS)
        finally:
            for task in self._in_flight:
                task.cancel()
            await asyncio.gather(*self._in_flight, return_exceptions=True)
            self._in_flight.clear()

    async def send_due(self) -> int:
        """Send deliveries that are due, and those that become due meanwhile, until none is in flight.

        Returns how many deliveries there were.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: Postgres is unavailable. Deliveries in flight go on.
        """
        sent = 0
        while True:
            room = _AT_ONCE - len(self._in_flight)
            claimed = await queries.claim_deliveries(
                self._database, limit=room, share=_SHARE, in_flight=self._in_flight.values(), places=self._places
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
            if delivery.trace_context is not None:
                note(trace=trace_id(delivery.trace_context))
            try:
                await self._attempt(delivery)
            except SQLAlchemyError as error:
                log.warning("could not record a webhook's delivery, so it will be sent again: %s", error)
            except Exception:
                log.exception("could not send a webhook")

    async def _attempt(self, delivery: Delivery) -> None:
        at, start = time.time(), time.monotonic()
        span = _start_span(delivery)
        status, error, wait = await self._send(delivery, delivery.trace_context if span is None else span.context)
        outcome = Outcome(status, error, at, round((time.monotonic() - start) * 1000))
        if span is not None:
            span.set({"http.response.status_code": status})
            if not outcome.taken:
                span.fail("no_answer" if status is None else str(status))
            span.end()
        state, delay = "pending", 0.0
        if outcome.taken:
            state = "delivered"
        elif outcome.gone or delivery.tries > len(_DELAYS):
            state = "failed"
        else:
            delay = max(wait, _DELAYS[delivery.tries - 1] * random.uniform(1 - _JITTER, 1 + _JITTER))
        if not outcome.taken:
            log.info("a receiver did not accept a webhook: %s", error or status)
        WEBHOOKS.labels(state).inc()
        await queries.record_delivery(self._database, delivery, state, outcome, delay_seconds=delay)

    async def _send(self, delivery: Delivery, trace_context: str | None) -> tuple[int | None, str | None, float]:
        """Return the answer's status, or else the error, and the seconds that the receiver asks to wait."""
        secrets = [derive_secret(key, secret_id) for key in self._secret_keys for secret_id in delivery.secret_ids]
        signed = sign(secrets, webhook_id=delivery.id, sent_at=delivery.claimed_at, payload=delivery.payload)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                url = httpx.URL(delivery.url)
                host = ascii_host(url)
                address = await resolve(host, allow_private=self._allow_private)
                request = self._http.build_request(
                    "POST",
                    url.copy_with(host=address),
                    content=delivery.payload,
                    headers={
                        "content-type": "application/json",
                        "host": url.netloc.decode(),
                        **signed,
                        **trace_headers(trace_context),
                    },
                    # The certificate is for the host name, though the URL has the address.
                    extensions={"sni_hostname": host},
                )
                response = await self._http.send(request, stream=True)
                await response.aclose()  # the body does not matter, and may be of any length
        except ForbiddenAddressError as error:
            return None, str(error), 0.0
        except TimeoutError:
            return None, f"No answer within {_PATIENCE_SECONDS:g} s.", 0.0
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return None, f"The connection failed: {type(error).__name__}.", 0.0
        return response.status_code, None, min(cooldown_seconds(response.headers) or 0.0, _LONGEST_WAIT)


def _start_span(delivery: Delivery) -> Span | None:
    """Start the span of a delivery, in the trace of the request whose end it tells; None if that is not traced here."""
    if delivery.trace_context is None:
        return None
    span = start_span("POST webhook", "CLIENT", parent=delivery.trace_context)
    if span is not None:
        span.set(
            {
                "http.request.method": "POST",
                "http.request.resend_count": delivery.attempts - 1 or None,
                **server_attributes(delivery.url),
                "messaging.message.id": delivery.subject_id,
                "headrace.account.id": delivery.account_id,
                "headrace.webhook.id": delivery.id,
            }
        )
    return span
