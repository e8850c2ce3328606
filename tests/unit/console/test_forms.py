"""What the console reads of a form: all that the API takes of a session, and little of anyone else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from console.forms import ANYONE, SIGNED_IN, URLENCODED_BYTES
from tests.unit.console.fake_api import ACCOUNT, EMPTY, KEY, browser, console, sign_in, token_of

MIB = 1024 * 1024
LONG = "\N{CJK UNIFIED IDEOGRAPH-6C34}" * 120_000
MOST = "\N{CJK UNIFIED IDEOGRAPH-6C34}" * (20 * MIB // 3)
URLENCODED = {"content-type": "application/x-www-form-urlencoded"}
MULTIPART = {"content-type": "multipart/form-data; boundary=b"}


class FakeApi:
    """An API that keeps the messages that are sent to it."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.asked = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        path = request.url.path.removeprefix("/api/v1")
        if request.method == "POST":
            self.messages.append(json.loads(request.content)["request"]["messages"][-1]["content"])
            return httpx.Response(422, json={"error": {"message": "It is kept.", "code": None, "param": None}})
        answers: dict[str, Any] = {"/account": ACCOUNT, "/models": {"data": [{"id": "demo", "owned_by": "demo"}]}}
        return httpx.Response(200, json=answers.get(path, EMPTY))


def multipart(**fields: str) -> dict[str, Any]:
    """Return the arguments of a request whose form is sent in parts without files."""
    return {"files": {name: (None, value) for name, value in fields.items()}}


@pytest.mark.parametrize(
    ("message", "parts"),
    [(LONG, False), (LONG, True), ("x" * 1_100_000, False), (MOST, True)],
    ids=["cjk", "cjk in parts", "1.1 MB", "20 MiB in parts"],
)
async def test_a_long_message_is_sent_and_stays_on_the_page(message: str, parts: bool) -> None:
    api = FakeApi()
    async with browser(console(api)) as client:
        form = {"csrf": token_of(await sign_in(client)), "model": "demo", "message": message}
        page = await client.post("/playground", **(multipart(**form) if parts else {"data": form}))
    assert page.status_code == 422
    assert api.messages == [message]
    assert message in page.text


@pytest.mark.parametrize("path", ["/playground", "/agents/new"])
async def test_pages_with_long_texts_send_them_in_parts(path: str) -> None:
    async with browser(console(FakeApi())) as client:
        await sign_in(client)
        assert 'enctype="multipart/form-data"' in (await client.get(path)).text


async def test_a_form_that_is_too_large_is_refused_in_plain_words() -> None:
    async with browser(console(FakeApi())) as client:
        form = {"csrf": token_of(await sign_in(client)), "model": "demo", "message": "x" * SIGNED_IN.size}
        whole = await client.post("/playground", **multipart(**form))
        encoded = await client.post("/playground", data={**form, "message": "x" * URLENCODED_BYTES})
    for page, most in ((whole, "21.0 MiB"), (encoded, "4.0 MiB")):
        assert page.status_code == 413
        assert f"The form has more than {most}." in page.text
        assert "No such page" not in page.text


async def test_a_form_with_a_file_is_refused() -> None:
    async with browser(console(FakeApi())) as client:
        token = token_of(await sign_in(client))
        page = await client.post("/playground", data={"csrf": token}, files={"message": ("a.txt", b"x")})
    assert page.status_code == 400
    assert "Too many files" in page.text
    assert "No such page" not in page.text


async def test_a_form_is_read_once_also_with_the_token_in_a_header() -> None:
    api = FakeApi()
    async with browser(console(api)) as client:
        token = token_of(await sign_in(client))
        form = {"model": "demo", "message": "Hello"}
        page = await client.post("/playground", data=form, headers={"x-csrf-token": token})
    assert page.status_code == 422
    assert api.messages == ["Hello"]


async def test_a_path_without_a_page_says_so() -> None:
    async with browser(console(FakeApi())) as client:
        page = await client.get("/nothing")
        refused = await client.get("/sign-out")
    assert (page.status_code, refused.status_code) == (404, 405)
    assert "No such page" in page.text
    assert "No such page" not in refused.text
    assert "Method Not Allowed" in refused.text


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({"data": {"key": KEY + "x" * ANYONE.size}}, 413),
        ({"data": {f"field{number}": "" for number in range(ANYONE.fields + 1)}}, 400),
        (multipart(key="x" * ANYONE.size), 413),
        ({"files": {"key": ("key.txt", b"x")}}, 400),
    ],
    ids=["long", "fields", "long part", "file"],
)
async def test_little_is_read_before_a_key_is_checked(form: dict[str, Any], status: int) -> None:
    api = FakeApi()
    async with browser(console(api)) as client:
        page = await client.post("/sign-in", **form)
    assert page.status_code == status
    assert "The console refused this" in page.text
    assert api.asked == 0


@pytest.mark.parametrize(
    ("headers", "first", "piece"),
    [(URLENCODED, b"key=", b"x" * 1024), (URLENCODED, b"", b"&" * 1024), (MULTIPART, b"--b--\r\n", b"x" * 1024)],
    ids=["field", "separators", "after the last part"],
)
async def test_a_body_without_an_end_is_refused(headers: dict[str, str], first: bytes, piece: bytes) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield first
        while True:
            sent += len(piece)
            assert sent <= 2 * ANYONE.size
            yield piece

    async with browser(console(FakeApi())) as client:
        page = await client.post("/sign-in", content=body(), headers=headers)
    assert page.status_code == 413
    assert sent <= ANYONE.size + len(piece)
    assert "The form has more than 64.0 KiB." in page.text
