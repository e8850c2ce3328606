"""Watching a job: its events live, replayed, resumed anywhere, by many."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

import httpx
import pytest

from tests.e2e.batches import cancel
from tests.e2e.jobs import chat, completed, ended, refused, submit
from tests.e2e.streams import FINAL, Event, EventStream, outline, text_of
from tests.fakes.provider import (
    DONE,
    Behaviour,
    Gate,
    Provider,
    answer,
    chunk,
    hang,
    settled,
    status,
    stream,
    usage_chunk,
    usage_of,
)
from tests.service import QUICK, Service
from tests.waiting import PATIENCE

CONTENT = "The wheel turns and turns."


async def read(client: httpx.AsyncClient, job_id: str, **request: dict[str, str]) -> list[Event]:
    """Return a job's events to the end of the stream; after the last one there are none, and 204."""
    async with client.stream("GET", f"/jobs/{job_id}/events", **request) as response:  # type: ignore[arg-type]
        if response.status_code == 204:
            return []
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        return await EventStream(response).rest()


def deltas(events: list[Event]) -> list[dict[str, object]]:
    return [event.data for event in events if event.name == "job.delta"]


def gated(*gates: Gate) -> Behaviour:
    """Stream three words, with a gate before each but the first."""
    words = [chunk("one"), chunk(" two"), chunk(" three")]
    script: list[object] = [chunk({"role": "assistant", "content": ""}), words[0]]
    for gate, word in zip(gates, words[1:], strict=True):
        script += [gate, word]
    return stream(*script, chunk(finish="stop"), usage_chunk(usage_of(5, 3)), DONE)


async def test_a_finished_job_is_replayed_from_its_first_event_to_its_last(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, answer(CONTENT))
    job_id = await submit(client, model)
    job = await completed(client, job_id)
    events = await read(client, job_id)
    names = [event.name for event in events]
    assert names[:2] == ["job.queued", "job.started"]
    assert set(names[2:-1]) == {"job.delta"}
    assert names[-1] == "job.completed"
    assert text_of(deltas(events)) == CONTENT
    assert events[-1].data == job
    for item in deltas(events):
        assert item["object"] == "chat.completion.chunk"
        assert item["id"] == job_id.replace("job_", "chatcmpl-")
        assert item["created"] == job["created_at"]


async def test_ids_are_attempt_and_sequence_number_and_never_repeat(client: httpx.AsyncClient, model: str) -> None:
    job_id = await submit(client, model)
    await completed(client, job_id)
    events = await read(client, job_id)
    numbers = [event.id for event in events if event.name == "job.delta"]
    assert numbers == [f"1-{number}" for number in range(1, len(numbers) + 1)]
    ids = [event.id for event in events if event.id is not None]
    assert len(set(ids)) == len(ids)


