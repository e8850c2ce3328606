from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from headrace.batches.lines import LineProblem
from headrace.batches.queries import end_batch, fail_batch
from headrace.batches.state import BatchState
from headrace.ids import new_id
from headrace.stores.connections import Connections, Row
from headrace.stores.database import Database, execute
from headrace.telemetry.metrics import WEBHOOKS
from headrace.webhooks import queries
from headrace.webhooks.queries import Outcome
from headrace.webhooks.signing import derive_secret
from scheduler import webhooks
from scheduler.lookout import Lookout
from scheduler.webhooks import WebhookSender
from tests.fakes.receiver import Receiver, running_receiver
from tests.integration.batches.test_queries import create
from tests.integration.job_rows import Owner
from tests.metrics import Rise
from tests.waiting import eventually

KEY = "tests-secret-key-tests-secret-key"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


@pytest.fixture
async def sender(database: Database, owner: Owner) -> AsyncIterator[WebhookSender]:
    await execute(database.durable, "TRUNCATE webhook_secrets, webhooks_gone")
    await queries.ensure_secret(database, owner.account_id)
    sender = WebhookSender(database, secret_key=KEY, allow_private=True)
    yield sender
    await sender.close()


async def tell(database: Database, owner: Owner, url: str) -> str:
    """End a batch whose webhook goes to this URL, and return the batch's id."""
    batch_id = await create(database, owner, webhook=url)
    assert await fail_batch(database, batch_id, [LineProblem(1, "invalid_json", "It is not JSON.", None)])
    return batch_id


async def delivery(database: Database, owner: Owner, batch_id: str) -> Row:
    (row,) = await queries.list_deliveries(database, batch_id, owner.account_id)
    return row


async def make_due(database: Database) -> None:
    await execute(database.durable, "UPDATE webhook_deliveries SET due_at = now() WHERE state = 'pending'")


def outcome(status: int) -> Outcome:
    return Outcome(status, None, 1_800_000_000.5, 12)


async def valid_secrets(database: Database, owner: Owner) -> list[str]:
    return [derive_secret(KEY, row.id) for row in await queries.list_secrets(database, owner.account_id)]


async def test_an_end_is_told_once_and_signed(
    database: Database, owner: Owner, sender: WebhookSender, receiver: Receiver
) -> None:
    batch_id = await tell(database, owner, receiver.url)
    assert await sender.send_due() == 1
    assert await sender.send_due() == 0
    (message,) = receiver.messages
    (secret,) = await valid_secrets(database, owner)
    event = Webhook(secret).verify(message.body, message.headers)
    assert event == {
        "id": message.id,
        "object": "event",
        "type": "batch.failed",
        "created_at": event["created_at"],
        "data": {"id": batch_id},
    }
    row = await delivery(database, owner, batch_id)
    assert (row.id, row.state, row.attempts, row.status) == (message.id, "delivered", 1, 200)


async def test_who_asked_for_nothing_is_told_nothing(database: Database, owner: Owner, sender: WebhookSender) -> None:
    batch_id = await create(database, owner)
    assert await fail_batch(database, batch_id, [])
    assert await queries.list_deliveries(database, batch_id, owner.account_id) == []


async def test_an_end_that_another_process_wrote_is_not_told_again(
    database: Database, owner: Owner, sender: WebhookSender
) -> None:
    batch_id = await tell(database, owner, "http://127.0.0.1:9/")
    assert not await fail_batch(database, batch_id, [])
    assert not await end_batch(
        database,
        batch_id,
        begin=BatchState.FINALIZING,
        end=BatchState.COMPLETED,
        output_file_id=None,
        error_file_id=None,
    )
    assert (await delivery(database, owner, batch_id)).event == "batch.failed"


