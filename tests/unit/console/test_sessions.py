"""A session: who gets one, what it protects, and when it ends."""

from __future__ import annotations

import httpx
import pytest

from console import sessions
from console.security import COOKIE
from console.sessions import Session, Sessions
from tests.unit.console.fake_api import KEY, answers, browser, console, sign_in, token_of


async def test_a_key_that_the_api_knows_starts_a_session() -> None:
    async with browser(console()) as client:
        assert (await client.get("/?from=a+link")).url.path == "/sign-in"
        page = await sign_in(client)
        assert (page.status_code, page.url.path) == (200, "/")
        assert "Overview" in page.text


async def test_the_browser_gets_a_cookie_and_never_the_key() -> None:
    async with browser(console()) as client:
        answer = await client.post("/sign-in", data={"key": KEY}, follow_redirects=False)
        cookie = answer.headers["set-cookie"]
        assert all(part in cookie for part in (f"{COOKIE}=", "HttpOnly", "SameSite=strict"))
        page = await client.get("/")
        assert KEY not in cookie + page.text + str(answer.headers) + str(page.headers)


@pytest.mark.parametrize(
    ("scheme", "headers", "secure"),
    [
        ("http", {}, False),
        ("http", {"origin": "http://console.invalid"}, False),
        ("http", {"origin": "https://console.invalid"}, True),  # a proxy with TLS stands between
        ("https", {}, True),
        ("https", {"origin": "https://console.invalid"}, True),
    ],
)
async def test_the_cookie_stays_with_tls_where_the_browser_uses_it(
    scheme: str, headers: dict[str, str], secure: bool
) -> None:
    async with browser(console(), scheme=scheme) as client:
        answer = await client.post("/sign-in", data={"key": KEY}, headers=headers, follow_redirects=False)
        assert ("Secure" in answer.headers["set-cookie"]) is secure


@pytest.mark.parametrize(("key", "status"), [("hr_wrong", 401), ("", 422), ("hr_\N{SNOWMAN}", 422)])
async def test_any_other_key_is_refused(key: str, status: int) -> None:
    async with browser(console()) as client:
        page = await sign_in(client, key=key)
        assert (page.status_code, page.url.path) == (status, "/sign-in")
        assert 'role="alert"' in page.text
        assert COOKIE not in client.cookies


async def test_a_sign_in_while_the_api_is_unavailable_says_so() -> None:
    def unavailable(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    async with browser(console(unavailable)) as client:
        page = await sign_in(client)
        assert page.status_code == 503
        assert "The API is unavailable" in page.text


@pytest.mark.parametrize(
    ("target", "path"),
    [("/jobs", "/jobs"), ("https://evil.invalid/", "/"), ("//evil.invalid", "/"), ("/\\evil.invalid", "/"), ("", "/")],
)
async def test_a_sign_in_leads_to_a_page_of_the_console_alone(target: str, path: str) -> None:
    async with browser(console()) as client:
        answer = await client.post("/sign-in", data={"key": KEY, "next": target}, follow_redirects=False)
        assert answer.headers["location"] == path


async def test_a_change_needs_the_token_of_its_session() -> None:
    async with browser(console()) as client:
        page = await sign_in(client)
        for form in ({}, {"csrf": "guessed"}, {"csrf": "\N{SNOWMAN}"}):
            assert (await client.post("/sign-out", data=form)).status_code == 403
        assert (await client.get("/")).url.path == "/"
        ended = await client.post("/sign-out", data={"csrf": token_of(page)})
        assert ended.url.path == "/sign-in"
        assert (await client.get("/")).url.path == "/sign-in"


async def test_a_page_that_refreshes_itself_takes_no_message() -> None:
    async with browser(console()) as client:
        await sign_in(client)
        (session,) = client._transport.app.state.sessions._sessions.values()  # type: ignore[attr-defined]
        session.say("It is done.")
        assert "It is done." not in (await client.get("/", headers={"console-refresh": "1"})).text
        assert "It is done." in (await client.get("/")).text
        assert "It is done." not in (await client.get("/")).text


@pytest.mark.parametrize("headers", [{"sec-fetch-site": "cross-site"}, {"origin": "https://evil.invalid"}])
async def test_another_sites_form_is_refused(headers: dict[str, str]) -> None:
    async with browser(console()) as client:
        token = token_of(await sign_in(client))
        assert (await client.post("/sign-out", data={"csrf": token}, headers=headers)).status_code == 403
        assert (await client.post("/sign-in", data={"key": KEY}, headers=headers)).status_code == 403


async def test_a_revoked_key_ends_the_session() -> None:
    revoked = False

    def api(request: httpx.Request) -> httpx.Response:
        if revoked:
            request.headers["authorization"] = "Bearer revoked"
        return answers(request)

    async with browser(console(api)) as client:
        await sign_in(client)
        revoked = True
        page = await client.get("/")
        assert page.url.path == "/sign-in"
        assert "no longer valid" in page.text
        revoked = False
        assert (await client.get("/")).url.path == "/sign-in"


async def test_every_answer_has_the_headers_that_protect_it() -> None:
    def api(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={}) if request.url.path.endswith("/agents") else answers(request)

    async with browser(console(api), raises=False) as client:
        await sign_in(client)
        for path, status in (
            ("/sign-in", 200),
            ("/static/console.css", 200),
            ("/nothing", 404),
            ("/sign-out", 405),
            ("/", 200),
            ("/agents", 500),  # the fault: an answer of the API without its list
        ):
            answer = await client.get(path)
            assert answer.status_code == status
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "static" in path or answer.headers["cache-control"] == "no-store"


async def test_the_api_that_is_unavailable_is_one_page_that_retries() -> None:
    lost = False

    def api(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, json={}) if lost else answers(request)

    async with browser(console(api)) as client:
        await sign_in(client)
        lost = True
        page = await client.get("/")
        assert page.status_code == 503
        assert "data-retry" in page.text


def test_an_account_that_signs_in_again_and_again_ends_its_own_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_MOST_SESSIONS", 4)
    known = Sessions()
    first = known.start(Session("sk-1", {"id": "acct_1"}))
    tokens = [known.start(Session("sk-2", {"id": "acct_2"})) for _ in range(20)]
    assert known.find(first, refresh=True) is not None
    assert [known.find(token, refresh=True) is not None for token in tokens] == [False] * 17 + [True] * 3
