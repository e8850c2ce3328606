"""The forms of keys, limits and agents: what they ask of the API, and how they show what it refuses."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.unit.console.fake_api import ACCOUNT, EMPTY, browser, console, sign_in, token_of

ADMIN = {**ACCOUNT, "limits": {}, "key": {**ACCOUNT["key"], "scopes": ["admin"]}}  # type: ignore[dict-item]
KEPT = {
    "id": "key_2",
    "object": "api_key",
    "name": "ci",
    "account": "own",
    "hint": "hr_abcd",
    "scopes": [],
    "limits": {"requests_per_minute": 5, "models": ["demo"], "alert_webhook": "https://hooks.invalid/"},
    "created_at": 1_790_000_000,
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": None,
    "previous_expires_at": None,
    "status": "active",
    "parent_id": None,
}


class RecordingApi:
    """An API that records each change, and answers it with `refusal` if that is set."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.refusal: httpx.Response | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api/v1")
        if request.method != "GET":
            self.asked.append((request.method, path, json.loads(request.content or b"null")))
            if self.refusal is not None:
                return self.refusal
            if path == "/api-keys" or path.endswith("/rotate"):
                return httpx.Response(200, json={**KEPT, "key": "hr_shown-once", "previous_expires_at": 1_790_000_000})
            return httpx.Response(200, json={"id": "agent_1", "object": "agent"})
        answers: dict[str, Any] = {"/account": ADMIN, "/api-keys/key_2": KEPT, "/status": None}
        return httpx.Response(200, json=answers.get(path, EMPTY))


async def test_a_new_key_is_asked_for_and_shown_once() -> None:
    api = RecordingApi()
    async with browser(console(api)) as client:
        token = token_of(await sign_in(client, next="/keys"))
        form = {
            "csrf": token,
            "name": "ci",
            "scopes": ["usage:read"],
            "requests_per_minute": "1,000",
            "monthly_budget": "25",
            "models": "demo, gpt-*",
            "days": "10",
            "read_only": "1",
        }
        made = await client.post("/keys", data=form)
    assert "hr_shown-once" in made.text
    assert api.asked == [
        (
            "POST",
            "/api-keys",
            {
                "name": "ci",
                "scopes": ["usage:read"],
                "limits": {"requests_per_minute": 1000, "monthly_budget": "25", "models": ["demo", "gpt-*"]},
                "expires_in_seconds": 864_000,
                "read_only": True,
            },
        )
    ]


async def test_a_change_of_limits_keeps_what_the_form_does_not_show() -> None:
    api = RecordingApi()
    async with browser(console(api)) as client:
        token = token_of(await sign_in(client, next="/keys"))
        await client.post("/keys/key_2", data={"csrf": token, "name": "ci", "requests_per_minute": "7"})
    (_, path, body) = api.asked[0]
    assert (path, body["limits"]) == (
        "/api-keys/key_2",
        {"requests_per_minute": 7, "alert_webhook": "https://hooks.invalid/"},
    )


@pytest.mark.parametrize(
    ("form", "refusal", "text"),
    [
        ({"requests_per_minute": "many"}, None, "This is not a number."),
        ({"daily_budget": "-1"}, "Invalid 'limits.daily_budget': it must be positive.", "it must be positive"),
    ],
)
async def test_a_refused_form_keeps_its_values_and_names_the_field(
    form: dict[str, str], refusal: str | None, text: str
) -> None:
    api = RecordingApi()
    if refusal is not None:
        error = {"message": refusal, "type": "invalid_request_error", "param": "limits.daily_budget", "code": None}
        api.refusal = httpx.Response(400, json={"error": error})
    async with browser(console(api)) as client:
        token = token_of(await sign_in(client, next="/keys"))
        page = await client.post("/keys", data={"csrf": token, "name": "kept <name>", **form})
    (name, value) = next(iter(form.items()))
    assert page.status_code == 422
    assert text in page.text
    assert f'id="{name}" name="{name}" type="text" value="{value}"' in page.text
    assert f'aria-describedby="{name}-error"' in page.text
    assert "kept &lt;name&gt;" in page.text


async def test_an_agents_form_sends_its_definition_and_checks_its_json() -> None:
    api = RecordingApi()
    async with browser(console(api)) as client:
        token = token_of(await sign_in(client, next="/keys"))
        wrong = await client.post("/agents", data={"csrf": token, "name": "Miller", "model": "demo", "parameters": "{"})
        assert (wrong.status_code, api.asked) == (422, [])
        assert "This is not JSON" in wrong.text
        form = {"csrf": token, "name": "Miller", "model": "demo", "bio": "One.\n\nTwo.", "parameters": '{"top_p": 1}'}
        await client.post("/agents", data=form, follow_redirects=False)
    definition = {"name": "Miller", "model": "demo", "bio": ["One.", "Two."], "parameters": {"top_p": 1}}
    assert api.asked == [("POST", "/agents", definition)]
