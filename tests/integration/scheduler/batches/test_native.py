"""Native batches that the scheduler runs in this process, at the fake provider. No worker runs any line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from headrace.batches.parcels import run_here
from headrace.batches.queries import NewBatch, cancel_batch, create_batch
from headrace.batches.state import BatchState
from headrace.catalogue.file import CatalogueFile
from headrace.dev.valkey import EmbeddedValkey
from headrace.ids import new_id
from headrace.providers.batch_apis import openai as openai_batches
from headrace.runtime.chores import going_on
from headrace.settings import Settings
from headrace.stores.connections import Row
from headrace.stores.database import Database, execute
from headrace.telemetry.metrics import ATTEMPTS, BATCH_LINES, BATCHES_ENDED, COST, JOBS_ENDED, PARCELS, TOKENS
from scheduler.batches import native
from scheduler.batches.runner import BatchRunner
from scheduler.lookout import Lookout
from tests.e2e.batches import jsonl, lines
from tests.fakes.native_provider import LOSE, Plan
from tests.fakes.provider import Gate as Barrier
from tests.fakes.provider import Provider, answer, status, usage_of
from tests.integration.batches.test_queries import get, store
from tests.integration.databases import Session
from tests.integration.job_rows import Owner
from tests.integration.scheduler.batches.runners import CONNECTIONS, Launch, batch_runner
from tests.metrics import Rise
from tests.waiting import eventually

CATALOGUE = """
[providers.native]
kind = "openai"
base_url = "{url}"
api_key = "sk-tests"

[models."{model}"]
routes = [{{ route = "native/{model}", native_batch = true }}]
input_price = 2.00
output_price = 8.00
"""


# Seconds after which no test looks: a parcel that waits so long is not due again.
NEVER = 86_400


@pytest.fixture
def config(tmp_path: Path, provider: Provider, model: str) -> Path:
    """The configuration: a provider that has a batch API."""
    path = tmp_path / "headrace.toml"
    path.write_text(CATALOGUE.format(url=provider.url(), model=model))
    return path


def take_batch_api(config: Path) -> None:
    """Have the configuration's route no longer go to a batch API."""
    config.write_text(config.read_text().replace("native_batch = true", "native_batch = false"))


def add_provider(config: Path, name: str, url: str, model: str) -> None:
    """Have the configuration name one more provider, with a model."""
    more = CATALOGUE.replace("native/", f"{name}/").replace("providers.native", f"providers.{name}")
    config.write_text(config.read_text() + more.format(url=url, model=model))


def change(config: Path, text: str, new: str) -> None:
    """Replace a text in the configuration, such as the URL of a provider."""
    config.write_text(config.read_text().replace(text, new))


@pytest.fixture
async def launch(database: Database, database_url: str, valkey: EmbeddedValkey, config: Path) -> Launch:
    """What makes the scheduler's batches, on a database without those that another test has left."""
    await execute(database.durable, "DELETE FROM batches")

    def launched(**changes: Any) -> AbstractAsyncContextManager[BatchRunner]:
        options: dict[str, Any] = {
            "DATABASE_URL": database_url,
            "REDIS_URL": valkey.url,
            "config": config,
            "native_poll_seconds": 0.05,
        }
        return batch_runner(Settings(**options | changes), CatalogueFile(config, demo=False), database)

    return launched


@pytest.fixture
async def runner(launch: Launch) -> AsyncIterator[BatchRunner]:
    """The scheduler's batches."""
    async with launch() as runner:
        yield runner


@pytest.fixture
def small_parcels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch API that takes two lines at a time."""
    monkeypatch.setattr(openai_batches, "MOST_LINES", 2)


async def submit(database: Database, owner: Owner, data: bytes) -> str:
    """Create a batch with a day's time, and return its id."""
    batch_id = new_id("batch")
    new = NewBatch(
        id=batch_id,
        account_id=owner.account_id,
        key_id=owner.key_id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        seconds=86_400,
        input_file_id=await store(database, owner, data),
        output_seconds=None,
        metadata=None,
        webhook=None,
    )
    assert await create_batch(database, new, most=1000)
    return batch_id


