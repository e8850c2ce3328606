"""Jobs: submitted, listed, waited for, cancelled, erased; and the completions they leave behind."""

from __future__ import annotations

import asyncio
import re
import secrets
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.rows import DictRow

from tests.e2e.jobs import FIELDS, chat, completed, ended, get, reaches, refused, submit
from tests.e2e.streams import EventStream, chunks_of, text_of
from tests.fakes.provider import (
    DONE,
    Gate,
    Json,
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
from tests.service import BOOTSTRAP_KEY, Service, connect
from tests.waiting import eventually

Database = psycopg.AsyncConnection[DictRow]


async def test_background_answers_202_with_a_job(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    gate = Gate()
    provider.script(model, answer("Done.", hold=gate, usage=usage_of(12, 5)))
    response = await client.post("/chat/completions", json=chat(model, background=True, metadata={"a": "b"}))
    assert response.status_code == 202
    job = response.json()
    assert re.fullmatch(r"job_[0-9a-f]{32}", job["id"])
    assert job["object"] == "job"
    assert job["status"] in {"queued", "running"}
    assert job["model"] == model
    assert job["metadata"] == {"a": "b"}
    assert job["result"] is None
    assert job["error"] is None
    gate.release()
    done = await completed(client, job["id"])
    assert done.keys() >= FIELDS
    assert done["result"]["object"] == "chat.completion"
    assert done["result"]["id"] == job["id"].replace("job_", "chatcmpl-")
    assert done["result"]["choices"][0]["message"]["content"] == "Done."
    assert done["provider"] == "fake"
    assert done["attempt"] == 1
    assert done["usage"]["total_tokens"] == 17
    # 12 tokens at 2.50 USD a million and 5 at 10.00.
    assert float(done["cost"]) == pytest.approx(0.00008)
    assert isinstance(done["cost"], str)
    assert done["batch_id"] is None
    assert done["agent_id"] is None


async def test_post_jobs_is_the_same_as_background(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, answer("Done."))
    response = await client.post(
        "/jobs", json={"request": chat(model), "priority": "flex", "metadata": {"a": "b"}, "timeout": 60}
    )
    assert response.status_code == 202, response.text
    job = await completed(client, response.json()["id"])
    assert job["metadata"] == {"a": "b"}
    assert job["result"]["choices"][0]["message"]["content"] == "Done."


async def test_a_body_of_post_jobs_without_a_request_is_refused(client: httpx.AsyncClient) -> None:
    refused(await client.post("/jobs", json={"metadata": {}}), 400, param="request")


async def test_a_bad_field_inside_the_request_is_named_by_its_path(client: httpx.AsyncClient, model: str) -> None:
    response = await client.post("/jobs", json={"request": chat(model, temperature=3)})
    refused(response, 400, param="request.temperature")


async def test_waiting_ends_with_the_job(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    gate = Gate()
    provider.script(model, answer("Done.", hold=gate))
    job_id = await submit(client, model)
    await settled(gate.reached)
    waiting = asyncio.create_task(client.get(f"/jobs/{job_id}", params={"wait": 30}))
    short = await client.get(f"/jobs/{job_id}", params={"wait": 1})
    assert short.status_code == 200
    assert short.json()["status"] == "running"
    assert not waiting.done()
    gate.release()
    assert (await waiting).json()["status"] == "completed"


async def test_waiting_for_a_job_that_has_ended_answers_at_once(client: httpx.AsyncClient, model: str) -> None:
    job_id = await submit(client, model)
    await completed(client, job_id)
    response = await client.get(f"/jobs/{job_id}", params={"wait": 30}, timeout=20)
    assert response.json()["status"] == "completed"


async def test_a_wait_that_is_no_number_is_refused(client: httpx.AsyncClient, model: str) -> None:
    job_id = await submit(client, model)
    refused(await client.get(f"/jobs/{job_id}", params={"wait": "long"}), 400, param="wait")
    refused(await client.get(f"/jobs/{job_id}", params={"wait": -1}), 400, param="wait")
    await completed(client, job_id)


async def test_the_list_pages_through_every_job_once_in_either_order(client: httpx.AsyncClient, model: str) -> None:
    ids = [await submit(client, model, str(number)) for number in range(7)]
    for job_id in ids:
        await completed(client, job_id)
    for order, expected in (("asc", ids), ("desc", ids[::-1])):
        seen: list[str] = []
        after = None
        while True:
            params = {"model": model, "limit": "3", "order": order, **({"after": after} if after else {})}
            page = (await client.get("/jobs", params=params)).json()
            assert page.keys() == {"object", "data", "first_id", "last_id", "has_more"}
            assert page["object"] == "list"
            assert page["first_id"] == page["data"][0]["id"]
            assert page["last_id"] == page["data"][-1]["id"]
            seen += [job["id"] for job in page["data"]]
            if not page["has_more"]:
                break
            after = page["last_id"]
        assert seen == expected


async def test_an_empty_list_has_no_first_and_no_last(client: httpx.AsyncClient, model: str) -> None:
    page = (await client.get("/jobs", params={"model": model})).json()
    assert page == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def test_the_list_filters_on_status_model_and_metadata(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    run = secrets.token_hex(4)
    provider.script(model, answer("ok"), answer("ok"))
    done = await submit(client, model, metadata={"run": run, "part": "one"})
    await completed(client, done)
    also_done = await submit(client, model, metadata={"run": run, "part": "two"})
    await completed(client, also_done)
    provider.script(model, hang)
    running = await submit(client, model, metadata={"run": run, "part": "one"})
    await reaches(client, running, "running")

    async def listed(**params: str) -> list[str]:
        response = await client.get("/jobs", params={"order": "asc", **params})
        assert response.status_code == 200, response.text
        return [job["id"] for job in response.json()["data"]]

    assert await listed(model=model) == [done, also_done, running]
    assert await listed(model=model, status="completed") == [done, also_done]
    assert await listed(model=model, status="running") == [running]
    assert await listed(**{"metadata[run]": run}) == [done, also_done, running]
    assert await listed(**{"metadata[run]": run, "metadata[part]": "one"}) == [done, running]
    assert await listed(**{"metadata[run]": run, "metadata[part]": "one", "status": "completed"}) == [done]
    assert await listed(**{"metadata[run]": f"not {run}"}) == []
    await client.post(f"/jobs/{running}/cancel")
    await ended(client, running)


@pytest.mark.parametrize(
    ("name", "value"),
    [("limit", "0"), ("limit", "many"), ("limit", "100000"), ("order", "sideways"), ("status", "lost"), ("after", "x")],
)  # fmt: skip
async def test_a_bad_parameter_of_the_list_is_refused_by_name(client: httpx.AsyncClient, name: str, value: str) -> None:
    refused(await client.get("/jobs", params={name: value}), 400, param=name)


async def test_a_running_job_is_cancelled_and_its_upstream_call_ended(
    client: httpx.AsyncClient, provider: Provider, model: str, database: Database
) -> None:
    gate = Gate()
    provider.script(model, stream(chunk({"role": "assistant", "content": "a b c"}), gate, chunk(finish="stop"), DONE))
    job_id = await submit(client, model)
    await settled(gate.reached)
    response = await client.post(f"/jobs/{job_id}/cancel")
    assert response.status_code == 200
    assert response.json()["id"] == job_id
    await settled((await provider.call(model)).disconnected)
    job = await ended(client, job_id)
    assert job["status"] == "cancelled"
    assert job["result"] is None
    assert job["error"]["code"] == "job_cancelled"
    assert job["finished_at"] is not None
    rows = await (await database.execute("SELECT * FROM usage WHERE job_id = %s", [job_id])).fetchall()
    assert sum(row["completion_tokens"] for row in rows) > 0, "tokens that were spent are recorded"


async def test_a_job_whose_upstream_is_silent_is_cancelled_too(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, hang)
    job_id = await submit(client, model)
    call = await provider.call(model)
    await client.post(f"/jobs/{job_id}/cancel")
    await settled(call.disconnected)
    assert (await ended(client, job_id))["status"] == "cancelled"
    assert len(provider.calls_for(model)) == 1


async def test_a_job_that_waits_for_its_retry_is_cancelled(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, status(429, retry_after=60))
    job_id = await submit(client, model)
    await provider.call(model)
    await reaches(client, job_id, "queued")
    await client.post(f"/jobs/{job_id}/cancel")
    assert (await ended(client, job_id))["status"] == "cancelled"
    assert len(provider.calls_for(model)) == 1


async def test_cancelling_what_has_ended_changes_nothing(client: httpx.AsyncClient, model: str) -> None:
    job_id = await submit(client, model)
    before = await completed(client, job_id)
    answered = await client.post(f"/jobs/{job_id}/cancel")
    assert (answered.status_code, answered.json()) == (200, before)
    assert await get(client, job_id) == before


async def test_cancelling_twice_is_no_error(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, hang)
    job_id = await submit(client, model)
    await provider.call(model)
    for _ in range(2):
        assert (await client.post(f"/jobs/{job_id}/cancel")).status_code == 200
    assert (await ended(client, job_id))["status"] == "cancelled"
    assert (await client.post(f"/jobs/{job_id}/cancel")).status_code == 200


async def test_deleting_erases_the_content_and_keeps_the_usage(
    client: httpx.AsyncClient, provider: Provider, model: str, database: Database
) -> None:
    secret, reply = f"prompt {secrets.token_hex(8)}", f"reply {secrets.token_hex(8)}"
    provider.script(model, answer(reply))
    job_id = await submit(client, model, secret, metadata={"note": secret})
    await completed(client, job_id)
    response = await client.delete(f"/jobs/{job_id}")
    assert response.status_code == 200
    assert response.json()["id"] == job_id
    assert response.json()["deleted"] is True
    completion_id = job_id.replace("job_", "chatcmpl-")
    for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/events", f"/chat/completions/{completion_id}"):
        refused(await client.get(path), 404)
    refused(await client.post(f"/jobs/{job_id}/cancel"), 404)
    refused(await client.delete(f"/jobs/{job_id}"), 404)
    assert (await client.get("/jobs", params={"model": model})).json()["data"] == []
    rows = await (await database.execute("SELECT * FROM jobs WHERE id = %s", [job_id])).fetchall()
    deltas = await (await database.execute("SELECT * FROM job_deltas WHERE job_id = %s", [job_id])).fetchall()
    assert secret not in str(rows)
    assert reply not in str(rows)
    assert deltas == []
    usage = await (await database.execute("SELECT * FROM usage WHERE job_id = %s", [job_id])).fetchall()
    assert len(usage) == 1


async def test_deleting_a_running_job_ends_its_upstream_call_and_erases_it(
    client: httpx.AsyncClient, provider: Provider, model: str, database: Database
) -> None:
    gate = Gate()
    secret = f"prompt {secrets.token_hex(8)}"
    provider.script(model, stream(chunk({"role": "assistant", "content": secret}), gate, chunk(finish="stop"), DONE))
    job_id = await submit(client, model, secret)
    await settled(gate.reached)
    assert (await client.delete(f"/jobs/{job_id}")).status_code == 200
    refused(await client.get(f"/jobs/{job_id}"), 404)
    await settled((await provider.call(model)).disconnected)

    async def erased() -> bool:
        jobs = await (await database.execute("SELECT * FROM jobs WHERE id = %s", [job_id])).fetchall()
        deltas = await (await database.execute("SELECT * FROM job_deltas WHERE job_id = %s", [job_id])).fetchall()
        return secret not in f"{jobs}{deltas}" and all(row["finished_at"] is not None for row in jobs)

    await eventually(erased, "the content to be erased and the job to have ended")


async def test_a_stored_completion_is_what_the_call_answered(client: httpx.AsyncClient, model: str) -> None:
    body = (await client.post("/chat/completions", json=chat(model, store=True))).json()
    response = await client.get(f"/chat/completions/{body['id']}")
    assert response.status_code == 200
    stored = response.json()
    assert {name: stored[name] for name in body} == body


@pytest.mark.parametrize("extra", [{}, {"metadata": {"whose": "the provider's"}}], ids=["", "with metadata"])
async def test_a_stored_completion_has_its_jobs_metadata_beside_what_the_provider_said(
    client: httpx.AsyncClient, provider: Provider, model: str, extra: dict[str, Any]
) -> None:
    said = {"x_seed": 2**70 + 1, "x_note": 'ä "metadata\\" }', **extra}
    provider.script(model, answer("ok", extra=said))
    body = (await client.post("/chat/completions", json=chat(model, store=True, metadata={"a": "ö"}))).json()
    expected = {**body, "metadata": {"a": "ö"}}
    assert expected["x_seed"] == 2**70 + 1
    response = await client.get(f"/chat/completions/{body['id']}")
    assert response.text.count('"metadata":') == 1
    assert response.json() == expected
    listed = (await client.get("/chat/completions", params={"model": model})).json()["data"]
    assert listed == [expected]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_an_answer_that_is_not_stored_is_gone_once_its_client_has_it(
    client: httpx.AsyncClient, model: str, streamed: bool
) -> None:
    response = await client.post("/chat/completions", json=chat(model, store=False, stream=streamed))
    assert response.status_code == 200
    job_id = response.headers["x-headrace-job"]

    async def gone() -> bool:
        return (await client.get(f"/jobs/{job_id}")).status_code == 404

    await eventually(gone, "the content to be erased")
    assert (await client.get("/chat/completions", params={"model": model})).json()["data"] == []
    usage = await client.get("/usage", params={"model": model})
    assert sum(row["requests"] for row in usage.json()["data"]) == 1


async def test_stored_completions_are_listed_with_their_messages_to_their_account_alone(
    client: httpx.AsyncClient, other: httpx.AsyncClient, model: str
) -> None:
    body = (await client.post("/chat/completions", json=chat(model, "what was asked", store=True))).json()
    response = await client.get("/chat/completions", params={"model": model})
    assert response.status_code == 200, response.text
    page = response.json()
    assert page["object"] == "list"
    assert [completion["id"] for completion in page["data"]] == [body["id"]]
    messages = (await client.get(f"/chat/completions/{body['id']}/messages")).json()
    assert messages["object"] == "list"
    assert [message["content"] for message in messages["data"]] == ["what was asked"]
    assert (await other.get("/chat/completions", params={"model": model})).json()["data"] == []
    refused(await other.get(f"/chat/completions/{body['id']}/messages"), 404)


async def test_what_has_no_stored_completion_is_given_no_metadata_but_may_be_erased(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, answer(hold=gate), status(400), answer())
    running = await submit(client, model, metadata={"a": "b"})
    await settled(gate.reached)
    failed = (await ended(client, await submit(client, model, "fail")))["id"]
    unstored = (await completed(client, await submit(client, model, store=False)))["id"]
    for job_id, code in ((running, "completion_not_ready"), (failed, "not_found"), (unstored, "not_found")):
        path = f"/chat/completions/{job_id.replace('job_', 'chatcmpl-')}"
        refused(await client.post(path, json={"metadata": {"a": "c"}}), 404, code=code, param="completion_id")
        for body in ({}, {"metadata": "a"}, {"metadata": {"a": 1}}, {"metadata": {}, "model": model}):
            refused(await client.post(path, json=body), 400)
        refused(await client.post(path, json={"metadata": {"a": "\0"}}), 400, param="metadata.a")
        erased = await client.delete(path)
        assert erased.json() == {"id": path.rpartition("/")[2], "object": "chat.completion.deleted", "deleted": True}
        refused(await client.get(f"/jobs/{job_id}"), 404)
    assert await settled((await provider.call(model, 1)).disconnected), "the call of the job that ran was ended"


async def test_a_finished_completion_streams_as_the_original_call_would_have(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, answer("The wheel turns.", usage=usage_of(11, 4)))
    body = chat(model, stream=True, stream_options={"include_usage": True})
    async with client.stream("POST", "/chat/completions", json=body) as response:
        original = await chunks_of(response)
    async with client.stream("GET", f"/chat/completions/{original[0]['id']}", params={"stream": "true"}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        again = await chunks_of(response)
    assert again == original


async def test_a_completion_that_was_answered_whole_streams_as_well(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, answer("The wheel turns.", usage=usage_of(11, 4)))
    whole = (await client.post("/chat/completions", json=chat(model))).json()
    async with client.stream("GET", f"/chat/completions/{whole['id']}", params={"stream": "true"}) as response:
        chunks = await chunks_of(response)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert text_of(chunks) == "The wheel turns."
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"


async def test_attaching_to_a_running_completion_gives_all_of_it(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(
        model,
        stream(
            chunk({"role": "assistant", "content": ""}),
            chunk("before "),
            gate,
            chunk("after"),
            chunk(finish="stop"),
            usage_chunk(usage_of(2, 2)),
            DONE,
        ),
    )
    job_id = await submit(client, model)
    await settled(gate.reached)
    path = f"/chat/completions/{job_id.replace('job_', 'chatcmpl-')}"
    async with client.stream("GET", path, params={"stream": "true"}) as response:
        assert response.status_code == 200
        events = EventStream(response)
        chunks: list[Json] = []
        while text_of(chunks) != "before ":
            chunks.append((await anext(events)).data)
        gate.release()
        chunks += [event.data for event in await events.rest() if event.data != "[DONE]"]
    assert text_of(chunks) == "before after"
    assert {item["id"] for item in chunks} == {job_id.replace("job_", "chatcmpl-")}


async def test_a_background_stream_is_attached_to_as_it_was_asked_for(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, answer("Done.", usage=usage_of(3, 1)))
    job_id = await submit(client, model, stream=True, stream_options={"include_usage": True})
    path = f"/chat/completions/{job_id.replace('job_', 'chatcmpl-')}"
    async with client.stream("GET", path, params={"stream": "true"}) as response:
        chunks = await chunks_of(response)
    assert text_of(chunks) == "Done."
    assert all(item["usage"] is None for item in chunks[:-1])
    assert chunks[-1]["usage"] == usage_of(3, 1)
    assert chunks[-1]["choices"] == []


async def test_attaching_and_leaving_does_not_cancel(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    gate = Gate()
    provider.script(model, stream(chunk({"role": "assistant", "content": "a"}), gate, chunk(finish="stop"), DONE))
    job_id = await submit(client, model)
    await settled(gate.reached)
    for path in (f"/chat/completions/{job_id.replace('job_', 'chatcmpl-')}?stream=true", f"/jobs/{job_id}/events"):
        async with client.stream("GET", path) as response:
            await anext(EventStream(response))
    gate.release()
    await completed(client, job_id)


async def test_a_background_job_runs_on_when_its_client_is_gone(
    service: Service, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, answer("Done.", hold=gate))
    async with connect(service, BOOTSTRAP_KEY) as leaving:
        job_id = await submit(leaving, model)
        await settled(gate.reached)
    gate.release()
    assert (await completed(client, job_id))["result"]["choices"][0]["message"]["content"] == "Done."


async def test_a_job_past_its_deadline_expires(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, hang)
    job_id = await submit(client, model, timeout=4)
    job = await ended(client, job_id)
    assert job["status"] == "expired"
    assert job["error"]["code"] == "job_expired"
    await settled((await provider.call(model)).disconnected)


async def test_one_worker_has_hundreds_of_calls_in_flight(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate, count = Gate(), 250
    provider.always(model, answer("Done.", hold=gate))
    ids = await asyncio.gather(*[submit(client, model) for _ in range(count)])
    await provider.call(model, count)
    gate.release()
    await asyncio.gather(*[completed(client, job_id) for job_id in ids])
    assert len(provider.calls_for(model)) == count


async def test_every_service_tier_is_served(client: httpx.AsyncClient, model: str) -> None:
    for tier in ("auto", "priority", "default", "flex"):
        await completed(client, await submit(client, model, service_tier=tier))