async def test_a_live_reader_sees_each_delta_while_the_upstream_is_still_at_it(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gates = Gate(), Gate()
    provider.script(model, gated(*gates))
    job_id = await submit(client, model)
    async with client.stream("GET", f"/jobs/{job_id}/events") as response:
        assert response.status_code == 200
        stream_of_events = EventStream(response)
        events: list[Event] = []
        for gate, text in ((gates[0], "one"), (gates[1], "one two")):
            while text_of(deltas(events)) != text:
                events.append(await anext(stream_of_events))
            gate.release()
        events += await stream_of_events.rest()
    assert [event.name for event in events if event.name != "job.delta"] == [
        "job.queued",
        "job.started",
        "job.completed",
    ]
    assert text_of(deltas(events)) == "one two three"
    replayed = await read(client, job_id)
    assert outline(replayed) == outline(events)
    assert deltas(replayed) == deltas(events)
    assert replayed[-1] == events[-1]


@pytest.mark.parametrize("by", ["Last-Event-ID", "after"])
async def test_resuming_a_finished_job_after_any_event_gives_exactly_the_rest(
    client: httpx.AsyncClient, provider: Provider, model: str, by: str
) -> None:
    provider.script(model, answer(CONTENT))
    job_id = await submit(client, model)
    await completed(client, job_id)
    events = await read(client, job_id)
    for position, event in enumerate(events):
        if event.id is None:
            continue
        where = {"headers": {"last-event-id": event.id}} if by == "Last-Event-ID" else {"params": {"after": event.id}}
        rest = await read(client, job_id, **where)
        assert rest == events[position + 1 :], f"after {event.id}"


async def test_a_browser_that_connects_again_gets_what_is_new_and_stops_at_the_end(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, answer(CONTENT))
    job_id = await submit(client, model)
    await completed(client, job_id)
    events = await read(client, job_id)
    again = {"params": {"after": str(events[0].id)}, "headers": {"last-event-id": str(events[-2].id)}}
    assert await read(client, job_id, **again) == events[-1:]
    again["headers"] = {"last-event-id": str(events[-1].id)}
    assert (await client.get(f"/jobs/{job_id}/events", **again)).status_code == 204  # type: ignore[arg-type]


async def test_resuming_a_running_job_after_any_event_gives_exactly_the_rest(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gates = Gate(), Gate()
    provider.script(model, gated(*gates))
    job_id = await submit(client, model)
    first: list[Event] = []
    async with client.stream("GET", f"/jobs/{job_id}/events") as response:
        stream_of_events = EventStream(response)
        while text_of(deltas(first)) != "one":
            first.append(await anext(stream_of_events))
    places = [event for event in first if event.id is not None]
    readers = [asyncio.create_task(read(client, job_id, params={"after": str(event.id)})) for event in places]
    whole = asyncio.create_task(read(client, job_id))
    gates[0].release()
    await settled(gates[1].reached)
    gates[1].release()
    events = await whole
    assert outline(events)[: len(first)] == outline(first)
    for place, reader in zip(places, readers, strict=True):
        expected = events[outline(events).index((place.id, place.name)) + 1 :]
        got = await reader
        assert outline(got) == outline(expected), f"after {place.id}"
        assert deltas(got) == deltas(expected)
        assert got[-1] == expected[-1]


async def test_a_reader_that_reconnects_after_every_event_misses_none_and_sees_none_twice(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    text = " ".join(f"w{number}" for number in range(40))
    words = [chunk(word if not number else f" {word}") for number, word in enumerate(text.split(" "))]
    script: list[object] = [chunk({"role": "assistant", "content": ""})]
    for word in words:
        script += [word, 0.02]
    provider.script(model, stream(*script, chunk(finish="stop"), DONE))
    job_id = await submit(client, model)
    events: list[Event] = []
    while not events or events[-1].name not in FINAL:
        headers = {"last-event-id": str(events[-1].id)} if events else {}
        async with client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as response:
            assert response.status_code == 200
            reader = EventStream(response)
            events.append(await anext(reader))
            if events[-1].id is None:
                events.append(await anext(reader))
    assert text_of(deltas(events)) == text
    assert outline(events) == outline(await read(client, job_id))


async def test_several_readers_see_the_same(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    gates = Gate(), Gate()
    provider.script(model, gated(*gates))
    job_id = await submit(client, model)
    await settled(gates[0].reached)
    readers = [asyncio.create_task(read(client, job_id)) for _ in range(5)]
    gates[0].release()
    await settled(gates[1].reached)
    readers += [asyncio.create_task(read(client, job_id)) for _ in range(5)]
    gates[1].release()
    outlines = {tuple(outline(events)) for events in await asyncio.gather(*readers)}
    assert len(outlines) == 1


async def test_a_foreground_stream_is_watched_by_others_too(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gates = Gate(), Gate()
    provider.script(model, gated(*gates))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        own = EventStream(response)
        first = (await anext(own)).data
        watching = asyncio.create_task(read(client, first["id"].replace("chatcmpl-", "job_")))
        await settled(gates[0].reached)
        gates[0].release()
        await settled(gates[1].reached)
        gates[1].release()
        rest = [event.data for event in await own.rest()]
    assert text_of(deltas(await watching)) == text_of([first, *rest[:-1]]) == "one two three"


async def test_a_silent_job_is_kept_open_with_comments(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, answer(CONTENT, hold=gate))
    job_id = await submit(client, model)
    await settled(gate.reached)
    async with client.stream("GET", f"/jobs/{job_id}/events") as response:
        events = EventStream(response)
        await events.up_to("job.started")
        await events.comment()
        await events.comment()
        gate.release()
        assert (await events.rest())[-1].name == "job.completed"


async def test_a_retry_is_announced_and_the_job_starts_over(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, stream(chunk({"role": "assistant", "content": "thrown away"}), gate), answer(CONTENT))
    job_id = await submit(client, model)
    async with client.stream("GET", f"/jobs/{job_id}/events") as response:
        reader = EventStream(response)
        events = await reader.up_to("job.delta")
        gate.release()
        events += await reader.rest()
    names = [event.name for event in events]
    assert "job.retrying" in names
    restart = names.index("job.retrying")
    assert names[restart + 1] == "job.started"
    assert names[-1] == "job.completed"
    assert text_of(deltas(events[:restart])) == "thrown away"
    assert text_of(deltas(events[restart:])) == CONTENT
    last = [event for event in events[restart:] if event.name == "job.delta"]
    assert [event.id for event in last] == [f"2-{number}" for number in range(1, len(last) + 1)]


async def test_resuming_from_an_attempt_that_was_thrown_away_gives_the_last_one_whole(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, stream(chunk({"role": "assistant", "content": "thrown away"}), gate), answer(CONTENT))
    job_id = await submit(client, model)
    async with client.stream("GET", f"/jobs/{job_id}/events") as response:
        seen = await EventStream(response).up_to("job.delta")
    gate.release()
    await completed(client, job_id)
    rest = await read(client, job_id, headers={"last-event-id": str(seen[-1].id)})
    assert [event.name for event in rest[:2]] == ["job.retrying", "job.started"]
    assert text_of(deltas(rest)) == CONTENT
    assert rest[-1].name == "job.completed"


@pytest.mark.parametrize("case", ["failed", "cancelled", "expired"])
async def test_every_other_end_has_its_event_with_the_job(
    client: httpx.AsyncClient, provider: Provider, model: str, case: str
) -> None:
    provider.script(model, status(400) if case == "failed" else hang)
    job_id = await submit(client, model, timeout=1 if case == "expired" else 60)
    watching = asyncio.create_task(read(client, job_id))
    if case == "cancelled":
        await provider.call(model)
        await client.post(f"/jobs/{job_id}/cancel")
    events = await watching
    assert events[-1].name == f"job.{case}"
    job = await ended(client, job_id)
    assert events[-1].data == job
    assert job["status"] == case
    assert outline(await read(client, job_id)) == outline(events)


async def test_a_job_that_was_answered_whole_has_events_as_well(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, answer(CONTENT))
    body = (await client.post("/chat/completions", json=chat(model))).json()
    events = await read(client, body["id"].replace("chatcmpl-", "job_"))
    assert [event.name for event in events if event.name != "job.delta"] == [
        "job.queued",
        "job.started",
        "job.completed",
    ]
    assert text_of(deltas(events)) == CONTENT
    for position, event in enumerate(events):
        if event.id is not None:
            job_id = body["id"].replace("chatcmpl-", "job_")
            assert await read(client, job_id, params={"after": event.id}) == events[position + 1 :]


@pytest.mark.parametrize(
    ("state", "after"),
    [("running", "7-1"), ("running", "0-5"), ("finished", "7-1"), ("finished", "0-5"), ("finished", "1-9999")],
)
async def test_a_place_that_never_was_is_refused(
    client: httpx.AsyncClient, provider: Provider, model: str, after: str, state: str
) -> None:
    gate = Gate()
    provider.script(model, answer(CONTENT, hold=gate))
    job_id = await submit(client, model)
    await settled(gate.reached)
    if state == "finished":
        gate.release()
        await completed(client, job_id)
    for request in ({"params": {"after": after}}, {"headers": {"last-event-id": after}}):
        # A refusal is whole; a stream that is not refused would never end here.
        async with client.stream("GET", f"/jobs/{job_id}/events", **request) as response:  # type: ignore[arg-type]
            assert response.status_code == 400, f"{request}: {response.status_code}"
            error = json.loads(await response.aread())["error"]
            assert error["type"] == "invalid_request_error"
    gate.release()
    await completed(client, job_id)


async def test_a_place_that_the_attempt_has_yet_to_reach_is_where_the_stream_begins(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    words = [chunk(f"w{number} ") for number in range(1, 6)]
    provider.script(model, stream(words[0], gate, *words[1:], chunk(finish="stop"), DONE))
    job_id = await submit(client, model)
    await settled(gate.reached)
    reader = asyncio.create_task(read(client, job_id, params={"after": "1-3"}))
    gate.release()
    await completed(client, job_id)
    rest = [event for event in await reader if event.id is not None]
    assert rest == (await read(client, job_id))[-len(rest) :]
    assert rest[0].id == "1-4"


@pytest.mark.parametrize(
    "after", ["x", "1", "1-", "-1", "1-1-1", "1-x", "\u0661-\u0661", "1-1\u00a0", "9" * 400 + "-1"]
)
async def test_a_malformed_place_is_refused(client: httpx.AsyncClient, model: str, after: str) -> None:
    job_id = await submit(client, model)
    await completed(client, job_id)
    async with client.stream("GET", f"/jobs/{job_id}/events", params={"after": after}) as response:
        assert response.status_code == 400, response.status_code


async def test_a_slow_reader_misses_nothing(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    """It is behind by far more than is buffered for it, and is sent back to what Postgres has."""
    gate, pieces = Gate(), 3000
    piece = "0123456789" * 80
    provider.script(
        model,
        stream(chunk({"role": "assistant", "content": ""}), gate, *[chunk(piece)] * pieces, chunk(finish="stop"), DONE),
    )
    job_id = await submit(client, model)
    async with client.stream("GET", f"/jobs/{job_id}/events") as response:
        reader = EventStream(response)
        events = await reader.up_to("job.started")
        gate.release()
        await completed(client, job_id)
        events += await reader.rest()
    assert outline(events) == outline(await read(client, job_id))
    assert len(text_of(deltas(events))) == pieces * len(piece)


async def test_a_key_has_so_many_subscribers_and_no_more(
    service: Service, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, hang, hang, hang)  # the job, the line of the batch, and no retry
    most = int(QUICK["HEADRACE_SUBSCRIBERS_PER_KEY"])
    headers = {"authorization": f"Bearer {service.create_key('watchers')['key']}"}
    other = {"authorization": f"Bearer {service.create_key('watchers')['key']}"}
    created = await client.post("/jobs", json={"request": chat(model)}, headers=headers)
    job = f"/jobs/{created.json()['id']}"
    batch = await client.post("/batches", json={"requests": [{"custom_id": "a", "body": chat(model)}]}, headers=headers)
    paths = [f"{job}/events", f"/batches/{batch.json()['id']}/events"]
    reading = []
    async with AsyncExitStack() as streams:
        for number in range(most):
            request = client.stream("GET", paths[number % 2], headers=headers)
            response = await streams.enter_async_context(request)
            assert response.status_code == 200
            pieces = response.aiter_raw()
            await anext(pieces)  # it has begun
            reading.append(pieces)  # else it would be closed
        for path in (*paths, f"{job}?wait=30"):
            answer = await client.get(path, headers=headers)
            assert int(answer.headers["retry-after"]) >= 1
            refused(answer, 429, type="rate_limit_error", code="rate_limit_exceeded")
        async with client.stream("GET", paths[0], headers=other) as response:
            assert response.status_code == 200
        assert (await client.get(job, headers=headers)).status_code == 200

    async def is_let_in() -> bool:
        async with client.stream("GET", paths[0], headers=headers) as response:
            return response.status_code == 200

    async with asyncio.timeout(PATIENCE):
        while not await is_let_in():  # noqa: ASYNC110  (once the server has noticed that they are gone)
            await asyncio.sleep(0.05)
    client.headers.update(headers)
    await client.post(f"{job}/cancel")
    await ended(client, created.json()["id"])
    await cancel(client, batch.json()["id"])
