"""`headrace jobs`: operators read and change the jobs of every account, directly in the database."""

from __future__ import annotations

import json
import re
import secrets

import httpx
import pytest

from tests.e2e.jobs import completed, ended, reaches, submit
from tests.fakes.provider import Json, Provider, answer, hang, settled, status
from tests.service import Service, free_port

UNKNOWN = "job_" + "0" * 32


def failed(service: Service, *arguments: str, **environment: str) -> str:
    """Return the one line that a command which cannot do its work says."""
    result = service.command(*arguments, **environment)
    assert result.returncode == 1, f"{result.returncode}\n{result.stdout}{result.stderr}"
    assert not result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def listed(service: Service, *options: str) -> list[Json]:
    jobs: list[Json] = json.loads(service.run("jobs", "list", "--json", *options))
    return jobs


def test_help_lists_every_command(service: Service) -> None:
    printed = service.run("--help")
    for command in ("dev", "demo", "api", "worker", "scheduler", "migrate", "keys", "jobs", "usage"):
        assert f"\n  {command} " in printed
    for command in ("list", "show", "cancel"):
        assert f"\n  {command} " in service.run("jobs", "--help")


async def test_the_list_has_every_accounts_jobs_newest_first(
    service: Service, client: httpx.AsyncClient, other: httpx.AsyncClient, model: str
) -> None:
    mine = await submit(client, model)
    theirs = await submit(other, model)
    for who, job_id in ((client, mine), (other, theirs)):
        await completed(who, job_id)
    assert [(job["id"], job["account"]) for job in listed(service) if job["model"] == model] == [
        (theirs, "other"),
        (mine, "default"),
    ]
    assert theirs not in {job["id"] for job in listed(service, "--account", "default")}
    assert {job["account"] for job in listed(service, "--account", "other")} == {"other"}
    idle = f"idle-{secrets.token_hex(4)}"
    service.create_key(idle)
    assert listed(service, "--account", idle) == []
    assert [job["id"] for job in listed(service, "--account", "other", "--limit", "1")] == [theirs]
    printed = service.run("jobs", "list", "--account", "other", "--limit", "1")
    assert theirs in printed
    assert model in printed


async def test_the_list_is_narrowed_by_status(
    service: Service, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, status(400), hang)
    failing = await submit(client, model)
    await ended(client, failing)
    running = await submit(client, model)
    await provider.call(model, 2)
    for state, job_id in (("failed", failing), ("running", running)):
        jobs = listed(service, "--status", state, "--limit", "1000")
        assert {job["status"] for job in jobs} == {state}
        assert job_id in {job["id"] for job in jobs}
    await client.post(f"/jobs/{running}/cancel")
    await ended(client, running)


async def test_a_job_is_shown_as_the_api_has_it(
    service: Service, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, answer("The answer\nhas two lines."))
    job_id = await submit(client, model, metadata={"customer": "42"})
    job = await completed(client, job_id)
    shown = json.loads(service.run("jobs", "show", job_id, "--json"))
    assert shown.pop("account") == "default"
    assert shown == job
    printed = service.run("jobs", "show", job_id)
    for text in (job_id, "default", model, "completed", job["cost"], "customer", "The answer", "has two lines."):
        assert text in printed


async def test_a_failed_job_is_shown_with_its_error(
    service: Service, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, status(400))
    job_id = await submit(client, model)
    await ended(client, job_id)
    assert "scripted 400" in service.run("jobs", "show", job_id)
    shown = json.loads(service.run("jobs", "show", job_id, "--json"))
    assert shown["status"] == "failed"
    assert "scripted 400" in shown["error"]["message"]
    assert shown["result"] is None


async def test_each_attempt_is_shown_on_a_line(
    service: Service, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, status(500), answer("At last."))
    job_id = await submit(client, model)
    first, second = (await completed(client, job_id))["attempts"]
    printed = service.run("jobs", "show", job_id)
    lines = [" ".join(line.split()) for line in printed.splitlines() if f"fake/{model}, " in line]
    assert [re.sub(r"[\d-]{10} [\d:]{8}, [\d.]+ s", "…", line) for line in lines] == [
        f"attempts 1: fake/{model}, failed, …, {first['error']['code'] or first['error']['type']}",
        f"2: fake/{model}, completed, …",
    ]
    assert "{'attempt'" not in printed
    assert json.loads(service.run("jobs", "show", job_id, "--json"))["attempts"] == [first, second]