@asynccontextmanager
async def at_work(runner: BatchRunner, database: Database) -> AsyncIterator[None]:
    """Have the scheduler move batches on meanwhile."""
    lookout = Lookout(database)
    async with going_on(lookout.run, partial(runner.run, lookout.batches)):
        yield


async def end(database: Database, owner: Owner, batch_id: str) -> Row:
    """Wait until a batch has ended, and return it."""

    async def ended() -> Row | None:
        row = await get(database, owner, batch_id)
        return row if BatchState(row.state).is_final else None

    return await eventually(ended, "the batch's end")


async def run(runner: BatchRunner, database: Database, owner: Owner, data: bytes) -> BatchState:
    """Run a batch to its end, and return its end state."""
    batch_id = await submit(database, owner, data)
    async with at_work(runner, database):
        return BatchState((await end(database, owner, batch_id)).state)


async def pass_rounds(database: Database, owner: Owner) -> None:
    """Wait until the scheduler has looked at all batches some times more."""
    for _ in range(4):
        await end(database, owner, await submit(database, owner, json.dumps({"custom_id": "r1"}).encode()))


async def become(database: Database, batch_id: str, **wanted: str) -> None:
    """Wait until each of these lines is a job in its state."""

    async def are() -> bool:
        query = "SELECT custom_id, state FROM jobs WHERE batch_id = %(id)s"
        states = {row.custom_id: row.state for row in await execute(database.relaxed, query, {"id": batch_id})}
        return wanted.items() <= states.items()

    await eventually(are, f"the lines to be {wanted}")


async def has_parcels(provider: Provider, model: str, count: int) -> None:
    """Wait until the provider has so many parcels."""
    await eventually(lambda: len(provider.native.batches_for(model)) == count, f"the provider to have {count} parcels")