async def test_a_failed_attempt_is_repeated_under_the_same_id(
    database: Database, owner: Owner, sender: WebhookSender, receiver: Receiver
) -> None:
    receiver.answers.extend([500, 429])
    counted = Rise(WEBHOOKS)
    batch_id = await tell(database, owner, receiver.url)
    for expected in (500, 429):
        assert await sender.send_due() == 1
        row = await delivery(database, owner, batch_id)
        assert (row.state, row.status) == ("pending", expected)
        assert row.next_attempt_at > row.created_at
        assert await sender.send_due() == 0
        await make_due(database)
    assert await sender.send_due() == 1
    assert len({message.id for message in receiver.messages}) == 1
    assert len({message.body for message in receiver.messages}) == 1
    row = await delivery(database, owner, batch_id)
    assert (row.state, row.attempts) == ("delivered", 3)
    assert counted() == {("pending",): 2, ("delivered",): 1}
    assert [attempt["response_status"] for attempt in row.history] == [500, 429, 200]
    assert sorted(row.history, key=lambda attempt: attempt["at"]) == row.history
    assert all(attempt["milliseconds"] >= 0 and attempt["error"] is None for attempt in row.history)


async def test_a_receiver_says_when_it_is_called_again(
    database: Database, owner: Owner, sender: WebhookSender, receiver: Receiver
) -> None:
    receiver.answers.append(429)
    receiver.retry_after = "1200"
    batch_id = await tell(database, owner, receiver.url)
    await sender.send_due()
    row = await delivery(database, owner, batch_id)
    assert row.next_attempt_at >= row.created_at + 1199


async def test_of_many_attempts_the_last_are_kept_each_once(
    database: Database, owner: Owner, sender: WebhookSender, receiver: Receiver
) -> None:
    batch_id = await tell(database, owner, receiver.url)
    await execute(
        database.durable,
        "UPDATE webhook_deliveries SET history = (SELECT jsonb_agg(number) FROM generate_series(1, 32) AS number)",
    )
    (held,) = await queries.claim_deliveries(database, limit=1, share=1)
    for _ in range(2):  # as after a restart of Postgres
        await queries.record_delivery(database, held, "delivered", outcome(200))
    row = await delivery(database, owner, batch_id)
    assert row.history[:-1] == list(range(2, 33))
    assert row.history[-1] == {"at": 1_800_000_000.5, "response_status": 200, "error": None, "milliseconds": 12}


async def test_a_url_that_is_gone_is_sent_nothing_more_until_that_is_asked_for(
    database: Database, owner: Owner, stranger: Owner, sender: WebhookSender, receiver: Receiver
) -> None:
    await queries.ensure_secret(database, stranger.account_id)
    before = await tell(database, owner, receiver.url)
    await execute(database.durable, "UPDATE webhook_deliveries SET due_at = now() + interval '1 hour'")
    receiver.answers.append(410)
    counted = Rise(WEBHOOKS)
    first = await tell(database, owner, receiver.url)
    assert await sender.send_due() == 1
    assert counted() == {("failed",): 1}
    row = await delivery(database, owner, first)
    assert (row.state, row.status, row.error, row.next_attempt_at) == ("failed", 410, None, None)
    row = await delivery(database, owner, before)
    assert (row.state, row.error, row.attempts) == ("failed", queries.GONE, 0)
    *_, later = [await tell(database, owner, receiver.url) for _ in range(9)]
    assert await sender.send_due() == 0
    assert not await execute(database.relaxed, "SELECT FROM webhook_deliveries WHERE state = 'pending'")
    row = await delivery(database, owner, later)
    assert (row.state, row.error, row.attempts, row.history) == ("failed", queries.GONE, 0, [])
    others = [(stranger, await tell(database, stranger, receiver.url))]
    others.append((owner, await tell(database, owner, receiver.url + "/2")))
    assert await sender.send_due() == 2
    assert {(await delivery(database, *other)).state for other in others} == {"delivered"}

    await queries.resend_delivery(database, row.id, owner.account_id, key=None)
    receiver.answers.append(500)
    assert await sender.send_due() == 1
    row = await delivery(database, owner, later)
    assert (row.state, row.attempts) == ("pending", 1), "it is tried for a day again"
    last = await tell(database, owner, receiver.url)
    assert await sender.send_due() == 1
    assert (await delivery(database, owner, last)).state == "delivered"


