from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import psycopg
import pytest
from psycopg.rows import DictRow
from standardwebhooks import Webhook

from tests.e2e.batches import lines, reaches, submit
from tests.e2e.jobs import chat, ended, refused
from tests.e2e.jobs import submit as submit_job
from tests.fakes.provider import Json, Provider, answer, hang, status
from tests.fakes.receiver import Message, Receiver, listening, running_receiver
from tests.service import BOOTSTRAP_KEY, Stores, connect, running_service
from tests.waiting import PATIENCE, eventually


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


async def delivery_of(client: httpx.AsyncClient, subject: str, *, status: str = "delivered") -> Json:
    """Return the one delivery of `subject`, as `/jobs/job_…`, once it has the status."""

    async def there() -> Json | None:
        listed = await client.get(f"{subject}/webhook-deliveries")
        assert listed.status_code == 200, listed.text
        (found,) = listed.json()["data"] or [None]
        return found if found is not None and found["status"] == status else None

    found = await eventually(there, f"the webhook of {subject} to be {status}")
    assert found is not None
    return found


async def test_the_end_of_a_batch_is_told_as_the_openai_client_reads_it(
    client: httpx.AsyncClient, openai_client: openai.AsyncOpenAI, receiver: Receiver, model: str
) -> None:
    batch = await submit(client, lines(model, 2), webhook=receiver.url)
    assert batch["webhook"] == receiver.url
    await reaches(client, batch["id"], "completed")
    delivery = await delivery_of(client, f"/batches/{batch['id']}")
    (message,) = receiver.messages
    secret = (await client.get("/webhook-secrets")).json()["data"][0]["secret"]
    event = openai_client.webhooks.unwrap(message.body, message.headers, secret=secret)
    assert event.type == "batch.completed"
    assert event.data.id == batch["id"]
    assert (delivery["id"], delivery["event"], delivery["url"]) == (event.id, event.type, receiver.url)
    assert delivery["response_status"] == 200
    (attempt,) = delivery["history"]
    assert attempt.keys() == {"at", "response_status", "error", "milliseconds"}
    assert attempt["response_status"] == 200


async def test_an_invalid_and_a_cancelled_batch_have_webhooks_too(
    client: httpx.AsyncClient, receiver: Receiver, model: str
) -> None:
    failed = await submit(client, b"nonsense\n", webhook=receiver.url)
    assert (await delivery_of(client, f"/batches/{failed['id']}"))["event"] == "batch.failed"
    cancelled = await submit(client, lines(model, 50), webhook=receiver.url)
    answer = await client.post(f"/batches/{cancelled['id']}/cancel")
    delivery = await delivery_of(client, f"/batches/{cancelled['id']}")
    assert delivery["event"] == ("batch.cancelled" if answer.status_code == 200 else "batch.completed")


async def test_a_secret_rotates_and_is_the_accounts_own(client: httpx.AsyncClient, other: httpx.AsyncClient) -> None:
    old = (await other.get("/webhook-secrets")).json()["data"]
    assert len(old) == 1
    assert old[0]["secret"].startswith("whsec_")
    assert old[0]["expires_at"] is None
    new = (await other.post("/webhook-secrets")).json()["data"]
    assert [found["expires_at"] is None for found in new] == [True, False]
    assert new[1]["secret"] == old[0]["secret"] != new[0]["secret"]
    assert (await other.get("/webhook-secrets")).json()["data"] == new
    mine = (await client.get("/webhook-secrets")).json()["data"]
    assert not {found["secret"] for found in mine} & {found["secret"] for found in new}


async def test_no_secret_is_kept(client: httpx.AsyncClient, database: psycopg.AsyncConnection[DictRow]) -> None:
    secret = (await client.get("/webhook-secrets")).json()["data"][0]["secret"]
    rows = await (
        await database.execute("SELECT row_to_json(found)::text AS row FROM webhook_secrets AS found")
    ).fetchall()
    assert rows
    assert not any(secret.removeprefix("whsec_") in row["row"] for row in rows)


async def test_deliveries_are_the_accounts_own(
    client: httpx.AsyncClient, other: httpx.AsyncClient, receiver: Receiver, model: str
) -> None:
    batch = await submit(client, lines(model, 1), webhook=receiver.url)
    await delivery_of(client, f"/batches/{batch['id']}")
    refused(await other.get(f"/batches/{batch['id']}/webhook-deliveries"), 404)
    refused(await client.get("/batches/batch_nonsense/webhook-deliveries"), 404)


