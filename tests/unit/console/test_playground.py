"""The playground: what it submits, in both formats, and what it shows of the job."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.unit.console.fake_api import ACCOUNT, EMPTY, KEY, browser, console, sign_in, token_of

MESSAGES = [
    {"id": "1", "role": "system", "content": "Be brief."},
    {"id": "2", "role": "user", "content": "What's a headrace? <b>"},
]
CHAT_JOB: dict[str, Any] = {
    "id": "job_1",
    "format": "chat",
    "status": "completed",
    "model": "demo",
    "provider": "demo",
    "created_at": 1,
    "started_at": 1,
    "first_token_at": 2,
    "finished_at": 3,
    "error": None,
    "usage": {"total_tokens": 7, "prompt_tokens": 3, "completion_tokens": 4},
    "cost": "0.01",
    "result": {
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "A way."}}]
    },
}


PARTS = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
CALLS = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
WITH_PARTS = {"id": "1", "role": "user", "content": None, "content_parts": PARTS}
CALLING = {"id": "2", "role": "assistant", "content": None, "content_parts": None, "tool_calls": CALLS}
RESULT = {"id": "3", "role": "tool", "tool_call_id": "c1", "content": "sunny", "content_parts": None}
ITEM = {"id": "msg_1", "status": "completed", "type": "message", "role": "user", "content": "One?"}


class FakeApi:
    """An API with one ended job, which keeps what is sent to it."""

    def __init__(self, refusal: httpx.Response | None = None) -> None:
        self.sent: list[tuple[str, Any, str]] = []
        self.refusal = refusal

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api/v1")
        if request.method == "POST":
            self.sent.append((path, json.loads(request.content), request.headers["idempotency-key"]))
            made = {"id": "job_2"} if path == "/jobs" else {"id": "resp_3"}
            return self.refusal or httpx.Response(200, json=made)
        answers: dict[str, Any] = {
            "/account": ACCOUNT,
            "/models": {"data": [{"id": "demo", "owned_by": "demo"}]},
            "/jobs/job_1": CHAT_JOB,
            "/jobs/job_2": CHAT_JOB | {"id": "job_2", "status": "running", "result": None},
            "/jobs/job_3": CHAT_JOB | {"id": "job_3", "format": "responses", "status": "running", "result": None},
            "/jobs/job_4": CHAT_JOB | {"id": "job_4", "status": "cancelled", "result": None},
            "/jobs/job_5": CHAT_JOB | {"id": "job_5", "format": "responses", "status": "failed", "result": None},
            "/jobs/job_9": CHAT_JOB | {"id": "job_9", "format": "responses", "result": {"output": []}},
            "/chat/completions/chatcmpl-4/messages": {**EMPTY, "data": [WITH_PARTS, CALLING, RESULT]},
            "/responses/resp_5/input_items": {**EMPTY, "data": [ITEM]},
            "/chat/completions/chatcmpl-1/messages": {**EMPTY, "data": MESSAGES, "last_id": "2"},
        }
        return httpx.Response(200, json=answers.get(path, EMPTY))


async def sent(api: FakeApi, **form: str) -> httpx.Response:
    async with browser(console(api)) as client:
        token = token_of(await sign_in(client, next="/playground"))
        return await client.post("/playground", data={"csrf": token, "once": "once-1", "model": "demo", **form})


async def test_a_message_is_a_background_job_that_the_url_names() -> None:
    api = FakeApi()
    page = await sent(
        api, format="chat", system="Be brief.", message="Hello", temperature="0.5", max_tokens="9", effort="low"
    )
    body = {
        "model": "demo",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        "temperature": 0.5,
        "max_completion_tokens": 9,
        "reasoning_effort": "low",
    }
    assert api.sent == [("/jobs", {"request": body}, "once-1")]
    assert page.url.params["job"] == "job_2"
    assert 'data-events="/jobs/job_2/events"' in page.text
    assert "Hello" not in str(page.url)


async def test_the_next_message_takes_the_conversation_along() -> None:
    api = FakeApi()
    await sent(api, format="chat", message="And then?", job="job_1")
    assert api.sent[0][1]["request"]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What's a headrace? <b>"},
        {"role": "assistant", "content": "A way."},
        {"role": "user", "content": "And then?"},
    ]


async def test_a_response_goes_on_from_the_one_before() -> None:
    api = FakeApi()
    page = await sent(api, format="responses", message="Hello", job="job_9", tier="flex", system="Short.")
    body = {
        "model": "demo",
        "input": "Hello",
        "instructions": "Short.",
        "previous_response_id": "resp_9",
        "service_tier": "flex",
        "background": True,
    }
    assert api.sent == [("/responses", body, "once-1")]
    assert page.url.params["job"] == "job_3"


async def test_a_conversation_goes_on_after_a_job_without_an_answer() -> None:
    api = FakeApi()
    await sent(api, format="chat", message="And then?", job="job_4")
    assert api.sent[0][1]["request"]["messages"] == [
        {"role": "user", "content": PARTS},
        {"role": "assistant", "tool_calls": CALLS},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "user", "content": "And then?"},
    ]
    await sent(api, format="responses", message="Two?", job="job_5")
    body = api.sent[1][1]
    assert "previous_response_id" not in body
    assert body["input"] == [
        {"type": "message", "role": "user", "content": "One?"},
        {"role": "user", "content": "Two?"},
    ]


async def test_an_api_that_is_unavailable_loses_no_message() -> None:
    unavailable = False

    class Away(FakeApi):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(503, json={}) if unavailable else super().__call__(request)

    async with browser(console(Away())) as client:
        token = token_of(await sign_in(client, next="/playground"))
        unavailable = True
        form = {"csrf": token, "once": "once-1", "model": "demo", "format": "chat", "message": "My text"}
        page = await client.post("/playground", data=form)
    assert page.status_code == 503
    assert "My text</textarea>" in page.text
    assert 'name="once" value="once-1"' in page.text  # the job that the API may have made is not made twice


@pytest.mark.parametrize(
    ("param", "field"),
    [
        ("request.max_completion_tokens", "max_tokens"),
        ("reasoning.effort", "effort"),
        ("messages[0].content", "message"),
    ],
)
async def test_a_refusal_stands_at_its_field_and_keeps_the_message(param: str, field: str) -> None:
    error = {"message": "Not so.", "type": "invalid_request_error", "param": param, "code": None}
    page = await sent(FakeApi(httpx.Response(400, json={"error": error})), format="chat", message="My text")
    assert page.status_code == 422
    assert f'id="{field}-error">Not so.' in page.text
    assert "My text</textarea>" in page.text


async def test_a_setting_that_is_not_a_number_is_not_sent() -> None:
    api = FakeApi()
    page = await sent(api, format="chat", message="Hi", temperature="hot")
    assert (page.status_code, api.sent) == (422, [])
    assert 'id="temperature-error"' in page.text


async def test_an_ended_job_shows_its_cost_and_the_programs_that_send_it() -> None:
    async with browser(console(FakeApi())) as client:
        await sign_in(client, next="/playground")
        page = (await client.get("/playground?job=job_1&temperature=0.5")).text
    assert "$0.01" in page
    assert "$HEADRACE_API_KEY" in page
    assert "What&#39;s a headrace? &lt;b&gt;" in page
    assert "&#34;temperature&#34;: 0.5" in page
    assert KEY not in page


@pytest.mark.parametrize(
    ("public_url", "base"),
    [("", "http://api.invalid/api/v1"), ("https://headrace.example.com/", "https://headrace.example.com/api/v1")],
)
async def test_the_programs_use_the_public_address_of_the_api(public_url: str, base: str) -> None:
    async with browser(console(FakeApi(), public_url=public_url)) as client:
        await sign_in(client, next="/playground")
        page = (await client.get("/playground?job=job_1")).text
    assert f"curl -N {base}/chat/completions" in page
    assert f"base_url=&#34;{base}&#34;" in page