async def test_what_is_taken_meanwhile_shows_that_a_url_is_not_gone(
    database: Database, owner: Owner, sender: WebhookSender, receiver: Receiver
) -> None:
    batches = [await tell(database, owner, receiver.url) for _ in range(2)]
    gone, taken = await queries.claim_deliveries(database, limit=4, share=2)
    await queries.record_delivery(database, gone, "failed", outcome(410))
    await queries.record_delivery(database, taken, "delivered", outcome(204))
    rows = {row.id: row for row in [await delivery(database, owner, batch_id) for batch_id in batches]}
    assert (rows[gone.id].state, rows[taken.id].state) == ("failed", "delivered")
    last = await tell(database, owner, receiver.url)
    assert await sender.send_due() == 1
    assert (await delivery(database, owner, last)).state == "delivered"


async def test_answers_that_a_url_is_gone_at_the_same_moment_do_not_wait_for_each_other(
    database: Database, owner: Owner, sender: WebhookSender, receiver: Receiver
) -> None:
    batches = [await tell(database, owner, receiver.url) for _ in range(12)]
    claimed = await queries.claim_deliveries(database, limit=24, share=12)
    await asyncio.gather(*(queries.record_delivery(database, found, "failed", outcome(410)) for found in claimed))
    for batch_id in batches:
        row = await delivery(database, owner, batch_id)
        assert (row.state, row.status, len(row.history)) == ("failed", 410, 1)


@contextlib.asynccontextmanager
async def hanging_receiver() -> AsyncIterator[tuple[str, list[object]]]:
    """A receiver that never answers: its URL, and the connections that were made to it."""
    connections: list[object] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while await reader.read(65_536):  # until the sender disconnects
            pass
        writer.close()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook", connections


async def test_a_receiver_that_hangs_delays_no_other_one(
    database: Database, owner: Owner, stranger: Owner, sender: WebhookSender, receiver: Receiver
) -> None:
    await queries.ensure_secret(database, stranger.account_id)
    async with hanging_receiver() as (url, connections):
        for _ in range(100):
            await tell(database, owner, url)
        lookout = Lookout(database)
        await lookout.look()
        sending = asyncio.create_task(sender.run(lookout.webhooks))

        async def share_taken() -> bool:
            return len(connections) == 4

        await eventually(share_taken, "its share of the slots")
        prompt = [(whose, await tell(database, whose, receiver.url)) for whose in [owner, stranger] * 10]

        async def all_delivered() -> bool:
            return {(await delivery(database, *told)).state for told in prompt} == {"delivered"}

        await eventually(all_delivered, "everybody else's webhooks")
        assert len(receiver.messages) == 20
        assert len(connections) == 4
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_receiver_that_never_answers_is_asked_again_later(
    database: Database, owner: Owner, sender: WebhookSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "_PATIENCE_SECONDS", 0.1)
    async with hanging_receiver() as (url, connections):
        batch_id = await tell(database, owner, url)
        for tries in (1, 2):
            await sender.send_due()
            row = await delivery(database, owner, batch_id)
            assert (row.state, row.attempts, len(connections)) == ("pending", tries, tries)
            assert row.error.startswith("No answer within")
            await make_due(database)


async def test_each_receiver_gets_its_share_oldest_first(database: Database, owner: Owner, stranger: Owner) -> None:
    for whose, count in ((owner, 5), (stranger, 1)):
        for _ in range(count):
            await tell(database, whose, "http://user@one.example:8080/a")
    await tell(database, owner, "http://ONE.example:8080/b")
    await tell(database, owner, "http://two.example?c")
    first = sorted(await queries.claim_deliveries(database, limit=4, share=2), key=lambda found: found.id)
    assert [found.receiver for found in first] == [
        (owner.account_id, "one.example:8080"),
        (owner.account_id, "one.example:8080"),
        (stranger.account_id, "one.example:8080"),
    ]
    second = await queries.claim_deliveries(database, limit=3, share=2, in_flight=first)
    assert [found.receiver for found in second] == [(owner.account_id, "two.example")]
    assert await queries.claim_deliveries(database, limit=3, share=2, in_flight=first) == []
    third = await queries.claim_deliveries(database, limit=30, share=2, in_flight=first[2:])
    assert len(third) == 2


