from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import openai
import psycopg
import pytest
from psycopg.rows import DictRow

from tests.e2e.batches import WHAT, get, jsonl, line, lines, output, reaches, submit, text_of
from tests.e2e.jobs import refused
from tests.fakes.provider import Behaviour, Exchange, Gate, Json, Provider, answer, settled, status
from tests.service import BOOTSTRAP_KEY, Service, Stores, connect, running_service
from tests.waiting import eventually


async def test_every_line_is_answered_in_order(client: httpx.AsyncClient, model: str) -> None:
    batch = await submit(client, lines(model, 30), metadata={"job": "nightly"})
    assert batch["status"] == "validating"
    done = await reaches(client, batch["id"], "completed")
    assert done["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
    assert done["model"] == model
    assert done["metadata"] == {"job": "nightly"}
    assert done["error_file_id"] is None
    assert done["created_at"] <= done["in_progress_at"] <= done["finalizing_at"] <= done["completed_at"]
    assert done["expires_at"] - done["created_at"] in (86_400, 86_399, 86_401)
    results = await output(client, done["output_file_id"])
    assert [result["custom_id"] for result in results] == [f"r{number}" for number in range(1, 31)]
    for number, result in enumerate(results, 1):
        assert result.keys() == {"id", "custom_id", "response", "error"}
        assert result["id"].startswith("batch_req_")
        assert result["error"] is None
        assert result["response"]["status_code"] == 200
        assert result["response"]["body"]["object"] == "chat.completion"
        assert text_of(result).endswith(f"say {number}")


async def test_the_openai_client_runs_a_batch_unchanged(openai_client: openai.AsyncOpenAI, model: str) -> None:
    file = await openai_client.files.create(file=("in.jsonl", jsonl(lines(model, 3))), purpose="batch")
    batch = await openai_client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
    )

    async def ended() -> bool:
        return (await openai_client.batches.retrieve(batch.id)).status == "completed"

    await eventually(ended, "the batch to end")
    batch = await openai_client.batches.retrieve(batch.id)
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (3, 3, 0)
    assert batch.usage is not None
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens > 0
    assert batch.output_file_id is not None
    content = await openai_client.files.content(batch.output_file_id)
    assert [json.loads(found)["custom_id"] for found in content.text.splitlines()] == ["r1", "r2", "r3"]
    assert batch.id in [found.id async for found in await openai_client.batches.list(limit=2)]


async def test_lines_may_be_in_the_request_itself(client: httpx.AsyncClient, model: str) -> None:
    bare = [{"custom_id": found["custom_id"], "body": found["body"]} for found in lines(model, 3)]
    created = await client.post("/batches", json={"requests": bare, "completion_window": "1h"})
    assert created.status_code == 200, created.text
    done = await reaches(client, created.json()["id"], "completed")
    assert [text_of(result) for result in await output(client, done["output_file_id"])] == [
        f"You said: say {number}" for number in (1, 2, 3)
    ]
    assert done["input_file_id"].startswith("file-")


