"""The alerts of budgets: a webhook when 50, 80 and 100 % of one are spent."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson
from sqlalchemy.exc import SQLAlchemyError

from headrace.quotas.queries import read_sums
from headrace.quotas.rules import Limits
from headrace.stores.connections import Row
from headrace.stores.database import Database, execute
from headrace.stores.failures import is_unavailable
from headrace.usage.queries import render_cost

log = logging.getLogger(__name__)

ALERT_PERCENTS = (50, 80, 100)

_ALERTED = """
SELECT api_keys.id, account_id, api_keys.limits FROM api_keys
WHERE api_keys.limits ? 'alert_webhook' AND revoked_at IS NULL
UNION ALL SELECT id, id, limits FROM accounts WHERE limits ? 'alert_webhook'
"""
_ALERT = """
INSERT INTO webhook_deliveries (id, account_id, url, event, payload)
VALUES (%(event_id)s, %(account_id)s, %(url)s, 'budget.alert', %(payload)s) ON CONFLICT (id) DO NOTHING
"""


async def alert(database: Database) -> None:
    """Send an alert to the limits' `alert_webhook` for each budget of which 50, 80 or 100 % is spent, once a period."""
    for row in await execute(database.relaxed, _ALERTED):
        try:
            await _alert_of(database, row)
        except SQLAlchemyError as error:
            if is_unavailable(error):
                raise
            log.exception("could not send the budget alerts of %s", row.id)
        except Exception:
            log.exception("could not send the budget alerts of %s", row.id)


async def _alert_of(database: Database, row: Row) -> None:
    limits = Limits.parse(row.limits)
    budgets = {"daily_budget": limits.daily_budget, "monthly_budget": limits.monthly_budget}
    if not any(budgets.values()):
        return
    now = datetime.now(UTC)
    day, month = await read_sums(database, row.id, now)
    periods = {"daily_budget": (day, f"{now:%Y-%m-%d}"), "monthly_budget": (month, f"{now:%Y-%m}")}
    for name, budget in budgets.items():
        total, period = periods[name]
        reached = [percent for percent in ALERT_PERCENTS if budget and total * 100 >= budget * percent]
        for percent in reached:
            news = {"budget": name, "period": period, "percent": percent, "limit": render_cost(budget or Decimal())}
            await _tell(database, row, limits, news, spent=total)


async def _tell(database: Database, row: Row, limits: Limits, news: Mapping[str, Any], *, spent: Decimal) -> None:
    # The id is made of the alert's content, so that a second scheduler, or one after a crash, sends no alert twice. A
    # changed budget has alerts of its own.
    event_id = "evt_" + hashlib.md5(f"{row.id} {news}".encode(), usedforsecurity=False).hexdigest()
    payload = {
        "id": event_id,
        "object": "event",
        "type": "budget.alert",
        "created_at": int(time.time()),
        "data": {"id": row.id, **news, "spent": render_cost(spent)},
    }
    parameters = {
        "event_id": event_id,
        "account_id": row.account_id,
        "url": limits.alert_webhook,
        "payload": orjson.dumps(payload).decode(),
    }
    await execute(database.durable, _ALERT, parameters)
