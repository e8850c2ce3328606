"""Another account's ids are 404, in every path, list and stream."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.e2e.jobs import chat, completed, get, refused, submit
from tests.fakes.provider import Gate, Provider, answer, settled
from tests.waiting import eventually

PATHS = [
    ("GET", "/jobs/{job}"),
    ("GET", "/jobs/{job}?wait=5"),
    ("GET", "/jobs/{job}/events"),
    ("GET", "/jobs/{job}/events?after=1-1"),
    ("POST", "/jobs/{job}/cancel"),
    ("DELETE", "/jobs/{job}"),
    ("GET", "/chat/completions/{completion}"),
    ("GET", "/chat/completions/{completion}?stream=true"),
]
UNKNOWN = "job_" + "0" * 32


def fill(path: str, job_id: str) -> str:
    return path.format(job=job_id, completion=job_id.replace("job_", "chatcmpl-"))


@pytest.mark.parametrize("state", ["running", "completed"])
async def test_a_foreign_id_is_told_byte_for_byte_what_an_unknown_one_is(
    client: httpx.AsyncClient, other: httpx.AsyncClient, provider: Provider, model: str, state: str
) -> None:
    gate = Gate()
    provider.script(model, answer("Mine.", hold=gate))
    job_id = await submit(client, model)
    await settled(gate.reached)
    if state == "completed":
        gate.release()
        await completed(client, job_id)
    for method, path in PATHS:
        foreign = await other.request(method, fill(path, job_id))
        unknown = await other.request(method, fill(path, UNKNOWN))
        refused(foreign, 404)
        assert foreign.text.replace(job_id[4:], UNKNOWN[4:]) == unknown.text, f"{method} {path}"
        assert foreign.headers.keys() == unknown.headers.keys(), f"{method} {path}"
    assert (await get(client, job_id))["status"] == state
    gate.release()
    await completed(client, job_id)


async def test_lists_have_only_ones_own(client: httpx.AsyncClient, other: httpx.AsyncClient, model: str) -> None:
    mine = await submit(client, model, metadata={"whose": "mine"})
    theirs = await submit(other, model, metadata={"whose": "theirs"})
    await completed(client, mine)
    await completed(other, theirs)
    for who, own in ((client, mine), (other, theirs)):
        page = (await who.get("/jobs", params={"model": model})).json()
        assert [job["id"] for job in page["data"]] == [own]
    assert (await other.get("/jobs", params={"model": model, "metadata[whose]": "mine"})).json()["data"] == []


async def test_a_foreign_id_as_a_lists_place_is_told_what_an_unknown_one_is(
    client: httpx.AsyncClient, other: httpx.AsyncClient, model: str
) -> None:
    job_id = await submit(client, model)
    await completed(client, job_id)
    unknown_id = job_id[:-20] + "0" * 20  # of the same moment
    foreign = await other.get("/jobs", params={"after": job_id})
    unknown = await other.get("/jobs", params={"after": unknown_id})
    assert foreign.status_code == unknown.status_code
    assert foreign.text.replace(job_id, unknown_id) == unknown.text


async def test_accounts_that_ask_at_the_same_time_get_each_their_own(
    client: httpx.AsyncClient, other: httpx.AsyncClient, model: str
) -> None:
    async def ask(who: httpx.AsyncClient, name: str, number: int) -> None:
        text = f"{name} {number}"
        body = (await who.post("/chat/completions", json=chat(model, text))).json()
        assert body["choices"][0]["message"]["content"] == f"You said: {text}"

    await asyncio.gather(*[ask(who, name, n) for n in range(25) for who, name in ((client, "a"), (other, "b"))])


async def test_a_client_that_gives_up_leaves_nothing_for_the_next(
    client: httpx.AsyncClient, other: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    """A storm of cancelled requests of one account, while another's are answered: no answer goes astray."""
    gate = Gate()
    provider.always(model, answer(hold=gate))
    giving_up = [asyncio.create_task(client.post("/chat/completions", json=chat(model, "astray"))) for _ in range(30)]
    await provider.call(model, 30)
    asking = [asyncio.create_task(other.post("/chat/completions", json=chat(model, f"number {n}"))) for n in range(10)]
    for request in giving_up:
        request.cancel()
    await asyncio.gather(*giving_up, return_exceptions=True)
    gate.release()
    for number, response in enumerate(await asyncio.gather(*asking)):
        assert response.json()["choices"][0]["message"]["content"] == f"You said: number {number}"

    async def all_ended() -> bool:
        jobs = (await client.get("/jobs", params={"model": model, "limit": 100})).json()["data"]
        return len(jobs) == 30 and all(job["status"] in {"cancelled", "completed"} for job in jobs)

    await eventually(all_ended, "every job of who gave up to end")