async def test_a_server_that_sends_no_webhooks_or_not_there_says_so(
    tmp_path: Path, stores: Stores, config: str, model: str
) -> None:
    without = {"HEADRACE_SECRET_KEY": ""}
    careful = {"HEADRACE_WEBHOOK_ALLOW_PRIVATE": "false"}
    body = {"requests": [{"custom_id": "a", "body": {"model": model, "messages": [{"role": "user", "content": "a"}]}}]}
    for environment, url, code in (
        (careful, "http://127.0.0.1:9/hook", "invalid_value"),
        (without, "https://example.com/hook", "unsupported_parameter"),
    ):
        with running_service(tmp_path / code, stores.fresh(), config, "api", environment=environment) as service:
            async with connect(service, BOOTSTRAP_KEY) as client:
                error = refused(await client.post("/batches", json=body | {"webhook": url}), 400)
                assert (error["param"], error["code"]) == ("webhook", code)
                assert (await client.get("/batches")).json()["data"] == []


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "expired"])
async def test_the_end_of_a_job_is_told_once_however_it_ends(
    client: httpx.AsyncClient, provider: Provider, receiver: Receiver, model: str, end: str
) -> None:
    provider.always(model, {"failed": status(400), "completed": answer("ok")}.get(end, hang))
    timeout: dict[str, Any] = {"timeout": 1} if end == "expired" else {}
    job_id = await submit_job(client, model, webhook=receiver.url, **timeout)
    if end == "cancelled":
        await client.post(f"/jobs/{job_id}/cancel")
    assert (await ended(client, job_id))["status"] == end
    delivery = await delivery_of(client, f"/jobs/{job_id}")
    assert delivery["event"] == f"job.{end}"
    (message,) = receiver.messages
    secrets = (await client.get("/webhook-secrets")).json()["data"]
    event = Webhook(secrets[0]["secret"]).verify(message.body, message.headers)
    assert event["type"] == f"job.{end}"
    assert event["data"] == {"id": job_id}
    assert message.id == event["id"] == delivery["id"]


@dataclass
class Holding(Receiver):
    """It answers the first message at once, and the others when it may."""

    may_answer: threading.Event = field(default_factory=threading.Event)

    def take(self, message: Message) -> int:
        if self.messages:
            self.may_answer.wait(PATIENCE)
        return super().take(message)


@pytest.fixture
def holding() -> Iterator[Holding]:
    with listening(Holding) as receiver:
        yield receiver
        receiver.may_answer.set()


async def test_a_webhook_may_be_sent_again(
    client: httpx.AsyncClient, other: httpx.AsyncClient, holding: Holding, model: str
) -> None:
    response = await client.post("/jobs", json={"request": chat(model), "webhook": holding.url})
    job_id = response.json()["id"]
    delivery = await delivery_of(client, f"/jobs/{job_id}")
    path = f"/jobs/{job_id}/webhook-deliveries/{delivery['id']}/resend"
    refused(await other.post(path), 404)
    refused(await client.post(path.replace(delivery["id"], "evt_" + "0" * 32)), 404)
    resent = await client.post(path)
    assert [found["status"] for found in resent.json()["data"]] == ["pending"]
    holding.may_answer.set()
    await delivery_of(client, f"/jobs/{job_id}")
    assert [message.id for message in holding.messages] == [delivery["id"]] * 2


async def test_a_url_that_is_gone_is_left_alone_until_a_webhook_is_sent_again(
    client: httpx.AsyncClient, receiver: Receiver, model: str
) -> None:
    receiver.answers.append(410)
    first = await submit_job(client, model, webhook=receiver.url)
    assert (await delivery_of(client, f"/jobs/{first}", status="failed"))["response_status"] == 410
    second = await submit_job(client, model, webhook=receiver.url)
    refused_one = await delivery_of(client, f"/jobs/{second}", status="failed")
    assert (refused_one["attempts"], refused_one["history"]) == (0, [])
    assert "410" in refused_one["error"]
    assert len(receiver.messages) == 1
    await client.post(f"/jobs/{second}/webhook-deliveries/{refused_one['id']}/resend")
    await delivery_of(client, f"/jobs/{second}")
    third = await submit_job(client, model, webhook=receiver.url)
    await delivery_of(client, f"/jobs/{third}")


async def test_a_foreground_request_may_have_a_webhook_too(
    client: httpx.AsyncClient, receiver: Receiver, model: str
) -> None:
    response = await client.post("/chat/completions", json=chat(model, webhook=receiver.url))
    assert response.status_code == 200
    await delivery_of(client, f"/jobs/{response.headers['x-headrace-job']}")
    refused(
        await client.post("/chat/completions", json=chat(model, webhook="http://[::1")),
        400,
        param="webhook",
    )


def test_a_job_with_a_webhook_to_a_private_address_is_refused(
    tmp_path: Path, stores: Stores, config: str, model: str
) -> None:
    environment = {"HEADRACE_WEBHOOK_ALLOW_PRIVATE": "false"}
    with running_service(tmp_path, stores.fresh(), config, "api", environment=environment) as service:
        body = chat(model, background=True, webhook="http://169.254.169.254/latest/meta-data")
        headers = {"authorization": f"Bearer {BOOTSTRAP_KEY}"}
        response = httpx.post(f"{service.base_url}/v1/chat/completions", json=body, headers=headers)
        refused(response, 400, param="webhook")


async def test_the_end_of_a_response_is_told_as_the_openai_client_reads_it(
    client: httpx.AsyncClient,
    openai_client: openai.AsyncOpenAI,
    provider: Provider,
    receiver: Receiver,
    model: str,
) -> None:
    provider.script(model, answer("Cut o", finish="length"))
    response = await openai_client.responses.create(
        model=model, input="Hi", background=True, extra_body={"webhook": receiver.url}
    )

    async def told_twice() -> bool:
        return len(receiver.messages) == 2

    await eventually(told_twice, "both webhooks")
    secret = (await client.get("/webhook-secrets")).json()["data"][0]["secret"]
    events = [openai_client.webhooks.unwrap(each.body, each.headers, secret=secret) for each in receiver.messages]
    assert {(event.type, event.model_dump()["data"]["id"]) for event in events} == {
        ("job.completed", response.id.replace("resp_", "job_")),
        ("response.incomplete", response.id),
    }
