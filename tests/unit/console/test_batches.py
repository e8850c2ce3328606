"""The pages of batches: what they ask of the API, what they say, and uploads that are never held."""

from __future__ import annotations

import html
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from console.pages.batch import FILES
from tests.unit.console.fake_api import ACCOUNT, answers, browser, console, sign_in, token_of

COUNTS = {"total": 200, "completed": 48, "failed": 2}
BATCH: dict[str, Any] = {
    "id": "batch_1",
    "endpoint": "/v1/chat/completions",
    "model": "demo",
    "status": "in_progress",
    "errors": None,
    "completion_window": "24h",
    "request_counts": COUNTS,
    "usage": {
        "input_tokens": 9000,
        "input_tokens_details": {"cached_tokens": 10},
        "output_tokens": 4000,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 13000,
    },
    "cost": "0.5",
    "metadata": {"customer": "<b>42</b>"},
    "webhook": "https://hooks.invalid/batch",
    "created_at": 1_790_000_000,
    "expires_at": 1_790_086_400,
    "input_file_id": "file-in",
    "output_file_id": None,
    "error_file_id": None,
    **dict.fromkeys(
        f"{state}_at"
        for state in ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    ),
}
ENDED = BATCH | {
    "status": "completed",
    "completed_at": 1_790_000_090,
    "output_file_id": "file-out",
    "error_file_id": "file-err",
}
PROGRESS = {
    "object": "batch.progress",
    "requests_per_second": 7.5,
    "tokens_per_second": 1234.0,
    "seconds_left": 150.0,
}
JOB = {
    "id": "job_7",
    "custom_id": "line-7",
    "attempt": 3,
    "error": {"message": "The provider is <overloaded>.", "code": "overloaded", "type": "x"},
    "finished_at": 1_790_000_050,
}
RESULTS: list[dict[str, Any]] = [
    {
        "id": "batch_req_1",
        "custom_id": "line-1",
        "error": None,
        "response": {
            "status_code": 200,
            "body": {"choices": [{"message": {"content": "<i>The Rhine.</i>"}}], "usage": {"total_tokens": 321}},
        },
    },
    {"id": "batch_req_2", "custom_id": "line-2", "response": None, "error": {"code": "x", "message": "It expired."}},
]
DELIVERY = {
    "id": "msg_1",
    "event": "batch.completed",
    "status": "delivered",
    "url": BATCH["webhook"],
    "response_status": 204,
    "error": None,
    "attempts": 1,
    "created_at": 1_790_000_091,
    "next_attempt_at": None,
}
FILE = {"id": "file-in", "filename": "rivers.jsonl", "bytes": 2048, "created_at": 1_790_000_000}


