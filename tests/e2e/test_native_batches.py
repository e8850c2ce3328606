"""Batches that go to a provider's own batch API, and come back as if they had been run here."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal

import httpx
import psycopg
import pytest
from psycopg.rows import DictRow

from tests.e2e.batches import get, line, lines, output, reaches, submit, text_of
from tests.fakes.provider import Gate, Json, Provider, answer, status, usage_of
from tests.service import BOOTSTRAP_KEY, Service, Stores, connect, looking_at_rows, running_service
from tests.waiting import eventually

QUICK = {"HEADRACE_NATIVE_POLL_SECONDS": "0.2"}


@pytest.fixture(scope="module")
def shared_desk(
    tmp_path_factory: pytest.TempPathFactory, stores: Stores, config: str, provider: Provider
) -> Iterator[Service]:
    """A service some of whose routes are to providers with batch APIs."""
    native = "".join(
        f'''
[providers.{name}]
kind = "{kind}"
base_url = "{provider.url()}"
api_key = "env:TESTS_PROVIDER_KEY"

[models."{name}-*"]
routes = [{{ route = "{name}/*", native_batch = true }}]
input_price = 2.00
output_price = 8.00
'''
        for name, kind in (("native-openai", "openai"), ("native-anthropic", "anthropic"))
    )
    directory = tmp_path_factory.mktemp("native")
    with running_service(directory, stores.fresh(), config + native, environment=QUICK) as service:
        yield service


@pytest.fixture
def desk(shared_desk: Service) -> Service:
    shared_desk.restore()
    return shared_desk


@pytest.fixture
async def native_client(desk: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(desk, BOOTSTRAP_KEY) as client:
        yield client


@pytest.fixture
async def rows(desk: Service) -> AsyncIterator[psycopg.AsyncConnection[DictRow]]:
    async with looking_at_rows(desk.stores) as connection:
        yield connection


@pytest.fixture(params=["native-openai", "native-anthropic"])
def native_model(request: pytest.FixtureRequest, model: str) -> str:
    """A model of this test's own, at each provider with a batch API."""
    return f"{request.param}-{model}"


def custom_ids(results: list[Json]) -> list[str]:
    return [result["custom_id"] for result in results]