@pytest.mark.parametrize("text", ["", "Let me see."])
async def test_an_answer_with_tool_calls_is_shown_with_them(
    service: Service, client: httpx.AsyncClient, provider: Provider, model: str, text: str
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    provider.script(model, answer(text, message={"tool_calls": [call]}))
    job_id = await submit(client, model)
    await completed(client, job_id)
    printed = service.run("jobs", "show", job_id)
    assert "look_up" in printed
    assert text in printed


async def test_what_others_wrote_does_nothing_to_the_terminal(
    service: Service, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    hostile = f"{model}[bold][red]"
    provider.script(hostile, answer("[/red]\x1b]0;title\x07 over\rwritten"))
    job_id = await submit(client, hostile, metadata={"[/b]": "\x1b[2J"})
    await completed(client, job_id)
    for printed in (service.run("jobs", "show", job_id), service.run("jobs", "list")):
        assert hostile in printed
        assert not set(printed) & {"\x1b", "\x9b", "\x07", "\r"}


async def test_an_erased_job_is_no_more(service: Service, client: httpx.AsyncClient, model: str) -> None:
    job_id = await submit(client, model)
    await completed(client, job_id)
    await client.delete(f"/jobs/{job_id}")
    assert job_id in failed(service, "jobs", "show", job_id)
    assert job_id not in service.run("jobs", "list", "--json")


async def test_a_running_job_is_cancelled_and_its_upstream_call_ended(
    service: Service, other: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, hang)
    job_id = await submit(other, model)
    call = await provider.call(model)
    assert job_id in service.run("jobs", "cancel", job_id)
    await settled(call.disconnected)
    job = await ended(other, job_id)
    assert job["status"] == "cancelled"
    assert job["error"]["code"] == "job_cancelled"
    assert "Cancelled" in service.run("jobs", "cancel", job_id), "a second time is no error"


@pytest.mark.parametrize("redis_url", ["", "redis://127.0.0.1:{free}/0"], ids=["unknown", "away"])
async def test_without_redis_the_worker_finds_out_by_itself(
    service: Service, client: httpx.AsyncClient, provider: Provider, model: str, redis_url: str
) -> None:
    provider.script(model, hang)
    job_id = await submit(client, model)
    call = await provider.call(model)
    result = service.command("jobs", "cancel", job_id, REDIS_URL=redis_url.format(free=free_port()))
    assert result.returncode == 0, result.stderr
    await settled(call.disconnected)
    assert (await ended(client, job_id))["status"] == "cancelled"


async def test_a_queued_job_is_cancelled_at_once(
    service: Service, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, status(429, retry_after=60))
    job_id = await submit(client, model)
    await provider.call(model)
    await reaches(client, job_id, "queued")
    assert service.run("jobs", "cancel", job_id) == f"Cancelled {job_id}.\n"
    assert (await client.get(f"/jobs/{job_id}")).json()["status"] == "cancelled"
    assert len(provider.calls_for(model)) == 1


async def test_a_job_that_has_ended_cannot_be_cancelled(
    service: Service, client: httpx.AsyncClient, model: str
) -> None:
    job_id = await submit(client, model)
    before = await completed(client, job_id)
    assert "completed" in failed(service, "jobs", "cancel", job_id)
    assert (await client.get(f"/jobs/{job_id}")).json() == before


@pytest.mark.parametrize("command", ["show", "cancel"])
@pytest.mark.parametrize("job_id", [UNKNOWN, "job_x", "", "key_" + "0" * 32, "'; --"])
def test_a_job_that_is_not_there_is_named(service: Service, command: str, job_id: str) -> None:
    assert f"'{job_id}'" in failed(service, "jobs", command, job_id)


@pytest.mark.parametrize("arguments", [["list"], ["show", UNKNOWN], ["cancel", UNKNOWN]], ids=" ".join)
def test_without_postgres_a_line_says_so(service: Service, arguments: list[str]) -> None:
    away = f"postgresql://someone:secret@127.0.0.1:{free_port()}/x"
    line = failed(service, "jobs", *arguments, DATABASE_URL=away)
    assert "DATABASE_URL" in line
    assert "secret" not in line
    assert "DATABASE_URL" in failed(service, "jobs", *arguments, DATABASE_URL="")


async def test_an_invalid_redis_url_is_told_before_anything_is_done(
    service: Service, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, hang)
    job_id = await submit(client, model)
    await provider.call(model)
    result = service.command("jobs", "cancel", job_id, REDIS_URL="http://nonsense")
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "REDIS_URL" in line
    assert (await client.get(f"/jobs/{job_id}")).json()["status"] == "running"
    service.run("jobs", "cancel", job_id)
    await ended(client, job_id)


@pytest.mark.parametrize(
    "arguments",
    [["list", "--status", "lost"], ["list", "--limit", "0"], ["list", "--limit", "x"], ["show"], ["cancel"], ["what"]],
    ids=" ".join,
)
def test_a_command_that_makes_no_sense_is_refused(service: Service, arguments: list[str]) -> None:
    result = service.command("jobs", *arguments)
    assert result.returncode == 2
    assert "Usage: " in result.stderr
    assert "Traceback" not in result.stderr