class Api:
    """Answers as an API that has one batch, and keeps what it was asked."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch
        self.deliveries: list[dict[str, Any]] = [DELIVERY] if batch is ENDED else []
        self.asked: list[httpx.Request] = []
        self.refusal: tuple[int, str] | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        path = request.url.path.removeprefix("/api/v1")
        if request.method == "POST" and self.refusal is not None:
            status, message = self.refusal
            return httpx.Response(status, json={"error": {"message": message, "code": "x", "param": None}})
        match path.split("/")[1:]:
            case ["batches"]:
                return httpx.Response(200, json=self.batch if request.method == "POST" else page_of([self.batch]))
            case ["batches", _, "results"]:
                return httpx.Response(200, json=page_of(RESULTS))
            case ["batches", _, "events"]:
                return httpx.Response(200, text=f"id: 1\nevent: batch.progress\ndata: {json.dumps(PROGRESS)}\n\n")
            case ["batches", _, "webhook-deliveries"]:
                return httpx.Response(200, json=page_of(self.deliveries))
            case ["batches", *_]:
                return httpx.Response(200, json=self.batch)
            case ["jobs"]:
                return httpx.Response(200, json=page_of([JOB]))
            case ["files"]:
                return httpx.Response(200, json=page_of([FILE]))
            case ["files", _, "content"]:
                disposition = "attachment; filename=\"r_vers.jsonl\"; filename*=UTF-8''r%C3%AFvers.jsonl"
                return httpx.Response(
                    200, content=b"<script>", headers={"content-disposition": disposition, "content-type": "text/html"}
                )
            case ["files", file_id]:
                return httpx.Response(200, json=FILE | {"id": file_id})
        return answers(request)

    def last(self, method: str, path: str) -> httpx.Request:
        return next(r for r in reversed(self.asked) if (r.method, r.url.path) == (method, f"/api/v1{path}"))


def page_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": rows, "has_more": True, "first_id": rows and rows[0]["id"], "last_id": "last"}


def text_of(page: httpx.Response) -> str:
    assert page.status_code == 200, page.text
    return page.text


async def test_the_list_shows_how_far_each_batch_is() -> None:
    api = Api(BATCH)
    async with browser(console(api)) as client:
        await sign_in(client, next="/batches/new")
        shown = text_of(await client.get("/batches?key=customer&value=42&after=batch_0"))
        assert dict(api.last("GET", "/batches").url.params) == {
            "limit": "25",
            "after": "batch_0",
            "metadata[customer]": "42",
        }
        assert 'max="200" value="50"' in shown
        assert "2 failed" in shown
        assert "&lt;b&gt;42&lt;/b&gt;" in shown
        assert "key=customer&amp;value=42&amp;after=last" in shown


async def test_a_batch_that_runs_shows_its_pace_its_failed_lines_and_its_results() -> None:
    api = Api(BATCH)
    async with browser(console(api)) as client:
        await sign_in(client, next="/batches/new")
        shown = text_of(await client.get("/batches/batch_1"))
        for part in (
            "7.5",
            "1,234",
            "2 min 30 s",
            "$0.50",
            "of about $2.00",
            "line-7",
            "The provider is &lt;overloaded&gt;.",
            'href="/jobs/job_7"',
            "&lt;i&gt;The Rhine.&lt;/i&gt;",
            "321",
            'href="/jobs/job_1"',
            "It expired.",
            'data-live="2"',
            "/batches/batch_1/cancel",
            "failed_after=last",
        ):
            assert part in shown, part
        await client.get("/batches/batch_1?after=batch_req_9&failed_after=job_9")
        assert api.last("GET", "/batches/batch_1/results").url.params["after"] == "batch_req_9"
        assert dict(api.last("GET", "/jobs").url.params) | {"limit": ""} == {
            "batch_id": "batch_1",
            "status": "failed",
            "after": "job_9",
            "limit": "",
        }


async def test_a_key_that_only_reads_sees_no_way_to_act() -> None:
    def api(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/v1/account":
            return httpx.Response(200, json=ACCOUNT | {"key": {**ACCOUNT["key"], "read_only": True}})  # type: ignore[dict-item]
        return Api(BATCH)(request)

    async with browser(console(api)) as client:
        await sign_in(client, next="/batches")
        for path in ("/batches", "/batches/new", "/batches/batch_1"):
            shown = text_of(await client.get(path))
            assert not any(act in shown for act in ('href="/batches/new"', "/cancel", 'id="new-batch"', "upload.js"))


async def test_a_batch_that_has_ended_is_still() -> None:
    async with browser(console(Api(ENDED))) as client:
        await sign_in(client, next="/batches/new")
        shown = text_of(await client.get("/batches/batch_1"))
        assert "data-live" not in shown
        assert "/cancel" not in shown
        assert "1 min 30 s" in shown
        assert all(f"/batches/batch_1/files/{name}" in shown for name in FILES)
        assert 'name="subject" value="batches/batch_1"' in shown


async def test_errors_in_the_input_are_shown_with_their_lines() -> None:
    errors = [
        {"line": 3, "param": "body.model", "code": "model_not_found", "message": "There is no 'x'."},
        {"line": None, "param": None, "code": "empty_file", "message": "Nothing."},
    ]
    counts = {"total": 0, "completed": 0, "failed": 0}
    failed = BATCH | {"status": "failed", "failed_at": 1, "errors": {"data": errors}, "request_counts": counts}
    async with browser(console(Api(failed))) as client:
        await sign_in(client, next="/batches/new")
        shown = text_of(await client.get("/batches/batch_1"))
        assert '<td data-label="Line" class="num">3</td>' in shown
        assert '<td data-label="Line" class="num">all</td>' in shown
        assert "There is no &#39;x&#39;." in shown


async def test_files_are_saved_and_never_shown() -> None:
    async with browser(console(Api(ENDED))) as client:
        await sign_in(client, next="/batches/new")
        for name, file_id in (("input", "file-in"), ("output", "file-out"), ("errors", "file-err")):
            answer = await client.get(f"/batches/batch_1/files/{name}")
            assert answer.content == b"<script>", file_id
            assert answer.headers["content-type"] == "application/octet-stream"
            assert "r%C3%AFvers.jsonl" in answer.headers["content-disposition"]
        assert (await client.get("/batches/batch_1/files/other")).status_code == 404


async def test_a_batch_is_cancelled() -> None:
    api = Api(ENDED)
    async with browser(console(api)) as client:
        token = token_of(await sign_in(client, next="/batches/new"))
        assert (await client.post("/batches/batch_1/cancel")).status_code == 403
        answer = await client.post("/batches/batch_1/cancel", data={"csrf": token})
        assert answer.url.path == "/batches/batch_1"
        assert [r.url.path for r in api.asked if r.method == "POST"] == ["/api/v1/batches/batch_1/cancel"]
        api.refusal = 409, "Cannot cancel a batch with status 'completed'."
        shown = text_of(await client.post("/batches/batch_1/cancel", data={"csrf": token}))
        assert "Cannot cancel a batch" in shown


async def test_a_form_makes_one_batch() -> None:
    api = Api(BATCH)
    form = {
        "input_file_id": "file-in",
        "completion_window": "6h",
        "metadata": "a=1\r\n\r\nb = x=y ",
        "request_key": "k",
    }
    async with browser(console(api)) as client:
        token = token_of(await sign_in(client, next="/batches/new"))
        answer = await client.post("/batches", data=form | {"csrf": token})
        assert answer.url.path == "/batches/batch_1"
        created = api.last("POST", "/batches")
        assert created.headers["idempotency-key"] == "k"
        assert json.loads(created.content) == {
            "input_file_id": "file-in",
            "endpoint": "/v1/chat/completions",
            "completion_window": "6h",
            "metadata": {"a": "1", "b": "x=y"},
        }


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"input_file_id": ""}, 422, "Choose a file"),
        ({"metadata": "a=1\nnothing"}, 422, "This line is not: nothing"),
        ({}, 429, "Too many batches."),
        ({}, 503, "The API is unavailable."),
    ],
)
async def test_a_form_that_is_refused_keeps_its_values(change: dict[str, str], status: int, message: str) -> None:
    api = Api(BATCH)
    api.refusal = status, "Too many batches."
    form = {"input_file_id": "file-in", "completion_window": "6h", "metadata": "a=1", "webhook": "https://x.invalid"}
    async with browser(console(api)) as client:
        token = token_of(await sign_in(client, next="/batches/new"))
        answer = await client.post("/batches", data=form | change | {"csrf": token})
        assert answer.status_code == status
        shown = html.unescape(answer.text)
        assert message in shown
        assert all(value in shown for value in (form | change).values())
        assert ('value="file-in" selected' in shown) == ("input_file_id" not in change)


class Draining(httpx.AsyncBaseTransport):
    """An API that reads an upload piece by piece."""

    def __init__(self) -> None:
        self.read = 0
        self.headers = httpx.Headers()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return answers(request)
        self.headers = request.headers
        async for piece in request.stream:  # type: ignore[union-attr]
            self.read += len(piece)
        return httpx.Response(200, json=FILE)


async def test_an_upload_is_sent_on_as_it_arrives() -> None:
    api, piece, pieces = Draining(), b"x" * 65_536, 500
    sent = held = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent, held
        for _ in range(pieces):
            held = max(held, sent - api.read)
            sent += len(piece)
            yield piece

    app = console()
    app.state.http = httpx.AsyncClient(base_url="http://api.invalid/api/v1", transport=api)
    async with browser(app) as client:
        token = token_of(await sign_in(client, next="/batches/new"))
        form = {"content-type": "multipart/form-data; boundary=b", "content-length": str(len(piece) * pieces)}
        refused = await client.post("/batches/files", content=body(), headers={"content-type": "text/plain"})
        assert (refused.status_code, api.read) == (403, 0)
        sent = held = 0
        answer = await client.post("/batches/files", content=body(), headers=form | {"x-csrf-token": token})
        assert answer.json() == FILE
        assert api.read == sent == len(piece) * pieces
        assert held <= 2 * len(piece)
        assert {name: api.headers[name] for name in form} == form


@pytest.mark.parametrize(("status", "message"), [(413, "The file is larger than 3 bytes."), (503, "unavailable")])
async def test_an_upload_that_is_refused_says_why(status: int, message: str) -> None:
    api = Api(BATCH)
    api.refusal = status, message
    async with browser(console(api)) as client:
        token = token_of(await sign_in(client, next="/batches/new"))
        answer = await client.post("/batches/files", content=b"x", headers={"x-csrf-token": token})
        assert answer.status_code == status
        assert message in answer.json()["error"]
