"""Limits of a key or an account, over HTTP: which requests are refused and how, admitted again, or queued."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from standardwebhooks import Webhook

from tests.e2e import batches
from tests.e2e.batches import line, lines
from tests.e2e.jobs import chat, completed, get, leave, refused, submit
from tests.fakes.provider import Gate, Json, Provider, answer, status, usage_of
from tests.fakes.receiver import running_receiver
from tests.service import BOOTSTRAP_KEY, Service, connect, embedded_stores, running_service, second_api
from tests.waiting import eventually

# Of a fake model: 100 tokens of the prompt and 1,000 of the answer, at 2.50 and 10.00 USD a million.
USED = usage_of(100, 1000)
COST = Decimal("0.01025")


@dataclass
class User:
    """A key with limits, of an account of its own, and its client."""

    key: Json
    client: httpx.AsyncClient

    async def cost(self) -> Decimal:
        """Return what the key has spent today, as `GET /usage` says."""
        response = await self.client.get("/usage")
        return sum((Decimal(row["cost"]) for row in response.json()["data"]), Decimal())


New = Callable[..., User]


@pytest.fixture
async def new(service: Service) -> AsyncIterator[New]:
    """Makes users; the arguments are the limits of the key."""
    async with AsyncExitStack() as stack:

        def user(*options: str, account: str | None = None) -> User:
            key = service.create_key(account or f"limited-{secrets.token_hex(4)}", *options)
            client = connect(service, key["key"])
            stack.push_async_callback(client.aclose)
            return User(key, client)

        yield user


@pytest.fixture
def held(provider: Provider, model: str) -> Iterator[Gate]:
    """Holds every answer of the model back."""
    gate = Gate()
    provider.always(model, answer("ok", usage=USED, hold=gate))
    yield gate
    gate.release()


async def ask(client: httpx.AsyncClient, model: str, **fields: Any) -> httpx.Response:
    return await client.post("/chat/completions", json=chat(model, **{"max_completion_tokens": 1000, **fields}))


async def test_a_budget_holds_under_two_hundred_requests_at_once_in_two_processes(
    service: Service, provider: Provider, new: New, model: str, held: Gate
) -> None:
    user = new("--daily-budget", "0.5")
    async with second_api(service, user.key["key"]) as second:
        requests = [asyncio.create_task(ask(client, model)) for client in (user.client, second) for _ in range(100)]
        refusals = 0

        async def decided() -> bool:
            nonlocal refusals
            refusals = sum(request.done() for request in requests)
            return refusals + len(provider.calls_for(model)) == 200

        await eventually(decided, "two hundred requests to be let in or refused")
        held.release()
        found = await asyncio.gather(*requests)
    assert {response.status_code for response in found} == {200, 429}
    refused(next(response for response in found if response.status_code == 429), 429, code="insufficient_quota")
    # What an answer of at most 1,000 tokens may cost was held back for each of those that were let in.
    assert len(provider.calls_for(model)) == 200 - refusals == 49
    # Their prompts were longer than estimated, and that was spent: nothing is left for another.
    assert await user.cost() == 49 * COST > Decimal("0.5")
    refused(await ask(user.client, model), 429, type="insufficient_quota", code="insufficient_quota")


@pytest.mark.parametrize(("budget", "let_in"), [("1", 6), ("0.1", 1)])
async def test_a_budget_holds_for_answers_of_any_length(
    service: Service, provider: Provider, new: New, budget: str, let_in: int
) -> None:
    """The request sets no limit, and the model may write 65,536 tokens, at 2.50 USD a million: 0.16384 USD."""
    model, gate = f"gemini-9-{secrets.token_hex(6)}", Gate()
    provider.always(model, answer("ok", usage=usage_of(10, 60_000), hold=gate))
    user = new("--daily-budget", budget)
    async with second_api(service, user.key["key"]) as second:
        clients = [client for client in (user.client, second) for _ in range(100)]
        requests = [asyncio.create_task(ask(client, model, max_completion_tokens=None)) for client in clients]

        async def decided() -> bool:
            return sum(request.done() for request in requests) + len(provider.calls_for(model)) == 200

        await eventually(decided, "two hundred requests to be let in or refused")
        gate.release()
        statuses = [response.status_code for response in await asyncio.gather(*requests)]
    assert statuses.count(200) == len(provider.calls_for(model)) == let_in
    assert statuses.count(429) == 200 - let_in


async def test_a_budget_comes_free_as_soon_as_an_answer_was_cheaper_than_it_might_have_been(
    provider: Provider, new: New, model: str
) -> None:
    provider.always(model, answer("ok", usage=usage_of(10, 10)))
    user = new("--daily-budget", "0.0115")
    for stream in (False, True) * 5:
        response = await ask(user.client, model, stream=stream)
        assert response.status_code == 200, response.text
    assert await user.cost() == 10 * Decimal("0.000125")
    provider.script(model, status(400))
    assert (await ask(user.client, model)).status_code == 400
    assert (await ask(user.client, model)).status_code == 200


async def test_what_a_finished_call_cost_is_in_its_answer(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.always(model, answer("ok", usage=USED))
    response = await ask(client, model)
    assert response.headers["x-headrace-cost"] == str(COST)
    assert response.json()["usage"]["total_tokens"] == 1100
    assert (await get(client, response.headers["x-headrace-job"]))["cost"] == str(COST)
    provider.always(f"either-{model}", answer("ok", usage=USED))
    assert "x-headrace-cost" not in (await ask(client, f"either-{model}")).headers


async def test_rates_are_told_and_refused_as_openai_words_it(
    service: Service, provider: Provider, new: New, model: str
) -> None:
    provider.always(model, answer("ok", usage=usage_of(10, 90)))
    user = new("--rpm", "3", "--tpm", "5000")
    left = []
    for _ in range(3):
        response = await ask(user.client, model)
        assert response.headers["x-ratelimit-limit-requests"] == "3"
        assert response.headers["x-ratelimit-limit-tokens"] == "5000"
        left.append(
            (response.headers["x-ratelimit-remaining-requests"], response.headers["x-ratelimit-remaining-tokens"])
        )
    requests, tokens = zip(*left, strict=True)
    assert requests == ("2", "1", "0")
    # Each wants 1,000 tokens and its prompt, and has 100 of them in the end.
    assert [int(before) - int(after) for before, after in itertools.pairwise(tokens)] == [100, 100]
    async with openai.AsyncOpenAI(
        base_url=f"{service.base_url}/v1", api_key=user.key["key"], max_retries=0
    ) as openai_client:
        with pytest.raises(openai.RateLimitError, match=r"requests per min \(RPM\): Limit 3, Used 3") as error:
            await openai_client.chat.completions.create(model=model, messages=[{"role": "user", "content": "more"}])
    assert error.value.code == "rate_limit_exceeded"
    assert error.value.type == "rate_limit_error"
    assert 0 < int(error.value.response.headers["retry-after"]) <= 59
    assert error.value.response.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [400, 502])
async def test_an_answer_that_fails_tells_of_its_job_and_rates_as_any_other(
    provider: Provider, new: New, model: str, fault: int, stream: bool
) -> None:
    provider.always(model, status(fault))
    user = new("--rpm", "5", "--tpm", "5000")
    response = await ask(user.client, model, stream=stream)
    assert response.status_code == fault
    assert (await get(user.client, response.headers["x-headrace-job"]))["status"] == "failed"
    assert response.headers["x-ratelimit-limit-tokens"] == "5000"
    assert response.headers["x-ratelimit-remaining-requests"] == "4"


async def test_a_background_job_tells_of_its_rates(new: New, model: str) -> None:
    user = new("--rpm", "5")
    for path, body in (("/chat/completions", chat(model, background=True)), ("/jobs", {"request": chat(model)})):
        response = await user.client.post(path, json=body)
        assert response.status_code == 202
        assert response.headers["x-headrace-job"] == response.json()["id"]
        assert response.headers["x-ratelimit-limit-requests"] == "5"


async def test_openais_client_does_not_try_again_when_a_budget_is_spent(
    service: Service, provider: Provider, new: New, model: str
) -> None:
    user = new("--monthly-budget", "0")
    answers: list[Any] = []

    async def keep(response: object) -> None:
        answers.append(response)

    http_client = openai.DefaultAsyncHttpxClient(event_hooks={"response": [keep]})
    async with openai.AsyncOpenAI(
        base_url=f"{service.base_url}/v1", api_key=user.key["key"], max_retries=3, http_client=http_client
    ) as client:
        with pytest.raises(openai.RateLimitError, match="You exceeded your current quota") as error:
            await client.chat.completions.create(model=model, messages=[{"role": "user", "content": "more"}])
    assert error.value.code == "insufficient_quota"
    assert len(answers) == 1
    assert provider.calls_for(model) == []


async def test_jobs_in_flight_are_those_whose_clients_wait(
    service: Service, provider: Provider, new: New, model: str, held: Gate
) -> None:
    user = new("--in-flight", "2", "--queued", "1")
    waiting = asyncio.create_task(ask(user.client, model))
    async with connect(service, user.key["key"]) as leaving:
        left = asyncio.create_task(ask(leaving, model))
        await provider.call(model, 2)
        refused(await ask(user.client, model, stream=True), 429, code="rate_limit_exceeded")
        background = await submit(user.client, model)
        refused(await ask(user.client, model, background=True), 429, code="rate_limit_exceeded")
        await leave(left)

    async def let_in() -> bool:
        response = await ask(user.client, "absent")
        return response.status_code == 502

    await eventually(let_in, "the place of a client that went away")
    held.release()
    assert (await waiting).status_code == 200
    assert (await ask(user.client, model)).status_code == 200
    await completed(user.client, background)

    async def again() -> bool:
        return (await ask(user.client, model, background=True)).status_code == 202

    await eventually(again, "the place of a background job that has ended")


async def test_background_jobs_beyond_a_rate_wait_if_the_key_says_so(new: New, provider: Provider, model: str) -> None:
    user = new("--rpm", "1", "--wait")
    first = await submit(user.client, model)
    second = await submit(user.client, model)
    await completed(user.client, first)
    assert (await get(user.client, second))["status"] == "queued"
    assert len(provider.calls_for(model)) == 1
    refused(await ask(user.client, model), 429, code="rate_limit_exceeded")
    assert (await user.client.post(f"/jobs/{second}/cancel")).json()["status"] == "cancelled"


async def test_an_accounts_limits_hold_for_all_its_keys(service: Service, new: New, model: str) -> None:
    account = f"limited-{secrets.token_hex(4)}"
    users = [new("--rpm", "10", account=account) for _ in range(2)]
    service.run("keys", "limit-account", account, "--rpm", "3")

    async def known() -> bool:  # within a second, in every process
        limits = (await users[0].client.get("/account")).json()["limits"]
        response = await ask(users[0].client, "absent")
        return bool(limits) and response.headers.get("x-ratelimit-limit-requests") == "3"

    await eventually(known, "the account's limit")
    statuses = [(await ask(user.client, model)).status_code for user in users * 2]
    assert statuses[-1] == 429
    assert sum(status == 200 for status in statuses) <= 2


async def test_only_allowed_models_are_there(new: New, model: str, client: httpx.AsyncClient) -> None:
    agent = (await client.post("/agents", json={"name": "a", "model": model})).json()["id"]
    user = new("--model", f"{model}*", "--model", agent, account="default")
    assert {found["id"] for found in (await user.client.get("/models")).json()["data"]} == {agent}
    assert (await user.client.get(f"/models/{model}")).status_code == 200
    refused(await user.client.get("/models/renamed"), 404, code="model_not_found", param="model")
    refused(await ask(user.client, "renamed"), 404, code="model_not_found", param="model")
    refused(await ask(user.client, model, fallbacks=["renamed"]), 404, code="model_not_found", param="fallbacks[0]")
    refused(await ask(user.client, "renamed", background=True), 404, code="model_not_found", param="model")
    for name in (model, f"{model}-2", agent):
        assert (await ask(user.client, name)).status_code == 200
    batch = await batches.submit(user.client, [line("a", model), line("b", "renamed")])
    batch = await batches.reaches(user.client, batch["id"], "failed")
    problem = batch["errors"]["data"][0]
    assert (problem["line"], problem["code"], problem["param"]) == (2, "model_not_found", "body.model")


async def test_an_agent_leads_to_no_model_that_its_maker_may_not_ask(
    client: httpx.AsyncClient, new: New, model: str
) -> None:
    user = new("--model", f"{model}*", account="default")
    hidden = {"name": "a", "model": "renamed"}
    detour = {"name": "a", "model": model, "parameters": {"fallbacks": [f"{model}-2", "renamed"]}}
    refused(await user.client.post("/agents", json=hidden), 404, code="model_not_found", param="model")
    refused(
        await user.client.post("/agents", json=detour), 404, code="model_not_found", param="parameters.fallbacks[1]"
    )
    made = await user.client.post("/agents", json={"name": "a", "model": model})
    assert made.status_code == 200
    agent = f"/agents/{made.json()['id']}"
    for changes in (hidden, detour):
        refused(await user.client.post(agent, json=changes), 404, code="model_not_found")
    assert (await user.client.post(agent, json={"model": f"{model}-2"})).status_code == 200
    # A key that may use a hidden model points the agent there: a key that may not can change no field of the agent.
    assert (await client.post(agent, json=hidden)).status_code == 200
    refused(await user.client.post(agent, json={"bio": "b"}), 404, code="model_not_found", param="model")


async def looked_at(new: New, model: str) -> None:
    """Return when the scheduler has looked at every batch a few times: it has run one of another account."""
    client = new().client
    batch = await batches.submit(client, [line("a", f"{model}-other")])
    await batches.reaches(client, batch["id"], "completed")


async def test_a_request_that_a_limit_refuses_for_good_claims_no_key(new: New, provider: Provider, model: str) -> None:
    provider.always(model, answer("ok"))
    user, unpriced = new("--tpm", "500", "--daily-budget", "1"), f"either-{model}"
    for refused_model, code in ((model, "rate_limit_exceeded"), (unpriced, "model_not_priced")):
        user.client.headers["idempotency-key"] = f"{model}-{code}"
        response = await ask(user.client, refused_model)
        refused(response, response.status_code, code=code)
        assert response.headers["x-should-retry"] == "false"
        assert (await ask(user.client, model, max_completion_tokens=10)).status_code == 200


async def test_under_a_budget_a_model_has_a_price(new: New, provider: Provider, model: str) -> None:
    user, free, unpriced = new("--daily-budget", "1"), new(), f"either-{model}"
    provider.always(unpriced, answer("ok"))
    assert (await ask(free.client, unpriced)).status_code == 200
    refused(await ask(user.client, unpriced), 400, code="model_not_priced", param="model")
    refused(await ask(user.client, model, fallbacks=[unpriced]), 400, code="model_not_priced", param="fallbacks[0]")
    agent = (await user.client.post("/agents", json={"name": "a", "model": unpriced})).json()["id"]
    refused(await ask(user.client, agent), 400, code="model_not_priced", param="model")
    batch = await batches.submit(user.client, [line("a", model), line("b", unpriced), line("c", agent)])
    failed = await batches.reaches(user.client, batch["id"], "failed")
    errors = failed["errors"]["data"]
    assert [(error["line"], error["code"], error["param"]) for error in errors] == [
        (number, "model_not_priced", "body.model") for number in (2, 3)
    ]
    assert len(provider.calls_for(unpriced)) == 1


async def test_lines_of_batches_wait_for_the_rates_of_their_key(new: New, provider: Provider, model: str) -> None:
    provider.always(model, answer("ok", usage=USED))
    user = new("--rpm", "3", "--queued", "1")
    begun = time.monotonic()
    batch = await batches.submit(user.client, lines(model, 10))

    async def some_ended() -> bool:
        counts = (await user.client.get(f"/batches/{batch['id']}")).json()["request_counts"]
        return bool(counts["completed"] >= 3)

    await eventually(some_ended, "as many lines as a minute has requests")
    await looked_at(new, model)

    async def refusal() -> httpx.Response | None:
        response = await ask(user.client, model)
        return response if response.status_code == 429 else None  # it is let in where a minute is over

    answered = await eventually(refusal, "a request to be refused")
    assert answered is not None
    refused(answered, 429, code="rate_limit_exceeded")
    calls, minutes = len(provider.calls_for(model)), 1 + int(time.monotonic() - begun) // 60
    assert 3 <= calls <= 3 * minutes
    unbound = new()
    other = await batches.submit(unbound.client, lines(f"{model}-other", 10))
    await batches.reaches(unbound.client, other["id"], "completed")
    await batches.cancel(user.client, batch["id"])


async def test_batches_of_all_keys_share_the_accounts_budget(
    service: Service, provider: Provider, new: New, model: str
) -> None:
    provider.always(model, answer("ok", usage=USED))
    account = f"limited-{secrets.token_hex(4)}"
    users = [new(account=account) for _ in range(2)]
    service.run("keys", "limit-account", account, "--monthly-budget", "0.1")
    submitted = [await batches.submit(user.client, lines(model, 30)) for user in users]

    async def used_up() -> bool:
        return await users[0].cost() + await users[1].cost() >= Decimal("0.1")

    await eventually(used_up, "the budget to be spent")
    await looked_at(new, model)
    assert len(provider.calls_for(model)) == 10, "what goes into it, and the one that goes over it"
    for user, batch in zip(users, submitted, strict=True):
        await batches.cancel(user.client, batch["id"])


async def test_a_batch_waits_while_a_budget_is_spent(provider: Provider, new: New, model: str) -> None:
    provider.always(model, answer("ok", usage=USED))
    account = f"limited-{secrets.token_hex(4)}"
    user, owner = new("--daily-budget", "0.0102", account=account), new("--scope", "keys:write", account=account)
    assert (await ask(user.client, model)).status_code == 200

    async def spent() -> bool:  # as the ledger's sums know, a moment later
        return await user.cost() == COST

    await eventually(spent, "the sums of the ledger")
    refused(await ask(user.client, model), 429, code="insufficient_quota")
    key = f"/api-keys/{user.key['id']}"
    assert (await owner.client.post(key, json={"limits": {"daily_budget": "0.01"}})).status_code == 200
    batch = await batches.submit(user.client, lines(model, 50))
    await batches.reaches(user.client, batch["id"], "in_progress")
    await looked_at(new, model)
    assert len(provider.calls_for(model)) == 1
    assert (await owner.client.post(key, json={"limits": {"daily_budget": "0.2"}})).status_code == 200

    async def used_up() -> bool:
        return await user.cost() >= Decimal("0.2")

    await eventually(used_up, "the larger budget to be spent")
    await looked_at(new, model)
    assert len(provider.calls_for(model)) == 20, "what goes into it, and the one that goes over it"
    assert (await owner.client.post(key, json={"limits": {"daily_budget": "1"}})).status_code == 200
    batch = await batches.reaches(user.client, batch["id"], "completed")
    assert batch["request_counts"]["completed"] == 50


async def test_a_budget_that_is_spent_sends_alerts(provider: Provider, new: New, model: str) -> None:
    provider.always(model, answer("ok", usage=USED))
    with running_receiver() as receiver:
        user = new("--daily-budget", "0.02", "--alert-webhook", receiver.url, "--scope", "webhooks:write")
        assert (await ask(user.client, model)).status_code == 200

        async def told() -> bool:
            return bool(receiver.messages)

        await eventually(told, "the alert")
        secret = (await user.client.get("/webhook-secrets")).json()["data"][0]["secret"]
    (message,) = receiver.messages
    event = Webhook(secret).verify(message.body, message.headers)
    assert event["type"] == "budget.alert"
    assert event["data"] == {
        "id": user.key["id"],
        "budget": "daily_budget",
        "period": event["data"]["period"],
        "percent": 50,
        "spent": str(COST),
        "limit": "0.02",
    }


async def test_without_redis_limits_are_open_or_closed(
    tmp_path: Path, config: str, provider: Provider, model: str
) -> None:
    with embedded_stores() as stores, running_service(tmp_path, stores, config) as alone:
        key = alone.create_key("limited", "--rpm", "3")["key"]
        async with (
            connect(alone, BOOTSTRAP_KEY) as free,
            connect(alone, key) as let_in,
            second_api(alone, key, HEADRACE_LIMITS_WITHOUT_REDIS="closed") as kept_out,
        ):
            statuses = [(await ask(client, model)).status_code for client in (let_in, kept_out, let_in, kept_out)]
            assert statuses == [200, 200, 200, 429]
            stores.valkey.stop()
            for _ in range(4):
                assert (await ask(let_in, model, background=True)).status_code == 202
                response = await ask(kept_out, model, background=True)
                refused(response, 503)
                assert int(response.headers["retry-after"]) > 0
            assert (await ask(free, model, background=True)).status_code == 202
            stores.valkey.start()

            async def back() -> object:
                return (await ask(kept_out, model)).headers.get("x-ratelimit-limit-requests") == "3"

            await eventually(back, "the limits")
