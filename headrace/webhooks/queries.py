"""Every statement on webhooks. The statements that end jobs and batches insert their deliveries by the CTEs here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

import orjson

from headrace.idempotency.queries import APPLY
from headrace.ids import new_id
from headrace.stores.connections import Row
from headrace.stores.database import Database, execute

GONE = "Not sent: this URL answered an earlier webhook with 410."

# Seconds that a sender holds a delivery: longer than any attempt takes. Then another sender may claim it.
_LEASE_SECONDS = 60
# Hosts of one account that one look visits.
_MOST_HOSTS = 256
# Attempts that a delivery's history keeps.
_LONGEST_HISTORY = 32


def insert_batch_deliveries(ended: str) -> str:
    """Return one more CTE for a statement that ends batches: it inserts a delivery for each that has a webhook.

    `ended` names the CTE with their `id`, `account_id`, `state` and `webhook`; `%(event_id)s` is the event's id.
    """
    return f""", notified AS (
    INSERT INTO webhook_deliveries (id, account_id, batch_id, url, event, payload)
    SELECT %(event_id)s, account_id, id, webhook, 'batch.' || state, json_build_object(
               'id', %(event_id)s::text, 'object', 'event', 'type', 'batch.' || state,
               'created_at', floor(extract(epoch FROM now()))::bigint, 'data', json_build_object('id', id))::text
    FROM {ended} WHERE webhook IS NOT NULL
)"""


JOB_FOR_WEBHOOK = """jobs.webhook, jobs.format,
              CASE WHEN jobs.format = 'responses' AND jobs.webhook IS NOT NULL
                   THEN substring(left(jobs.response, 256) FROM '"status":"([a-z_]+)"') END AS response_status"""
"""Columns that a statement on `jobs` returns, of which the webhooks of a job's end are made.

A stored response begins with its id, object, time and status.
"""


def insert_job_deliveries(moved: str) -> str:
    """Return one more CTE for a statement that moves jobs: it inserts the deliveries of each that ended.

    A job with a webhook gets the event `job.*`. A job of the Responses API also gets `response.*`, as OpenAI sends it:
    there an expired job is a failed response, and a job whose answer was cut off an incomplete one. `moved` names the
    CTE with the `id`, `account_id` and `state` of each job and the columns of `JOB_FOR_WEBHOOK`. A job ends once, so
    the ids of its events are made of its own.
    """
    return f""", notified AS (
    INSERT INTO webhook_deliveries (id, account_id, job_id, url, event, payload)
    SELECT event.id, account_id, job.id, webhook, type, json_build_object(
               'id', event.id, 'object', 'event', 'type', type,
               'created_at', floor(extract(epoch FROM now()))::bigint, 'data', json_build_object('id', subject))::text
    FROM {moved} AS job CROSS JOIN LATERAL (
        SELECT 'evt_' || substr(job.id, 5) AS id, 'job.' || state AS type, job.id AS subject
        UNION ALL
        SELECT 'evt_' || md5('response ' || job.id), 'response.' || CASE state
                   WHEN 'completed' THEN coalesce(response_status, state) WHEN 'expired' THEN 'failed' ELSE state END,
               'resp_' || substr(job.id, 5)
        WHERE format = 'responses') AS event
    WHERE webhook IS NOT NULL AND state NOT IN ('queued', 'running')
)"""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery under this sender's lease. Its signatures use `secret_ids`."""

    id: str
    account_id: str
    host: str
    url: str
    payload: str
    attempts: int
    """Including this one. It is the fence of its record."""
    tries: int
    """Attempts since the delivery was last resent by request."""
    secret_ids: Sequence[str]
    claimed_at: datetime
    """By the clock of Postgres, because receivers refuse a wrong time."""
    subject_id: str | None = None
    """The job or the batch whose end it tells."""
    trace_context: str | None = None
    """That of the job or the batch."""

    @property
    def receiver(self) -> tuple[str, str]:
        """The account and host that it goes to. Each receiver has a share of simultaneous deliveries."""
        return self.account_id, self.host