async def listed(database: Database, owner: Owner, **asked: Any) -> list[str]:
    wanted = {"state": None, "after": None, "limit": 10, "descending": True, **asked}
    return [row.id for row in await queries.list_account_deliveries(database, owner.account_id, **wanted)]


async def test_an_account_lists_its_deliveries_of_all_states_in_order(
    database: Database, owner: Owner, stranger: Owner
) -> None:
    await tell(database, stranger, "http://one.example/")
    ids = [(await delivery(database, owner, await tell(database, owner, "http://one.example/"))).id for _ in range(6)]
    states = "UPDATE webhook_deliveries SET state = %(state)s, ended_at = now() WHERE id = ANY(%(ids)s)"
    await execute(database.durable, states, {"state": "delivered", "ids": [ids[0], ids[3]]})
    await execute(database.durable, states, {"state": "failed", "ids": [ids[1]]})
    newest = ids[::-1]
    assert await listed(database, owner) == newest
    assert await listed(database, owner, descending=False) == ids
    assert await listed(database, owner, limit=4) == newest[:4]
    assert await listed(database, owner, after=newest[1], limit=3) == newest[2:5]
    assert await listed(database, owner, after=ids[1], descending=False) == ids[2:]
    assert await listed(database, owner, state="delivered") == [ids[3], ids[0]]
    assert await listed(database, owner, state="delivered", after=ids[3]) == [ids[0]]
    assert await listed(database, owner, state="failed") == [ids[1]]
    assert await queries.has_delivery(database, ids[0], owner.account_id)
    assert not await queries.has_delivery(database, ids[0], stranger.account_id)


