"""The pages of jobs, over an API that is a function."""

from __future__ import annotations

import html
import json
from typing import Any

import httpx
import pytest

from tests.unit.console.fake_api import ACCOUNT, EMPTY, answers, browser, console, sign_in, token_of

JOB: dict[str, Any] = {
    "id": "job_1",
    "object": "job",
    "status": "completed",
    "model": "demo",
    "format": "chat",
    "provider": "demo",
    "attempt": 2,
    "attempts": [
        {
            "attempt": 1,
            "status": "failed",
            "provider": "first",
            "model": "there",
            "started_at": 1_790_000_000.1,
            "ended_at": 1_790_000_000.35,
            "error": {"message": "Overloaded.", "type": "x", "param": None, "code": "upstream_error"},
            "dropped_params": ["seed"],
        }
    ],
    "created_at": 1_790_000_000,
    "started_at": 1_790_000_000,
    "first_token_at": 1_790_000_002,
    "finished_at": 1_790_000_004,
    "expires_at": 1_790_086_400,
    "queue_position": None,
    "service_tier": "flex",
    "background": True,
    "result": {
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "<script>alert(1)</script>"},
            }
        ]
    },
    "error": None,
    "usage": {
        "prompt_tokens": 7,
        "completion_tokens": 1500,
        "total_tokens": 1507,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
        "estimated": False,
    },
    "cost": "0.0123",
    "metadata": {"customer": "42"},
    "batch_id": "batch_1",
    "custom_id": "line-9",
    "agent_id": None,
    "agent_version": None,
}
RUNNING = JOB | {
    "status": "running",
    "result": None,
    "usage": None,
    "cost": None,
    "finished_at": None,
    "first_token_at": None,
}
MESSAGES = {**EMPTY, "data": [{"id": "m", "role": "user", "content": "Ask <b>this</b>", "content_parts": None}]}


class Api:
    """An API with one job, which records its requests."""

    def __init__(self, job: dict[str, Any] = JOB, *, read_only: bool = False) -> None:
        self.job = job
        self.account = ACCOUNT | {"key": ACCOUNT["key"] | {"read_only": read_only}}  # type: ignore[operator]
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        path = request.url.path.removeprefix("/api/v1")
        if path == "/account":
            return httpx.Response(200, json=self.account)
        if path == "/jobs":
            return httpx.Response(200, json={**EMPTY, "data": [self.job], "has_more": True, "last_id": "job_1"})
        if path == "/jobs/job_1" or path.endswith("/cancel"):
            return httpx.Response(200, json=self.job)
        if path.endswith("/events"):
            return httpx.Response(200, content=b"event: job.started\nid: 1-0\ndata: {}\n\n")
        if path.endswith("/messages"):
            return httpx.Response(200, json=MESSAGES)
        return answers(request)

    def last(self, path: str) -> httpx.Request:
        return [request for request in self.asked if request.url.path == f"/api/v1{path}"][-1]


async def show(api: Api, path: str) -> httpx.Response:
    async with browser(console(api)) as client:
        await sign_in(client)
        return await client.get(path)


async def test_filters_become_the_apis_parameters() -> None:
    api = Api()
    page = await show(
        api, "/jobs?status=failed&model=demo&format=&metadata=team=a=b, customer=42&from=2026-11-28T15:00&after=job_0"
    )
    assert page.status_code == 200
    assert dict(api.last("/jobs").url.params) == {
        "limit": "20",
        "after": "job_0",
        "status": "failed",
        "model": "demo",
        "metadata[team]": "a=b",
        "metadata[customer]": "42",
        "created_after": "1795878000",
    }
    assert "data-live" not in page.text  # a later page stays as it is
    assert "after=job_1" in page.text