# Pending deliveries to URLs that are gone, 1,000 at most. Those that another statement has locked are skipped, so that
# no statement waits for another.
_REFUSABLE = """
    SELECT other.id FROM webhook_deliveries AS other JOIN {gone} AS gone USING (account_id, host, url)
    WHERE state = 'pending' AND other.id <> ALL(%(but)s::text[]) LIMIT 1000 FOR UPDATE OF other SKIP LOCKED
"""
# The index leads from one account to the next, and from one of its hosts to the next, however many deliveries are due
# to each. Of an account with many hosts, most of which may wait for hours, each look visits some, from where the last
# one stopped. Due deliveries of the accounts with the fewest in flight come first. Each needs more free room than its
# account has in flight by then. No others are locked.
_CLAIM = f"""
WITH RECURSIVE account AS (
    (SELECT account_id FROM webhook_deliveries WHERE state = 'pending' ORDER BY account_id LIMIT 1)
    UNION ALL
    SELECT next.* FROM account CROSS JOIN LATERAL (
        SELECT account_id FROM webhook_deliveries AS known
        WHERE state = 'pending' AND known.account_id > account.account_id ORDER BY account_id LIMIT 1) AS next
), receiver AS MATERIALIZED (
    SELECT account_id, visited.* FROM account
    LEFT JOIN jsonb_each_text(%(places)s::jsonb) AS place (account_id, host) USING (account_id)
    CROSS JOIN LATERAL (
        WITH RECURSIVE visited AS (
            (SELECT host, due_at, 1 AS number FROM webhook_deliveries AS known
             WHERE state = 'pending' AND known.account_id = account.account_id AND host >= coalesce(place.host, '')
             ORDER BY host, due_at LIMIT 1)
            UNION ALL
            SELECT next.*, number + 1 FROM visited CROSS JOIN LATERAL (
                SELECT host, due_at FROM webhook_deliveries AS known
                WHERE state = 'pending' AND known.account_id = account.account_id AND known.host > visited.host
                ORDER BY host, due_at LIMIT 1) AS next
            WHERE number < %(hosts)s
        ) SELECT * FROM visited) AS visited
), waiting AS (
    SELECT waiting.*, account_id, host FROM receiver
    LEFT JOIN unnest(%(accounts)s::text[], %(busy)s::text[], %(counts)s::int[]) AS busy (account_id, host, count)
         USING (account_id, host)
    CROSS JOIN LATERAL (
        SELECT id, due_at FROM webhook_deliveries AS known
        WHERE state = 'pending' AND known.account_id = receiver.account_id AND known.host = receiver.host
              AND due_at <= now()
        ORDER BY due_at LIMIT greatest(0, %(share)s - coalesce(busy.count, 0))) AS waiting
    WHERE receiver.due_at <= now()
), placed AS (
    SELECT waiting.*, row_number() OVER (PARTITION BY account_id ORDER BY due_at) - 1 + coalesce(busy.count, 0) AS held
    FROM waiting LEFT JOIN (
        SELECT account_id, sum(count) AS count
        FROM unnest(%(accounts)s::text[], %(counts)s::int[]) AS known (account_id, count) GROUP BY account_id) AS busy
        USING (account_id)
), due AS MATERIALIZED (
    SELECT locked.*
    FROM (SELECT placed.*, row_number() OVER (ORDER BY held, due_at) - 1 AS taken FROM placed) AS ordered
    CROSS JOIN LATERAL (
        SELECT id, account_id, host, url FROM webhook_deliveries AS known
        WHERE known.id = ordered.id AND state = 'pending' AND due_at <= now() FOR UPDATE SKIP LOCKED) AS locked
    WHERE held < %(limit)s - taken LIMIT %(limit)s  -- at most this many rows qualify; this tells the planner
), gone AS MATERIALIZED (
    SELECT DISTINCT account_id, host, url FROM due JOIN webhooks_gone USING (account_id, url)
), refusable AS MATERIALIZED ({_REFUSABLE.format(gone="gone")}), refused AS (
    UPDATE webhook_deliveries AS delivery SET state = 'failed', error = %(why)s, ended_at = now()
    FROM refusable WHERE delivery.id = refusable.id
), claimed AS (
    UPDATE webhook_deliveries AS delivery SET attempts = attempts + 1, due_at = now() + %(lease)s * interval '1 second'
    FROM due WHERE delivery.id = due.id AND (due.account_id, due.url) NOT IN (SELECT account_id, url FROM gone)
    RETURNING delivery.id, delivery.account_id, delivery.host, delivery.url, payload, attempts, attempts - resent_after,
    ARRAY(
        SELECT known.id FROM webhook_secrets AS known
        WHERE known.account_id = delivery.account_id AND (expires_at IS NULL OR expires_at > now())
        ORDER BY known.id DESC),
    now(), coalesce(job_id, batch_id) AS subject_id,
    coalesce((SELECT trace_context FROM jobs WHERE jobs.id = job_id),
             (SELECT trace_context FROM batches WHERE batches.id = batch_id)) AS trace_context
)
SELECT places, claimed.*
FROM (SELECT jsonb_object_agg(account_id, host) AS places FROM receiver WHERE number = %(hosts)s) AS last
LEFT JOIN claimed ON true
"""