async def test_a_batch_comes_back_as_if_it_had_been_run_here_at_half_the_price(
    native_client: httpx.AsyncClient, provider: Provider, native_model: str
) -> None:
    provider.native.plan(native_model, running=2)
    batch = await submit(native_client, lines(native_model, 5))
    done = await reaches(native_client, batch["id"], "completed")
    assert done["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    results = await output(native_client, done["output_file_id"])
    assert custom_ids(results) == [f"r{number}" for number in range(1, 6)]
    assert [text_of(result) for result in results] == [f"You said: say {number}" for number in range(1, 6)]
    assert len(provider.native.batches_for(native_model)) == 1
    usage = done["usage"]
    whole = Decimal(2) * usage["input_tokens"] + Decimal(8) * usage["output_tokens"]
    assert Decimal(done["cost"]) == whole / 1_000_000 / 2
    jobs = (await native_client.get("/jobs", params={"batch_id": done["id"]})).json()["data"]
    assert len(jobs) == 5
    for job in jobs:
        assert (job["status"], job["attempt"]) == ("completed", 1)
        assert job["result"]["id"] == "chatcmpl-" + job["id"].removeprefix("job_")
        assert [(tried["status"], tried["provider"]) for tried in job["attempts"]] == [("completed", job["provider"])]


async def test_calls_of_a_line_have_ids_that_its_conversation_does_not_have(
    native_client: httpx.AsyncClient, provider: Provider, native_model: str
) -> None:
    called = {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    history = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_0", "content": "Nothing."},
    ]
    again = answer("", message={"tool_calls": [called]}, calls=[("call_0", "look", {})], finish="tool_calls")
    provider.script(native_model, again)
    batch = await submit(native_client, [line("r1", native_model, messages=history)])
    done = await reaches(native_client, batch["id"], "completed")
    [result] = await output(native_client, done["output_file_id"])
    [call] = result["response"]["body"]["choices"][0]["message"]["tool_calls"]
    assert (call["type"], call["function"]) == ("function", called["function"])
    assert call["id"] != "call_0"


async def test_a_line_that_fails_there_fails_here(
    native_client: httpx.AsyncClient, provider: Provider, native_model: str
) -> None:
    provider.script(native_model, status(400))
    batch = await submit(native_client, lines(native_model, 1))
    done = await reaches(native_client, batch["id"], "completed")
    assert done["request_counts"] == {"total": 1, "completed": 0, "failed": 1}
    [failed] = await output(native_client, done["error_file_id"])
    assert failed["response"]["status_code"] == 400


async def test_lines_that_it_never_came_to_are_run_here(
    native_client: httpx.AsyncClient, provider: Provider, native_model: str
) -> None:
    provider.native.plan(native_model, expired={1, 3})
    batch = await submit(native_client, lines(native_model, 5))
    done = await reaches(native_client, batch["id"], "completed")
    assert custom_ids(await output(native_client, done["output_file_id"])) == [f"r{n}" for n in range(1, 6)]
    called = [json.dumps(call.body["messages"]) for call in provider.calls_for(native_model)]
    assert all(any(f'"say {number}"' in messages for messages in called) for number in (2, 4))


@pytest.mark.parametrize("fault", [400, 403, 404])
async def test_a_batch_that_is_refused_is_run_here(
    native_client: httpx.AsyncClient, provider: Provider, native_model: str, fault: int
) -> None:
    provider.native.script(native_model, "create", fault)
    batch = await submit(native_client, lines(native_model, 5))
    done = await reaches(native_client, batch["id"], "completed")
    assert custom_ids(await output(native_client, done["output_file_id"])) == [f"r{n}" for n in range(1, 6)]
    assert provider.native.batches_for(native_model) == []
    assert len(provider.calls_for(native_model)) == 5
    usage = done["usage"]
    whole = Decimal(2) * usage["input_tokens"] + Decimal(8) * usage["output_tokens"]
    assert Decimal(done["cost"]) == whole / 1_000_000


async def test_no_more_is_handed_over_than_a_budget_pays_for(
    desk: Service, native_client: httpx.AsyncClient, provider: Provider, native_model: str
) -> None:
    """A line of 1,000 tokens may cost 0.004 USD, half the price, and a little for its prompt: at 10 tokens, 0.00401."""
    gate = Gate()
    provider.native.plan(native_model, hold=gate)
    provider.always(native_model, answer(usage=usage_of(10, 1000)))
    key = desk.create_key(f"frugal-{native_model}", "--daily-budget", "0.02")
    async with connect(desk, key["key"]) as client:
        batch = await submit(client, lines(native_model, 10, max_tokens=1000))

        async def there() -> bool:
            return bool(provider.native.batches_for(native_model))

        await eventually(there, "the provider to have a part of it")
        other = await submit(native_client, lines(f"{native_model}-other", 1))
        assert [len(part.lines) for part in provider.native.batches_for(native_model)] == [4]
        gate.release()

        async def ended() -> bool:
            return bool((await get(client, batch["id"]))["request_counts"]["completed"] == 5)

        await eventually(ended, "what is left to be spent on one more")
        await reaches(native_client, other["id"], "completed")
        assert [len(part.lines) for part in provider.native.batches_for(native_model)] == [4, 1]
        desk.run("keys", "update", key["id"], "--daily-budget", "1")
        done = await reaches(client, batch["id"], "completed")
    assert Decimal(done["cost"]) == 10 * Decimal("0.00401")


async def test_a_short_window_is_run_here(
    native_client: httpx.AsyncClient, provider: Provider, native_model: str
) -> None:
    batch = await submit(native_client, lines(native_model, 2), completion_window="1h")
    await reaches(native_client, batch["id"], "completed")
    assert provider.native.batches_for(native_model) == []


async def test_lines_of_several_models_are_run_here(
    native_client: httpx.AsyncClient, provider: Provider, native_model: str
) -> None:
    batch = await submit(native_client, [line("a", native_model), line("b", f"{native_model}-too")])
    await reaches(native_client, batch["id"], "completed")
    assert provider.native.batches_for(native_model) == []


async def test_a_cancelled_batch_has_what_was_done_there(
    native_client: httpx.AsyncClient, provider: Provider, native_model: str
) -> None:
    gate = Gate()
    provider.native.plan(native_model, hold=gate, done=2)
    batch = await submit(native_client, lines(native_model, 4))

    async def there() -> bool:
        return bool(provider.native.batches_for(native_model))

    await eventually(there, "the provider to have it")
    assert (await get(native_client, batch["id"]))["status"] == "in_progress"
    await native_client.post(f"/batches/{batch['id']}/cancel")
    done = await reaches(native_client, batch["id"], "cancelled")
    answered = custom_ids(await output(native_client, done["output_file_id"]))
    unrun = await output(native_client, done["error_file_id"])
    assert answered == ["r1", "r2"]
    assert custom_ids(unrun) == ["r3", "r4"]
    assert {result["error"]["code"] for result in unrun} == {"batch_cancelled"}


async def test_a_scheduler_that_dies_hands_nothing_over_twice(
    desk: Service, native_client: httpx.AsyncClient, provider: Provider, native_model: str
) -> None:
    gate = Gate()
    provider.native.plan(native_model, hold=gate)
    batch = await submit(native_client, lines(native_model, 20))

    async def there() -> bool:
        return bool(provider.native.batches_for(native_model))

    await eventually(there, "the provider to have it")
    desk.processes["scheduler"].kill()
    desk.launch("scheduler")
    gate.release()
    done = await reaches(native_client, batch["id"], "completed")
    assert custom_ids(await output(native_client, done["output_file_id"])) == [f"r{n}" for n in range(1, 21)]
    if "openai" in native_model:  # Anthropic's has nothing to find a batch by
        assert len(provider.native.batches_for(native_model)) == 1


async def test_failures_that_pass_only_delay_it(
    native_client: httpx.AsyncClient, provider: Provider, native_model: str
) -> None:
    provider.native.script(native_model, "poll", 500)
    batch = await submit(native_client, lines(native_model, 3))
    done = await reaches(native_client, batch["id"], "completed")
    assert done["request_counts"]["completed"] == 3
    assert len(provider.native.batches_for(native_model)) == 1