async def test_lines_are_jobs_like_any_other(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    done = await reaches(client, (await submit(client, lines(model, 2)))["id"], "completed")
    jobs = (await client.get("/jobs", params={"batch_id": done["id"], "order": "asc"})).json()["data"]
    assert {job["custom_id"] for job in jobs} == {"r1", "r2"}
    for job in jobs:
        assert (job["batch_id"], job["status"], job["service_tier"]) == (done["id"], "completed", "batch")
        assert (await client.get(f"/jobs/{job['id']}")).json() == job
        assert job["result"]["id"].startswith("chatcmpl-")
    assert sum(job["usage"]["total_tokens"] for job in jobs) == done["usage"]["total_tokens"]
    results = {result["custom_id"]: result for result in await output(client, done["output_file_id"])}
    for job in jobs:
        assert results[job["custom_id"]]["response"] == {
            "status_code": 200,
            "request_id": job["id"],
            "body": job["result"],
        }
    assert not any(call.streamed for call in provider.calls_for(model))


async def test_usage_and_cost_are_those_of_the_ledger(
    client: httpx.AsyncClient, database: psycopg.AsyncConnection[DictRow], model: str
) -> None:
    done = await reaches(client, (await submit(client, lines(model, 7)))["id"], "completed")
    cursor = await database.execute(
        "SELECT sum(prompt_tokens) AS prompt, sum(completion_tokens) AS completion, sum(cost) AS cost FROM usage"
        " WHERE batch_id = %s AND kind = 'counted'",
        [done["id"]],
    )
    ledger = await cursor.fetchone()
    assert ledger is not None
    assert done["usage"]["input_tokens"] == ledger["prompt"]
    assert done["usage"]["output_tokens"] == ledger["completion"]
    assert float(done["cost"]) == float(ledger["cost"])


async def test_a_line_that_fails_is_in_the_error_file(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    bad = f"{model}-bad"
    provider.always(bad, status(400, {"error": {"message": "No.", "code": "bad"}}))
    mixed = [line("a", model), line("b", bad), line("c", model)]
    done = await reaches(client, (await submit(client, mixed))["id"], "completed")
    assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert done["model"] is None
    assert [result["custom_id"] for result in await output(client, done["output_file_id"])] == ["a", "c"]
    [failed] = await output(client, done["error_file_id"])
    assert failed["custom_id"] == "b"
    assert failed["error"] is None
    assert failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"]["message"] == "No."


async def test_its_files_expire_when_it_says(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, status(400))
    expiry = {"anchor": "created_at", "seconds": 3600}
    batch = await submit(client, lines(model, 2), output_expires_after=expiry)
    done = await reaches(client, batch["id"], "completed")
    for name in ("output_file_id", "error_file_id"):
        file = (await client.get(f"/files/{done[name]}")).json()
        assert file["expires_at"] == file["created_at"] + 3600, name


async def test_errors_that_may_pass_are_retried(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, status(500), status(429, retry_after=0), answer("at last"))
    done = await reaches(client, (await submit(client, lines(model, 1)))["id"], "completed")
    assert [text_of(result) for result in await output(client, done["output_file_id"])] == ["at last"]


async def test_everything_that_is_wrong_is_told_by_line_and_nothing_is_run(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    data = b"\n".join(
        [
            json.dumps(line("ok", model)).encode(),
            b"{nonsense",
            b"",
            json.dumps(line("ok", model)).encode(),
            json.dumps({**line("m", model), "method": "GET"}).encode(),
            json.dumps(line("u", "no-such-model")).encode(),
            json.dumps(line("t", model, temperature=7)).encode(),
            json.dumps(line("g", "agent_00000000000000000000000000000000")).encode(),
            json.dumps({"body": {}}).encode(),
        ]
    )
    failed = await reaches(client, (await submit(client, data))["id"], "failed")
    assert [(error["line"], error["code"], error["param"]) for error in failed["errors"]["data"]] == [
        (2, "invalid_json_line", None),
        (4, "duplicate_custom_id", "custom_id"),
        (5, "invalid_method", "method"),
        (6, "model_not_found", "body.model"),
        (7, "decimal_above_max_value", "body.temperature"),
        (8, "model_not_found", "body.model"),
        (9, "missing_required_parameter", "custom_id"),
    ]
    assert failed["errors"]["object"] == "list"
    assert failed["failed_at"] is not None
    assert provider.calls_for(model) == []
    assert (await client.get("/jobs", params={"batch_id": failed["id"]})).json()["data"] == []


async def test_problems_are_told_up_to_a_limit(client: httpx.AsyncClient) -> None:
    failed = await reaches(client, (await submit(client, b"nonsense\n" * 1000))["id"], "failed")
    assert len(failed["errors"]["data"]) == 100


@pytest.mark.parametrize("data", [b"", b"\n \r\n\n"])
async def test_an_empty_input_is_not_valid(client: httpx.AsyncClient, data: bytes) -> None:
    failed = await reaches(client, (await submit(client, data))["id"], "failed")
    assert [error["code"] for error in failed["errors"]["data"]] == ["empty_file"]


@pytest.mark.parametrize(
    ("changes", "status_code", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, 400, "endpoint"),
        ({"completion_window": "8d"}, 400, "completion_window"),
        ({"completion_window": "soon"}, 400, "completion_window"),
        ({"completion_window": "0h"}, 400, "completion_window"),
        ({"input_file_id": "file-" + "0" * 32}, 404, "input_file_id"),
        ({"input_file_id": "nonsense\0"}, 404, "input_file_id"),
        ({"input_file_id": None}, 400, "input_file_id"),
        ({"requests": [{}]}, 400, "requests"),
        ({"input_file_id": None, "requests": []}, 400, "requests"),
        ({"input_file_id": None, "requests": [1]}, 400, "requests[0]"),
        ({"metadata": {"a": 1}}, 400, "metadata.a"),
        ({"metadata": {"a": "\0"}}, 400, "metadata.a"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "output_expires_after.seconds"),
        ({"unknown": 1}, 400, "unknown"),
    ],
)
async def test_a_wrong_request_names_its_field(
    client: httpx.AsyncClient, model: str, changes: Json, status_code: int, param: str
) -> None:
    file = await client.post("/files", data={"purpose": "batch"}, files={"file": ("a", jsonl(lines(model, 1)))})
    body = {"input_file_id": file.json()["id"], **WHAT, **changes}
    refused(await client.post("/batches", json=body), status_code, param=param)


async def test_an_output_is_no_input(client: httpx.AsyncClient, model: str) -> None:
    done = await reaches(client, (await submit(client, lines(model, 1)))["id"], "completed")
    body = {"input_file_id": done["output_file_id"], **WHAT}
    refused(await client.post("/batches", json=body), 404, param="input_file_id")


async def test_an_input_stays_while_it_is_needed(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    gate = Gate()
    provider.always(model, held(gate))
    batch = await submit(client, lines(model, 1))
    await settled(gate.reached)
    refused(await client.delete(f"/files/{batch['input_file_id']}"), 409)
    await client.post(f"/batches/{batch['id']}/cancel")
    await reaches(client, batch["id"], "cancelled")
    assert (await client.delete(f"/files/{batch['input_file_id']}")).json()["deleted"]
    gate.release()


async def test_results_can_be_read_while_the_batch_runs(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate, slow = Gate(), f"{model}-slow"
    provider.script(slow, held(gate))
    batch = await submit(client, [line("slow", slow), *lines(model, 10)])
    seen: list[str] = []
    after: str | None = None

    async def read() -> bool:
        nonlocal after
        response = await client.get(f"/batches/{batch['id']}/results", params=_page(after, 3))
        assert response.status_code == 200, response.text
        page = response.json()
        seen.extend(result["custom_id"] for result in page["data"])
        assert len(page["data"]) <= 3
        after = page["last_id"]
        return len(seen) >= 10

    await eventually(read, "ten results")
    assert (await get(client, batch["id"]))["status"] == "in_progress"
    assert sorted(seen) == sorted(f"r{number}" for number in range(1, 11))
    gate.release()
    await reaches(client, batch["id"], "completed")
    first = (await client.get(f"/batches/{batch['id']}/results", params=_page(None, 3))).json()
    assert (len(first["data"]), first["has_more"]) == (3, True)
    rest = (await client.get(f"/batches/{batch['id']}/results", params=_page(after, 3))).json()
    assert [result["custom_id"] for result in rest["data"]] == ["slow"]
    assert not rest["has_more"]
    last = (await client.get(f"/batches/{batch['id']}/results", params=_page(rest["last_id"], 3))).json()
    assert (last["data"], last["last_id"]) == ([], rest["last_id"])


def _page(after: str | None, limit: int) -> dict[str, str | int]:
    return {"limit": limit} if after is None else {"limit": limit, "after": after}


def held(gate: Gate) -> Behaviour:
    """Return a behaviour that answers when the gate opens."""
    respond = answer("at last")

    async def behave(exchange: Exchange) -> None:
        await gate.pass_through()
        await respond(exchange)

    return behave


@pytest.mark.parametrize("after", ["nonsense", "batch_req_" + "0" * 32, "job_" + "0" * 32])
async def test_results_after_a_line_that_is_not_there_are_refused(
    client: httpx.AsyncClient, model: str, after: str
) -> None:
    batch = await submit(client, lines(model, 1))
    refused(await client.get(f"/batches/{batch['id']}/results", params={"after": after}), 400, param="after")


async def events(client: httpx.AsyncClient, batch_id: str, **headers: str) -> AsyncIterator[tuple[str, str, Json]]:
    """Yield the name, the id and the data of each event of a batch."""
    async with client.stream("GET", f"/batches/{batch_id}/events", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        name = event_id = ""
        async for text in response.aiter_lines():
            field, _, value = text.partition(": ")
            if field == "event":
                name = value
            elif field == "id":
                event_id = value
            elif field == "data":
                yield name, event_id, json.loads(value)


async def test_a_batch_can_be_watched_to_its_end(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    gate, slow = Gate(), f"{model}-slow"
    provider.script(slow, held(gate))
    batch = await submit(client, [line("slow", slow), *lines(model, 5)])
    progress: list[Json] = []
    known = ""
    async for name, event_id, data in events(client, batch["id"]):
        if name == "batch.progress":
            progress.append(data)
            known = event_id
            if data["request_counts"]["completed"] == 5:
                break
    assert progress[-1]["request_counts"] == {"total": 6, "completed": 5, "failed": 0}
    assert progress[-1]["requests_per_second"] > 0
    assert progress[-1]["usage"]["total_tokens"] > 0
    assert float(progress[-1]["cost"]) > 0
    assert progress[-1]["seconds_left"] >= 0
    ids = [event_id for event_id in (known,) if event_id]
    gate.release()
    names = []
    async for name, event_id, data in events(client, batch["id"], **{"last-event-id": known}):
        assert event_id not in ids, "told again"
        ids.append(event_id)
        names.append(name)
        if name != "batch.progress":
            assert data == await get(client, batch["id"])
    assert names[-1] == "batch.completed"


async def test_watching_what_has_ended_tells_the_end_at_once(client: httpx.AsyncClient, model: str) -> None:
    done = await reaches(client, (await submit(client, lines(model, 1)))["id"], "completed")
    told = [event async for event in events(client, done["id"])]
    assert [(name, data) for name, _, data in told] == [("batch.completed", done)]
    again = await client.get(f"/batches/{done['id']}/events", headers={"last-event-id": told[-1][1]})
    assert again.status_code == 204, "a reader that has the end is told to stay away"


async def test_what_a_cancelled_batch_has_done_is_in_its_output(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate, slow = Gate(), f"{model}-slow"
    provider.always(slow, held(gate))
    batch = await submit(client, [*lines(model, 5), *(line(f"s{number}", slow) for number in range(3))])
    await settled(gate.reached)

    async def five() -> bool:
        return bool((await get(client, batch["id"]))["request_counts"]["completed"] == 5)

    await eventually(five, "five answers")
    cancelling = await client.post(f"/batches/{batch['id']}/cancel")
    assert cancelling.json()["status"] in {"cancelling", "cancelled"}
    done = await reaches(client, batch["id"], "cancelled")
    gate.release()
    assert done["request_counts"] == {"total": 8, "completed": 5, "failed": 0}
    assert [result["custom_id"] for result in await output(client, done["output_file_id"])] == [
        f"r{number}" for number in range(1, 6)
    ]
    errors = await output(client, done["error_file_id"])
    assert [result["custom_id"] for result in errors] == ["s0", "s1", "s2"]
    assert {result["error"]["code"] for result in errors} == {"batch_cancelled"}
    assert all(result["response"] is None for result in errors)
    call = await provider.call(slow)
    await settled(call.disconnected)
    assert (await client.post(f"/batches/{batch['id']}/cancel")).json()["status"] == "cancelled"


async def test_a_batch_that_has_ended_cannot_be_cancelled(client: httpx.AsyncClient, model: str) -> None:
    done = await reaches(client, (await submit(client, lines(model, 1)))["id"], "completed")
    refused(await client.post(f"/batches/{done['id']}/cancel"), 409)
    assert await get(client, done["id"]) == done


async def test_one_line_can_be_cancelled_or_deleted(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    gate, slow = Gate(), f"{model}-slow"
    provider.always(slow, held(gate))
    batch = await submit(client, [line("gone", model), line("stopped", slow), line("slow", slow)])

    async def jobs() -> dict[str, Json] | None:
        found = (await client.get("/jobs", params={"batch_id": batch["id"]})).json()["data"]
        by_name = {job["custom_id"]: job for job in found}
        return by_name if len(found) == 3 and by_name["gone"]["status"] == "completed" else None

    by_name = await eventually(jobs, "the first line")
    assert by_name is not None
    await client.post(f"/jobs/{by_name['stopped']['id']}/cancel")
    await client.delete(f"/jobs/{by_name['gone']['id']}")
    gate.release()
    done = await reaches(client, batch["id"], "completed")
    assert [result["custom_id"] for result in await output(client, done["output_file_id"])] == ["slow"]
    errors = {result["custom_id"]: result["error"]["code"] for result in await output(client, done["error_file_id"])}
    assert errors == {"gone": "job_deleted", "stopped": "job_cancelled"}


async def test_a_lines_own_deadline_holds(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    gate, slow = Gate(), f"{model}-slow"
    provider.always(slow, held(gate))
    batch = await submit(client, [line("slow", slow, timeout=0.5), line("a", model)])
    done = await reaches(client, batch["id"], "completed")
    gate.release()
    [expired] = await output(client, done["error_file_id"])
    assert (expired["custom_id"], expired["error"]["code"]) == ("slow", "job_expired")
    assert done["request_counts"] == {"total": 2, "completed": 1, "failed": 1}


async def test_another_accounts_batch_is_not_there(
    client: httpx.AsyncClient, other: httpx.AsyncClient, model: str
) -> None:
    done = await reaches(client, (await submit(client, lines(model, 1)))["id"], "completed")
    for request in (
        other.get(f"/batches/{done['id']}"),
        other.get(f"/batches/{done['id']}/results"),
        other.get(f"/batches/{done['id']}/events"),
        other.post(f"/batches/{done['id']}/cancel"),
        other.get(f"/files/{done['output_file_id']}/content"),
        other.post("/batches", json={"input_file_id": done["input_file_id"], **WHAT}),
    ):
        refused(await request, 404)
    assert done["id"] not in (await other.get("/batches")).text
    assert (await other.get("/jobs", params={"batch_id": done["id"]})).json()["data"] == []


async def test_batches_are_listed_page_by_page(client: httpx.AsyncClient, model: str) -> None:
    mark = {"run": secrets.token_hex(8)}
    ids = [(await submit(client, lines(model, 1), metadata=mark))["id"] for _ in range(3)]
    wanted = {"metadata[run]": mark["run"]}
    first = (await client.get("/batches", params={**wanted, "limit": 2})).json()
    assert [batch["id"] for batch in first["data"]] == ids[:0:-1]
    assert first["has_more"]
    rest = (await client.get("/batches", params={**wanted, "limit": 2, "after": first["last_id"]})).json()
    assert [batch["id"] for batch in rest["data"]] == ids[:1]
    assert not rest["has_more"]


async def test_a_line_may_ask_an_agent(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    agent = (
        await client.post("/agents", json={"name": "A", "model": model, "system_prompt": "Speak like a miller."})
    ).json()
    batch = await submit(client, [line("a", agent["id"])])
    done = await reaches(client, batch["id"], "completed")
    [call] = provider.calls_for(model)
    assert call.body["messages"][0]["content"].endswith("Speak like a miller.")
    [job] = (await client.get("/jobs", params={"batch_id": done["id"]})).json()["data"]
    assert (job["agent_id"], job["model"]) == (agent["id"], model)


@pytest.fixture
def narrow(tmp_path: Path, stores: Stores, config: str) -> Iterator[Service]:
    """A service whose window is of four lines."""
    with running_service(
        tmp_path, stores.fresh(), config, environment={"HEADRACE_BATCH_WINDOW": "4", "HEADRACE_BATCH_MAX_LINES": "50"}
    ) as service:
        yield service


async def test_a_window_of_lines_is_under_way_whatever_the_batch(
    narrow: Service, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.always(model, held(gate))
    key = narrow.create_key("second")["key"]
    async with connect(narrow, BOOTSTRAP_KEY) as client, connect(narrow, str(key)) as other:
        refused_batch = await submit(client, lines(model, 51))
        failed = await reaches(client, refused_batch["id"], "failed")
        assert [error["code"] for error in failed["errors"]["data"]] == ["too_many_requests_in_batch"]
        huge = await submit(client, lines(model, 50))

        async def under_way() -> bool:
            return len(provider.calls_for(model)) == 4

        await eventually(under_way, "four calls")
        small = await submit(other, lines(model, 2))

        async def joined() -> bool:
            return len(provider.calls_for(model)) == 6

        await eventually(joined, "the small batch beside it")
        async with await psycopg.AsyncConnection.connect(narrow.stores.database_url) as database:
            cursor = await database.execute("SELECT count(*) FROM jobs WHERE batch_id = %s", [huge["id"]])
            assert await cursor.fetchone() == (4,)
        gate.release()
        await asyncio.gather(reaches(client, huge["id"], "completed"), reaches(other, small["id"], "completed"))


async def test_a_batch_whose_window_passes_expires_with_what_it_has(
    narrow: Service, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.always(model, held(gate))
    async with connect(narrow, BOOTSTRAP_KEY) as client:
        batch = await submit(client, lines(model, 20))

        async def under_way() -> bool:
            return len(provider.calls_for(model)) == 4

        await eventually(under_way, "four calls")
        async with await psycopg.AsyncConnection.connect(narrow.stores.database_url) as database:
            # Their jobs keep their deadline, so that they end as they would have a moment before.
            await database.execute("UPDATE batches SET expires_at = now() WHERE id = %s", [batch["id"]])
        gate.release()
        done = await reaches(client, batch["id"], "expired")
        assert done["request_counts"]["total"] == 20
        answered = await output(client, done["output_file_id"])
        assert [result["custom_id"] for result in answered] == ["r1", "r2", "r3", "r4"]
        unrun = await output(client, done["error_file_id"])
        assert [result["custom_id"] for result in unrun] == [f"r{number}" for number in range(5, 21)]
        assert {result["error"]["code"] for result in unrun} == {"batch_expired"}
        assert len(provider.calls_for(model)) == 4