async def claim_deliveries(
    database: Database,
    *,
    limit: int,
    share: int,
    in_flight: Iterable[Delivery] = (),
    places: dict[str, str] | None = None,
) -> list[Delivery]:
    """Claim up to `limit` due deliveries, of each receiver no more than `share` including those `in_flight`.

    An account gets deliveries only while at least as much room stays free as it holds. So however many receivers it
    has, another account finds room.

    Of an account with many hosts a look visits some. `places` has the host where it begins, by account, and is changed
    to that where the next look begins.

    A delivery that is not recorded within a minute is due again. Deliveries to a URL that is gone fail, due ones and
    some that wait.
    """
    busy = Counter(delivery.receiver for delivery in in_flight)
    parameters = {
        "limit": limit,
        "share": share,
        "accounts": [account_id for account_id, _ in busy],
        "busy": [host for _, host in busy],
        "counts": list(busy.values()),
        "places": orjson.dumps(places or {}).decode(),
        "hosts": _MOST_HOSTS,
        "but": [],
        "why": GONE,
        "lease": _LEASE_SECONDS,
    }
    rows = await execute(database.durable, _CLAIM, parameters)
    if places is not None:
        places.clear()
        places.update(rows[0].places or {})
    return [Delivery(*row[1:]) for row in rows if row.id is not None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an attempt: the answer's status, or an error. `at` is its start, in Unix seconds."""

    status: int | None
    error: str | None
    at: float
    milliseconds: int

    @property
    def taken(self) -> bool:
        """Whether the receiver accepted the delivery."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def gone(self) -> bool:
        """Whether the receiver asks for no more webhooks at this URL."""
        return self.status == 410

    def render(self) -> str:
        """Return the attempt's record for the delivery's history, as JSON."""
        fields = {
            "at": round(self.at, 3),
            "response_status": self.status,
            "error": self.error,
            "milliseconds": self.milliseconds,
        }
        return orjson.dumps(fields).decode()


_RECORD = f"""
WITH recorded AS (
    UPDATE webhook_deliveries SET state = %(state)s, status = %(status)s, error = %(error)s,
        due_at = now() + %(delay)s * interval '1 second', ended_at = CASE WHEN %(state)s <> 'pending' THEN now() END,
        history = CASE WHEN jsonb_array_length(history) < {_LONGEST_HISTORY} THEN history ELSE history - 0 END
                  || %(outcome)s::jsonb
    WHERE id = %(id)s AND attempts = %(attempts)s AND NOT history @> jsonb_build_array(%(outcome)s::jsonb)
    RETURNING account_id, host, url
), gone AS MATERIALIZED (
    SELECT * FROM recorded WHERE %(gone)s
), noted AS (
    INSERT INTO webhooks_gone (account_id, url) SELECT account_id, url FROM gone ON CONFLICT DO NOTHING
), back AS (
    DELETE FROM webhooks_gone AS known USING recorded
    WHERE known.account_id = recorded.account_id AND known.url = recorded.url AND %(state)s = 'delivered'
), refusable AS MATERIALIZED ({_REFUSABLE.format(gone="gone")})
UPDATE webhook_deliveries AS other SET state = 'failed', error = %(why)s, ended_at = now()
FROM refusable WHERE other.id = refusable.id
"""


async def record_delivery(
    database: Database, delivery: Delivery, state: str, outcome: Outcome, *, delay_seconds: float = 0
) -> None:
    """Record an attempt's outcome: `delivered`, `failed` for good, or `pending` and due in `delay_seconds`.

    Nothing is recorded if another sender has made the next attempt. A URL that answered 410 gets no more deliveries,
    and one that accepted a delivery is no longer gone.
    """
    parameters = {
        "id": delivery.id,
        "attempts": delivery.attempts,
        "state": state,
        "status": outcome.status,
        "error": outcome.error,
        "outcome": outcome.render(),
        "gone": outcome.gone,
        "but": [delivery.id],
        "why": GONE,
        "delay": delay_seconds,
    }
    await execute(database.durable, _RECORD, parameters)


DeliveryState = Literal["pending", "delivered", "failed"]

_COLUMNS = """
    id, event, url, state, attempts, status, error, floor(extract(epoch FROM created_at))::bigint AS created_at,
    CASE WHEN state = 'pending' THEN floor(extract(epoch FROM due_at))::bigint END AS next_attempt_at,
    floor(extract(epoch FROM ended_at))::bigint AS ended_at, history, job_id, batch_id
"""
_OF_SUBJECT = f"""
SELECT {_COLUMNS} FROM webhook_deliveries
WHERE account_id = %(account_id)s AND (batch_id = %(of)s OR job_id = %(of)s) ORDER BY created_at, event
"""


async def list_deliveries(database: Database, subject_id: str, account_id: str) -> Sequence[Row]:
    """Return the webhook deliveries of a job or a batch, and how each went."""
    return await execute(database.relaxed, _OF_SUBJECT, {"of": subject_id, "account_id": account_id})


# The index has the order of each state. The list merges those of the states that it shows.
_OF_ACCOUNT = """
SELECT {columns} FROM unnest(%(states)s::text[]) AS one (of_state) CROSS JOIN LATERAL (
    SELECT * FROM webhook_deliveries
    WHERE account_id = %(account_id)s AND state = one.of_state {beyond}
    ORDER BY created_at {order}, id {order} LIMIT %(limit)s) AS delivery
ORDER BY delivery.created_at {order}, id {order} LIMIT %(limit)s
"""
_BEYOND = """AND (created_at, id) {beyond} (
            SELECT created_at, id FROM webhook_deliveries WHERE id = %(after)s AND account_id = %(account_id)s)"""


async def list_account_deliveries(
    database: Database,
    account_id: str,
    *,
    state: DeliveryState | None,
    after: str | None,
    limit: int,
    descending: bool,
) -> Sequence[Row]:
    """Return up to `limit` webhook deliveries of an account past the delivery `after`, in order of creation."""
    beyond = "" if after is None else _BEYOND.format(beyond="<" if descending else ">")
    statement = _OF_ACCOUNT.format(columns=_COLUMNS, beyond=beyond, order="DESC" if descending else "ASC")
    parameters = {
        "account_id": account_id,
        "states": list(get_args(DeliveryState)) if state is None else [state],
        "after": after,
        "limit": limit,
    }
    return await execute(database.relaxed, statement, parameters)


async def has_delivery(database: Database, delivery_id: str, account_id: str) -> bool:
    """Return whether the account has a delivery with this id."""
    query = "SELECT id FROM webhook_deliveries WHERE id = %(id)s AND account_id = %(account_id)s"
    return bool(await execute(database.relaxed, query, {"id": delivery_id, "account_id": account_id}))


_RESEND = f"""
WITH applied AS ({APPLY}), resent AS (
    UPDATE webhook_deliveries SET state = 'pending', resent_after = attempts, due_at = now(), ended_at = NULL
    WHERE id = %(id)s AND account_id = %(account_id)s AND (%(key)s::text IS NULL OR EXISTS (SELECT FROM applied))
    RETURNING account_id, url
)
DELETE FROM webhooks_gone AS gone USING resent WHERE gone.account_id = resent.account_id AND gone.url = resent.url
"""


async def resend_delivery(database: Database, delivery_id: str, account_id: str, *, key: str | None) -> None:
    """Make a delivery due again, now and for a day, even if its URL is gone.

    With the `key` of an idempotent request it happens once, because the statement marks the key.
    """
    await execute(database.durable, _RESEND, {"id": delivery_id, "account_id": account_id, "key": key})


_FORGET_GONE = """
DELETE FROM webhooks_gone WHERE created_at < now() - interval '30 days' RETURNING url
"""


async def forget_gone(database: Database) -> int:
    """Forget URLs that were gone thirty days ago, so that the next webhook tries them again. Returns how many."""
    return len(await execute(database.relaxed, _FORGET_GONE))


_SECRETS = """
SELECT id, floor(extract(epoch FROM created_at))::bigint AS created_at,
       floor(extract(epoch FROM expires_at))::bigint AS expires_at
FROM webhook_secrets WHERE account_id = %(account_id)s AND (expires_at IS NULL OR expires_at > now()) ORDER BY id DESC
"""
_ENSURE = "INSERT INTO webhook_secrets (id, account_id) VALUES (%(id)s, %(account_id)s) ON CONFLICT DO NOTHING"
# The update comes first, so that an account never has two secrets without an expiry.
_ROTATE = """
WITH old AS (
    UPDATE webhook_secrets SET expires_at = now() + %(overlap)s * interval '1 second'
    WHERE account_id = %(account_id)s AND expires_at IS NULL AND id <> %(id)s
    RETURNING id
)
INSERT INTO webhook_secrets (id, account_id) SELECT %(id)s, %(account_id)s FROM (SELECT count(*) FROM old) AS ended
ON CONFLICT DO NOTHING
"""


async def ensure_secret(database: Database, account_id: str) -> None:
    """Give an account its first secret, unless it has one."""
    await execute(database.durable, _ENSURE, {"id": new_id("secret"), "account_id": account_id})


async def list_secrets(database: Database, account_id: str) -> Sequence[Row]:
    """Return an account's valid secrets, newest first. Creates the first one if needed."""
    await ensure_secret(database, account_id)
    return await execute(database.relaxed, _SECRETS, {"account_id": account_id})


async def rotate_secret(
    database: Database, account_id: str, secret_id: str, *, overlap_seconds: float
) -> Sequence[Row]:
    """Create a secret; the previous one stays valid for `overlap_seconds`. Returns all valid ones, newest first."""
    parameters = {"id": secret_id, "account_id": account_id, "overlap": overlap_seconds}
    await execute(database.durable, _ROTATE, parameters)
    return await execute(database.relaxed, _SECRETS, {"account_id": account_id})