@pytest.mark.parametrize(
    ("query", "field"), [("metadata=team", "metadata"), ("from=yesterday", "from"), ("created=x&status=odd", "status")]
)
async def test_a_filter_that_is_refused_is_marked(query: str, field: str) -> None:
    class Refusing(Api):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            if "status" in request.url.params:
                error = {"message": "Invalid 'status'.", "type": "x", "param": "status", "code": "invalid_value"}
                return httpx.Response(400, json={"error": error})
            return super().__call__(request)

    page = await show(Refusing(), f"/jobs?{query}")
    assert page.status_code == 400
    assert 'role="alert"' in page.text
    assert f'name="{field}"' in page.text.split('aria-invalid="true"')[0][-400:]


async def test_an_empty_list_says_what_to_do() -> None:
    async with browser(console()) as client:
        await sign_in(client)
        assert "No job yet" in (await client.get("/jobs")).text
        assert "No job fits these filters" in (await client.get("/jobs?status=failed")).text


async def test_a_job_shows_all_that_is_known_of_it() -> None:
    page = await show(Api(), "/jobs/job_1")
    text = html.unescape(page.text)
    for part in ("Overloaded.", "upstream_error", "Left out: seed", "250 ms", "1,507", "$0.0123", "customer", "line-9"):
        assert part in text
    assert 'href="/batches/batch_1"' in page.text
    assert "data-live" not in page.text.split("<main")[1]


async def test_what_models_and_clients_wrote_is_text() -> None:
    page = await show(Api(), "/jobs/job_1")
    assert "<script>alert" not in page.text
    assert "<b>this" not in page.text
    assert "&lt;script&gt;alert(1)" in page.text


async def test_a_running_job_is_live_and_can_be_cancelled() -> None:
    page = await show(Api(RUNNING), "/jobs/job_1")
    assert 'data-events="/jobs/job_1/events"' in page.text
    assert 'action="/jobs/job_1/cancel"' in page.text
    assert "data-confirm=" in page.text


async def test_a_key_that_only_reads_gets_no_acts() -> None:
    page = await show(Api(RUNNING, read_only=True), "/jobs/job_1")
    assert "/jobs/job_1/cancel" not in page.text
    assert "/jobs/job_1/erase" not in page.text
    assert "Your key only reads" in page.text


async def test_events_pass_with_their_place() -> None:
    api = Api(RUNNING)
    async with browser(console(api)) as client:
        await sign_in(client)
        answer = await client.get("/jobs/job_1/events", headers={"last-event-id": "1-7"})
    assert answer.text == "event: job.started\nid: 1-0\ndata: {}\n\n"
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert api.last("/jobs/job_1/events").headers["last-event-id"] == "1-7"


async def test_acts_reach_the_api_and_lead_back() -> None:
    api = Api(RUNNING | {"status": "cancelled"})
    async with browser(console(api)) as client:
        token = token_of(await sign_in(client))
        page = await client.post("/jobs/job_1/cancel", data={"csrf": token, "back": "//evil.invalid"})
        assert (page.url.path, "The job is cancelled." in page.text) == ("/jobs/job_1", True)
        page = await client.post("/jobs/job_1/erase", data={"csrf": token})
        assert page.url.path == "/jobs"
        again = {"csrf": token, "subject": "jobs/job_1", "delivery": "msg_1", "back": "/jobs/job_1"}
        assert (await client.post("/webhooks/resend", data=again)).url.path == "/jobs/job_1"
    sent = [(request.method, request.url.path) for request in api.asked if request.method != "GET"]
    assert sent == [
        ("POST", "/api/v1/jobs/job_1/cancel"),
        ("DELETE", "/api/v1/jobs/job_1"),
        ("POST", "/api/v1/jobs/job_1/webhook-deliveries/msg_1/resend"),
    ]


async def test_a_request_that_is_not_stored_is_said_to_be_so() -> None:
    class Forgetful(Api):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("/messages"):
                return httpx.Response(404, content=json.dumps({"error": {"message": "None.", "code": None}}).encode())
            return super().__call__(request)

    assert "The request is not stored." in (await show(Forgetful(), "/jobs/job_1")).text