async def test_a_page_of_deliveries_is_read_by_the_index(database: Database, owner: Owner) -> None:
    batch_id = await tell(database, owner, "http://one.example/")
    many = """
        INSERT INTO webhook_deliveries (id, account_id, batch_id, url, event, payload, state, ended_at, created_at)
        SELECT 'evt_' || md5(n::text), %(account_id)s, %(batch_id)s, 'http://one.example/', 'batch.failed', '{}',
               CASE WHEN mod(n, 1000) = 0 THEN 'failed' ELSE 'delivered' END, now(), now() - n * interval '1 s'
        FROM generate_series(1, 20000) AS n
    """
    await execute(database.durable, many, {"account_id": owner.account_id, "batch_id": batch_id})
    await execute(database.durable, "ANALYZE webhook_deliveries")
    statement = queries._OF_ACCOUNT.format(columns="delivery.id", beyond="", order="DESC")
    parameters = {"account_id": owner.account_id, "states": ["pending", "delivered", "failed"], "limit": 21}
    plan = await execute(database.relaxed, f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
    text = json.dumps(plan[0][0])
    assert "ix_webhook_deliveries_listed" in text
    assert "Seq Scan" not in text
    rows = [int(float(count)) for count in re.findall(r'"Actual Rows": ([0-9.]+)', text)]
    assert max(rows) <= 3 * 21


async def test_receivers_of_one_account_leave_room_for_other_accounts(
    database: Database, owner: Owner, stranger: Owner
) -> None:
    for number in range(20):
        await tell(database, owner, f"http://{number}.example/")
    silent = await queries.claim_deliveries(database, limit=16, share=4)
    assert len(silent) == 8
    assert await queries.claim_deliveries(database, limit=8, share=4, in_flight=silent) == []
    await tell(database, stranger, "http://0.example/")
    (found,) = await queries.claim_deliveries(database, limit=8, share=4, in_flight=silent)
    assert found.account_id == stranger.account_id


async def insert_many(database: Database, owner: Owner, count: int, *, due: str) -> None:
    """Insert a pending delivery to each of many hosts."""
    many = f"""
        INSERT INTO webhook_deliveries (id, account_id, url, event, payload, due_at)
        SELECT 'evt_' || md5(n::text), %(account_id)s, 'https://h' || n || '.example/', 'job.failed', '{{}}', {due}
        FROM generate_series(1, %(count)s::int) AS n
    """
    await execute(database.durable, many, {"account_id": owner.account_id, "count": count})
    await execute(database.durable, "ANALYZE webhook_deliveries")


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def total_rows(plan: dict[str, Any], **wanted: str) -> float:
    """Return how many rows the wanted nodes of a plan gave."""
    found = [node for node in nodes(plan) if all(node.get(name) == value for name, value in wanted.items())]
    return sum(float(node["Actual Rows"] * node["Actual Loops"]) for node in found)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The plans of the statements on webhooks, with what each read."""
    found: list[dict[str, Any]] = []

    async def explaining(connections: Connections, statement: str, parameters: dict[str, Any]) -> Sequence[Row]:
        with contextlib.suppress(InterruptedError):
            async with connections.transaction("READ COMMITTED") as transaction:
                [[[plan]]] = await execute(transaction, f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
                found.append(plan["Plan"])
                raise InterruptedError  # so that nothing is claimed yet
        return await execute(connections, statement, parameters)

    monkeypatch.setattr(queries, "execute", explaining)
    return found


@pytest.mark.parametrize("due", ["now() + interval '1 hour'", "now() - interval '1 hour'"], ids=["later", "due"])
async def test_an_account_with_many_hosts_costs_a_look_no_more_than_one_with_some(
    database: Database, owner: Owner, stranger: Owner, plans: list[dict[str, Any]], due: str
) -> None:
    await insert_many(database, owner, 5000, due=due)
    await tell(database, stranger, "http://one.example/")
    claimed = await queries.claim_deliveries(database, limit=16, share=4)
    assert stranger.account_id in {found.account_id for found in claimed}
    [plan] = plans
    assert total_rows(plan, **{"Relation Name": "webhook_deliveries"}) < 1000
    assert total_rows(plan, **{"Node Type": "LockRows"}) <= 16


async def test_looks_at_an_account_with_many_hosts_take_turns(
    database: Database, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "_MOST_HOSTS", 5)
    await insert_many(database, owner, 12, due="now() + interval '1 hour'")
    places: dict[str, str] = {}
    for host in ("a.example", "h5.example:8080", "z.example") * 2:
        await tell(database, owner, f"http://{host}/")
        looks = [await queries.claim_deliveries(database, limit=8, share=4, places=places) for _ in range(4)]
        assert [found.host for claimed in looks for found in claimed] == [host]


async def test_patience_ends_after_a_day(
    database: Database, owner: Owner, sender: WebhookSender, receiver: Receiver
) -> None:
    receiver.answers.extend([500] * 20)
    batch_id = await tell(database, owner, receiver.url)
    waited = 0.0
    row = await delivery(database, owner, batch_id)
    while await sender.send_due():
        row = await delivery(database, owner, batch_id)
        if row.next_attempt_at is not None:
            (now,) = await execute(database.relaxed, "SELECT extract(epoch FROM now())::float8 AS at")
            waited += row.next_attempt_at - now.at
        await make_due(database)
    assert row.state == "failed"
    assert row.attempts == 11
    assert 0.75 * 86_400 < waited < 1.5 * 86_400


async def test_a_redirect_is_not_followed(
    database: Database, owner: Owner, sender: WebhookSender, receiver: Receiver
) -> None:
    receiver.answers.append(302)
    receiver.location = receiver.url + "/elsewhere"
    batch_id = await tell(database, owner, receiver.url)
    await sender.send_due()
    assert [message.path for message in receiver.messages] == ["/hook"]
    row = await delivery(database, owner, batch_id)
    assert (row.state, row.status) == ("pending", 302)


async def test_an_unreachable_receiver(database: Database, owner: Owner, sender: WebhookSender) -> None:
    batch_id = await tell(database, owner, "http://127.0.0.1:9/")
    await sender.send_due()
    row = await delivery(database, owner, batch_id)
    assert (row.state, row.status, row.error) == ("pending", None, "The connection failed: ConnectError.")


async def test_a_name_that_leads_to_our_own_network_is_refused(
    database: Database, owner: Owner, receiver: Receiver, sender: WebhookSender
) -> None:
    careful = WebhookSender(database, secret_key=KEY, allow_private=False)
    batch_id = await tell(database, owner, receiver.url.replace("127.0.0.1", "localhost"))
    await careful.send_due()
    await careful.close()
    assert receiver.messages == []
    row = await delivery(database, owner, batch_id)
    assert (row.status, row.error) == (None, "The host has an address that webhooks may not go to.")


async def test_a_name_is_called_at_the_address_that_was_looked_at(
    database: Database, owner: Owner, receiver: Receiver, sender: WebhookSender
) -> None:
    url = receiver.url.replace("127.0.0.1", "localhost")
    await tell(database, owner, url)
    await sender.send_due()
    (message,) = receiver.messages
    assert message.headers["host"] == url.split("/")[2]


async def test_two_senders_send_each_message_once(
    database: Database, owner: Owner, sender: WebhookSender, receiver: Receiver
) -> None:
    for _ in range(20):
        await tell(database, owner, receiver.url)
    second = WebhookSender(database, secret_key=KEY, allow_private=True)
    sent = await asyncio.gather(sender.send_due(), second.send_due())
    await second.close()
    assert sum(sent) == 20
    assert len({message.id for message in receiver.messages}) == len(receiver.messages) == 20


async def test_what_a_dead_sender_had_in_hand_is_sent_by_another(
    database: Database, owner: Owner, sender: WebhookSender, receiver: Receiver
) -> None:
    batch_id = await tell(database, owner, receiver.url)
    (held,) = await queries.claim_deliveries(database, limit=1, share=1)
    assert await sender.send_due() == 0
    await make_due(database)  # a minute later
    assert await sender.send_due() == 1
    # If the first sender was only slow, its late failure does not undo the second one's delivery.
    await queries.record_delivery(database, held, "failed", outcome(500))
    row = await delivery(database, owner, batch_id)
    assert (row.state, row.attempts, row.status) == ("delivered", 2, 200)


async def test_after_a_rotation_both_secrets_sign_until_the_old_one_ends(
    database: Database, owner: Owner, sender: WebhookSender, receiver: Receiver
) -> None:
    (old,) = await valid_secrets(database, owner)
    await queries.rotate_secret(database, owner.account_id, new_id("secret"), overlap_seconds=3600)
    new, still = await valid_secrets(database, owner)
    assert (still, new != old) == (old, True)
    await tell(database, owner, receiver.url)
    await sender.send_due()
    for secret in (old, new):
        Webhook(secret).verify(receiver.messages[0].body, receiver.messages[0].headers)
    await execute(database.durable, "UPDATE webhook_secrets SET expires_at = now() WHERE expires_at IS NOT NULL")
    await tell(database, owner, receiver.url)
    await sender.send_due()
    Webhook(new).verify(receiver.messages[1].body, receiver.messages[1].headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(old).verify(receiver.messages[1].body, receiver.messages[1].headers)


async def test_after_a_change_of_the_secret_key_both_sign(
    database: Database, owner: Owner, sender: WebhookSender, receiver: Receiver
) -> None:
    changed = WebhookSender(
        database, secret_key="a-new-secret-key-of-32-characters", previous_keys=[KEY], allow_private=True
    )
    await tell(database, owner, receiver.url)
    assert await changed.send_due() == 1
    await changed.close()
    [message] = receiver.messages
    [row] = await queries.list_secrets(database, owner.account_id)
    for key in (KEY, "a-new-secret-key-of-32-characters"):
        assert Webhook(derive_secret(key, row.id)).verify(message.body, message.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(derive_secret("another" * 6, row.id)).verify(message.body, message.headers)


async def test_rotations_and_first_looks_at_once_leave_one_current_secret(database: Database, owner: Owner) -> None:
    await execute(database.durable, "TRUNCATE webhook_secrets")
    await asyncio.gather(*(queries.ensure_secret(database, owner.account_id) for _ in range(5)))
    assert len(await queries.list_secrets(database, owner.account_id)) == 1
    await asyncio.gather(
        *(queries.rotate_secret(database, owner.account_id, new_id("secret"), overlap_seconds=60) for _ in range(5))
    )
    rows = await queries.list_secrets(database, owner.account_id)
    assert [row.expires_at is None for row in rows].count(True) == 1