async def test_its_lines_count_as_the_jobs_of_a_worker_do(
    runner: BatchRunner, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    usage = usage_of(100, 20)
    provider.script(model, answer("One.", usage=usage), answer("Two.", usage=usage), status(400))
    fed, batches, parcels = Rise(BATCH_LINES), Rise(BATCHES_ENDED), Rise(PARCELS)
    ended, attempts, tokens, cost = Rise(JOBS_ENDED), Rise(ATTEMPTS), Rise(TOKENS), Rise(COST)
    provider.native.script(model, "poll", 500)
    assert await run(runner, database, owner, jsonl(lines(model, 3))) is BatchState.COMPLETED
    assert fed() == {(): 3}
    assert batches() == {("completed",): 1}
    assert parcels() == {("native", "submitted"): 1, ("native", "retried"): 1, ("native", "ended"): 1}
    assert ended() == {("completed", "batch", model): 2, ("failed", "batch", model): 1}
    route = f"native/{model}"
    assert attempts() == {("native", model, "completed", route): 2, ("native", model, "failed", route): 1}
    assert tokens() == {("input", model): 200, ("output", model): 40}
    assert cost() == {(model,): pytest.approx((200 * 2 + 40 * 8) / 1_000_000 / 2)}


async def test_a_parcel_that_the_provider_refuses_is_given_up(
    runner: BatchRunner, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    provider.native.script(model, "create", 403)
    parcels = Rise(PARCELS)
    await submit(database, owner, jsonl(lines(model, 2)))
    async with at_work(runner, database):
        await eventually(lambda: parcels() == {("native", "given_up"): 1}, "the parcel to be given up")


@pytest.mark.parametrize("fault", [401, 500])
async def test_a_parcel_that_the_provider_has_waits_for_calls_to_succeed(
    runner: BatchRunner, database: Database, owner: Owner, provider: Provider, model: str, fault: int
) -> None:
    """Its lines are paid for, and to run them again would cost twice as much."""
    provider.native.script(model, "poll", *[fault] * 8)
    parcels = Rise(PARCELS)
    assert await run(runner, database, owner, jsonl(lines(model, 2))) is BatchState.COMPLETED
    assert parcels() == {("native", "submitted"): 1, ("native", "retried"): 8, ("native", "ended"): 1}


async def test_a_parcel_that_the_provider_does_not_know_any_more_is_cancelled_and_given_up(
    runner: BatchRunner, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    provider.native.plan(model, hold=Barrier())
    provider.native.script(model, "poll", 404)
    parcels = Rise(PARCELS)
    await submit(database, owner, jsonl(lines(model, 2)))
    async with at_work(runner, database):
        await eventually(lambda: ("native", "given_up") in parcels(), "the parcel to be given up")
    assert [batch.cancelled for batch in provider.native.batches_for(model)] == [True]


async def test_a_parcel_is_done_only_when_it_holds_no_line(
    runner: BatchRunner, database: Database, owner: Owner, provider: Provider, model: str, other_session: Session
) -> None:
    provider.native.plan(model, hold=Barrier())
    batch_id = await submit(database, owner, jsonl(lines(model, 2)))
    async with at_work(runner, database):
        await has_parcels(provider, model, 1)
        await become(database, batch_id, r1="running", r2="running")
        await other_session.execute("SELECT FROM jobs WHERE custom_id = 'r2' FOR UPDATE")
        await cancel_batch(database, batch_id, owner.account_id)
        await become(database, batch_id, r1="cancelled", r2="running")
        await pass_rounds(database, owner)
        await other_session.rollback()
        row = await end(database, owner, batch_id)
    assert (row.state, row.cancelled) == (BatchState.CANCELLED, 2)


@pytest.mark.usefixtures("small_parcels")
async def test_other_parcels_of_a_batch_come_back_after_one_is_given_up(
    launch: Launch, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    provider.native.plan(model, hold=(held := Barrier()))
    provider.native.script(model, "create", 0, 403)
    parcels = Rise(PARCELS)
    batch_id = await submit(database, owner, jsonl(lines(model, 5)))
    # The window has no room for the lines that the provider has beside the others.
    async with launch(batch_window=3) as runner, at_work(runner, database):
        await become(database, batch_id, r1="running", r2="running", r3="queued", r4="queued", r5="queued")
        held.release()
        await become(database, batch_id, r1="completed", r2="completed", r3="queued", r4="queued", r5="queued")
        await eventually(lambda: ("native", "ended") in parcels(), "the parcel to be done")
    assert parcels() == {("native", "submitted"): 1, ("native", "given_up"): 1, ("native", "ended"): 1}
    assert len(provider.native.requests_for(model, "create")) == 2
    row = await get(database, owner, batch_id)
    assert (row.completed, row.failed, row.cancelled, row.fed) == (2, 0, 0, 5)


@pytest.mark.usefixtures("small_parcels")
async def test_lines_that_come_back_make_no_room_for_others(
    launch: Launch, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    provider.native.plan(model, hold=Barrier())
    provider.native.script(model, "create", 0, 0, 403)
    batch_id = await submit(database, owner, jsonl(lines(model, 12)))
    async with launch(batch_window=3) as runner, at_work(runner, database):
        await become(database, batch_id, r3="running", r5="queued", r6="queued", r7="queued")
        provider.native.batches_for(model)[0].plan = Plan()
        await become(database, batch_id, r1="completed", r2="completed", r3="running")
        await pass_rounds(database, owner)
    assert (await get(database, owner, batch_id)).fed == 7


@pytest.mark.usefixtures("small_parcels")
async def test_a_batch_with_a_parcel_given_up_has_what_was_done_before_it_was_cancelled(
    runner: BatchRunner, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    provider.native.plan(model, hold=Barrier(), done=1)
    provider.native.script(model, "create", 0, 403)
    batch_id = await submit(database, owner, jsonl(lines(model, 4)))
    async with at_work(runner, database):
        await become(database, batch_id, r1="running", r2="running", r3="queued", r4="queued")
        await cancel_batch(database, batch_id, owner.account_id)
        row = await end(database, owner, batch_id)
    assert (row.state, row.completed, row.cancelled) == (BatchState.CANCELLED, 1, 3)


@pytest.mark.usefixtures("small_parcels")
async def test_after_a_parcel_that_fails_no_other_is_opened(
    launch: Launch, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    provider.native.plan(model, invalid=[{"code": "no", "message": "No."}])
    batch_id = await submit(database, owner, jsonl(lines(model, 5)))
    # A parcel is due at once, so the next round looks at the first one before it opens another.
    async with launch(native_poll_seconds=1e-6) as runner, at_work(runner, database):
        await become(database, batch_id, **{f"r{number}": "queued" for number in range(1, 6)})
    assert len(provider.native.batches_for(model)) == 1


async def test_a_parcel_of_a_batch_that_workers_run_comes_back(
    runner: BatchRunner, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    """As after a scheduler that dies while it gives a parcel up."""
    provider.native.plan(model, hold=(held := Barrier()))
    batch_id = await submit(database, owner, jsonl(lines(model, 2)))
    async with at_work(runner, database):
        await has_parcels(provider, model, 1)
        await run_here(database, batch_id)
        await run_here(database, batch_id)
        held.release()
        row = await end(database, owner, batch_id)
    assert (row.state, row.completed) == (BatchState.COMPLETED, 2)


@pytest.mark.usefixtures("small_parcels")
async def test_parcels_whose_route_is_gone_are_given_up(
    launch: Launch, config: Path, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    provider.native.plan(model, hold=Barrier())
    batch_id = await submit(database, owner, jsonl(lines(model, 4)))
    async with launch() as runner, at_work(runner, database):
        await has_parcels(provider, model, 2)
        await become(database, batch_id, r3="running", r4="running")
    take_batch_api(config)
    parcels = Rise(PARCELS)
    async with launch(native_poll_seconds=NEVER) as runner, at_work(runner, database):
        await become(database, batch_id, r1="queued", r2="queued", r3="queued", r4="queued")
        await eventually(lambda: parcels() == {("native", "given_up"): 2}, "the parcels to be given up")


async def test_a_parcel_whose_route_is_not_known_is_given_up(
    runner: BatchRunner, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    """As after the previous release has given up another parcel of its batch."""
    provider.native.plan(model, hold=Barrier())
    batch_id = await submit(database, owner, jsonl(lines(model, 2)))
    async with at_work(runner, database):
        await has_parcels(provider, model, 1)
        query = "UPDATE batches SET native_route = NULL WHERE id = %(id)s"
        await execute(database.durable, query, {"id": batch_id})
        await become(database, batch_id, r1="queued", r2="queued")


async def test_a_cancellation_reaches_the_provider_at_once(
    launch: Launch, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    provider.native.plan(model, hold=Barrier(), done=1)
    batch_id = await submit(database, owner, jsonl(lines(model, 2)))
    async with launch(native_poll_seconds=NEVER) as runner, at_work(runner, database):
        await has_parcels(provider, model, 1)
        await cancel_batch(database, batch_id, owner.account_id)
        row = await end(database, owner, batch_id)
    assert (row.state, row.completed, row.cancelled) == (BatchState.CANCELLED, 1, 1)
    assert len(provider.native.requests_for(model, "poll")) == 1


async def test_a_cancelled_batch_is_asked_for_again_only_when_it_is_due(
    launch: Launch, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    provider.native.plan(model, hold=Barrier())
    provider.native.script(model, "poll", *[500] * 10)
    parcels = Rise(PARCELS)
    batch_id = await submit(database, owner, jsonl(lines(model, 2)))
    async with launch(native_poll_seconds=NEVER) as runner, at_work(runner, database):
        await has_parcels(provider, model, 1)
        await cancel_batch(database, batch_id, owner.account_id)
        await eventually(lambda: ("native", "retried") in parcels(), "the first poll to fail")
        await pass_rounds(database, owner)
        assert (await get(database, owner, batch_id)).state == BatchState.CANCELLING
    assert len(provider.native.requests_for(model, "poll")) == 1
    assert parcels() == {("native", "submitted"): 1, ("native", "retried"): 1}


async def test_a_provider_is_asked_to_cancel_once(
    runner: BatchRunner, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    provider.native.plan(model, hold=Barrier(), done=2)
    batch_id = await submit(database, owner, jsonl(lines(model, 3)))
    async with at_work(runner, database):
        await has_parcels(provider, model, 1)
        provider.native.script(model, "poll", 500, 500, 500)
        await cancel_batch(database, batch_id, owner.account_id)
        row = await end(database, owner, batch_id)
    assert (row.state, row.completed, row.cancelled) == (BatchState.CANCELLED, 2, 1)
    assert len(provider.native.requests_for(model, "cancel")) == 1


@pytest.mark.parametrize("fault", [400, 403, 500])
async def test_a_provider_that_does_not_cancel_is_asked_again_and_gives_its_results(
    runner: BatchRunner, database: Database, owner: Owner, provider: Provider, model: str, fault: int
) -> None:
    provider.native.plan(model, hold=Barrier(), done=2)
    provider.native.script(model, "cancel", *[fault] * 6)
    parcels = Rise(PARCELS)
    batch_id = await submit(database, owner, jsonl(lines(model, 3)))
    async with at_work(runner, database):
        await has_parcels(provider, model, 1)
        await cancel_batch(database, batch_id, owner.account_id)
        row = await end(database, owner, batch_id)
    assert (row.state, row.completed, row.cancelled) == (BatchState.CANCELLED, 2, 1)
    assert parcels() == {("native", "submitted"): 1, ("native", "ended"): 1}


@pytest.mark.parametrize("arrived", [True, False])
async def test_a_parcel_on_its_way_to_the_provider_is_cancelled_there(
    launch: Launch, database: Database, owner: Owner, provider: Provider, model: str, arrived: bool
) -> None:
    """As after a scheduler that dies while it submits the parcel."""
    provider.native.plan(model, hold=Barrier(), done=1)
    provider.native.script(model, "create", LOSE if arrived else 500)
    parcels = Rise(PARCELS)
    batch_id = await submit(database, owner, jsonl(lines(model, 2)))
    async with launch(native_poll_seconds=NEVER) as runner, at_work(runner, database):
        await eventually(lambda: parcels() == {("native", "retried"): 1}, "the answer to be lost")
    await cancel_batch(database, batch_id, owner.account_id)
    await execute(database.durable, "UPDATE native_parcels SET due_at = now()")
    async with launch() as runner, at_work(runner, database):
        row = await end(database, owner, batch_id)
    assert (row.state, row.completed, row.cancelled) == (BatchState.CANCELLED, int(arrived), 2 - int(arrived))
    assert [batch.cancelled for batch in provider.native.batches_for(model)] == [True] * arrived


@pytest.mark.usefixtures("small_parcels")
async def test_workers_get_what_the_provider_has_not_run_shortly_before_the_deadline(
    launch: Launch, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    provider.native.plan(model, hold=Barrier(), done=1)
    provider.native.script(model, "create", 0, 500)
    parcels = Rise(PARCELS)
    batch_id = await submit(database, owner, jsonl(lines(model, 6)))
    async with launch(native_poll_seconds=NEVER) as runner, at_work(runner, database):
        await eventually(lambda: ("native", "retried") in parcels(), "the second parcel to fail")
        await become(database, batch_id, r1="running", r2="running", r3="running", r4="running")
        query = "UPDATE batches SET expires_at = now() + interval '20 minutes' WHERE id = %(id)s"
        await execute(database.durable, query, {"id": batch_id})
        await become(database, batch_id, r1="completed", r2="queued", r5="queued", r6="queued")
        await execute(database.durable, "UPDATE native_parcels SET due_at = now()")
        await become(database, batch_id, r3="queued", r4="queued")
    assert len(provider.native.batches_for(model)) == len(provider.native.requests_for(model, "cancel")) == 1


async def test_a_provider_that_hangs_gets_one_parcel_at_a_time_and_no_other_waits(
    launch: Launch, config: Path, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    uploads, goes_on = 0, asyncio.Event()

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal uploads
        uploads += 1
        await goes_on.wait()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1") as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        add_provider(config, "slow", url, f"{model}-slow")
        async with launch() as runner, at_work(runner, database):
            hanging = [await submit(database, owner, jsonl(lines(f"{model}-slow", 2))) for _ in range(3)]
            await eventually(lambda: uploads, "the first upload")
            row = await end(database, owner, await submit(database, owner, jsonl(lines(model, 2))))
            assert (row.state, row.completed) == (BatchState.COMPLETED, 2)
            first, second = [one for one in hanging if not (await get(database, owner, one)).fed]
            await cancel_batch(database, first, owner.account_id)
            assert (await end(database, owner, first)).state == BatchState.CANCELLED
            assert uploads == 1
            goes_on.set()

            async def is_fed() -> bool:
                return bool((await get(database, owner, second)).fed)

            await eventually(is_fed, "the last batch to be handed over")


@asynccontextmanager
async def hanging(config: Path, url: str) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Have a provider's URL lead to a server that never answers, and give the connections that it gets."""
    connections = []

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(reader)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1") as server:
        change(config, url, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        yield connections


async def test_polls_of_a_provider_that_hangs_take_no_connection_of_another(
    launch: Launch, config: Path, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    slow, count = f"{model}-slow", CONNECTIONS + 1
    add_provider(config, "slow", provider.url("/slow"), slow)
    provider.native.plan(slow, hold=Barrier())
    parcels = Rise(PARCELS)
    async with launch(native_poll_seconds=NEVER) as runner, at_work(runner, database):
        for _ in range(count):
            await submit(database, owner, jsonl(lines(slow, 1)))
        await eventually(lambda: parcels() == {("slow", "submitted"): count}, "all parcels to be handed over")
    async with hanging(config, provider.url("/slow")) as connections, launch() as runner, at_work(runner, database):
        await eventually(lambda: len(connections) == CONNECTIONS, "all connections to the provider to be in use")
        row = await end(database, owner, await submit(database, owner, jsonl(lines(model, 2))))
        assert (row.state, row.completed) == (BatchState.COMPLETED, 2)
        assert len(connections) == CONNECTIONS


async def test_slow_results_take_no_connection_of_a_question(
    launch: Launch, config: Path, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    slow = f"{model}-slow"
    add_provider(config, "slow", provider.url("/slow"), slow)  # at the same server
    provider.native.plan(model, hold=Barrier(), done=1)
    provider.native.plan(slow, sent=(sent := Barrier()))
    parcels = Rise(PARCELS)
    async with launch() as runner, at_work(runner, database):
        cancelled = await submit(database, owner, jsonl(lines(model, 2)))
        await has_parcels(provider, model, 1)
        others = [await submit(database, owner, jsonl(lines(slow, 1))) for _ in range(CONNECTIONS)]
        await eventually(
            lambda: len(provider.native.requests_for(slow, "results")) == CONNECTIONS,
            "results to take all connections to the server",
        )
        await cancel_batch(database, cancelled, owner.account_id)
        [batch] = provider.native.batches_for(model)
        await eventually(lambda: batch.cancelled and batch.state == "ended", "the provider to be asked to cancel")
        sent.release()
        row = await end(database, owner, cancelled)
        assert (row.state, row.completed, row.cancelled) == (BatchState.CANCELLED, 1, 1)
        assert {(await end(database, owner, other)).state for other in others} == {BatchState.COMPLETED}
    assert ("native", "retried") not in parcels()


async def test_a_provider_that_answers_no_question_is_given_up_soon(
    launch: Launch,
    config: Path,
    database: Database,
    owner: Owner,
    provider: Provider,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "_ANSWER_SECONDS", 0.05)
    provider.native.script(model, "create", LOSE)
    parcels = Rise(PARCELS)
    batch_id = await submit(database, owner, jsonl(lines(model, 2)))
    async with launch(native_poll_seconds=NEVER) as runner, at_work(runner, database):
        await eventually(lambda: parcels() == {("native", "retried"): 1}, "the answer to be lost")
    async with hanging(config, provider.url()) as connections:
        change(config, "base_url", "connect_timeout = 1\nbase_url")
        async with launch() as runner, at_work(runner, database):
            await become(database, batch_id, r1="queued", r2="queued")
    assert len(connections) == 4
    assert parcels() == {("native", "retried"): 4, ("native", "given_up"): 1}


async def test_a_batch_that_is_not_valid_counts_as_failed(
    runner: BatchRunner, database: Database, owner: Owner
) -> None:
    batches = Rise(BATCHES_ENDED)
    assert await run(runner, database, owner, json.dumps({"custom_id": "r1"}).encode()) is BatchState.FAILED
    assert batches() == {("failed",): 1}
