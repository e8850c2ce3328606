"""Values that JSON and URLs can carry, and a database, a header or an integer cannot: refused or taken, and never 500.

Every operation is asked, in each place that a client writes to, by raw bytes: no client library writes some of these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.e2e.jobs import chat
from tests.e2e.test_openapi_fuzz import OPERATIONS
from tests.service import BOOTSTRAP_KEY, Service

# What stands for itself in JSON: no library writes any of these as they are here.
ODD = {
    "NUL": b'"a\\u0000b"',
    "half a surrogate pair": b'"a\\ud800b"',
    "beyond 63 bits": str(2**63).encode(),
    "beyond 64 bits": str(2**64).encode(),
    "below 64 bits": str(-(2**63) - 1).encode(),
    "25 digits": b"9" * 25,
    "5,000 digits": b"9" * 5000,
    "infinity": b"1e999",
    "a small fraction": b"1e-400",
    "NaN": b"NaN",
}
IN_URLS = ["%00", "a%00b", "%ff", "%ed%a0%80", "9" * 5000, str(2**63), "-1", "1e999", "nan", "%F0%9F%98%80", ""]
_PLACE = "the place of an odd value"

CHAT = chat(
    "fake-odd",
    temperature=1,
    n=1,
    max_completion_tokens=5,
    seed=1,
    stop=["x"],
    logit_bias={"50256": 1},
    user="u",
    safety_identifier="s",
    prompt_cache_key="p",
    metadata={"k": "v"},
    webhook="https://example.invalid/",
    timeout=60,
    fallbacks=["fake-odder"],
    tools=[{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"x": 1}}}],
    unknown={"x": [1]},
    background=True,
)
LIMITS = {
    "requests_per_minute": 1000, "tokens_per_minute": 100_000, "jobs_in_flight": 50, "jobs_queued": 50,
    "daily_budget": "1.5", "monthly_budget": 2, "models": ["*"], "alert_webhook": "https://example.invalid/",
}  # fmt: skip
AGENT = {
    "name": "n", "description": "d", "bio": ["b"], "system_prompt": "s", "model": "fake-odd", "metadata": {"k": "v"},
    "parameters": {"temperature": 1, "user": "u", "x": {"y": 1}}, "messages": [{"role": "user", "content": "c"}],
}  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    "POST /chat/completions": CHAT,
    "POST /jobs": {
        "request": CHAT, "priority": "flex", "metadata": {"k": "v"}, "webhook": "https://a.invalid/", "timeout": 9,
    },
    "POST /batches": {
        "requests": [{"custom_id": "a", "body": {"model": "fake-odd"}}], "metadata": {"k": "v"},
        "completion_window": "24h", "webhook": "https://a.invalid/",
        "output_expires_after": {"anchor": "created_at", "seconds": 3600},
    },
    "POST /agents": AGENT,
    "POST /api-keys": {"name": "n", "limits": LIMITS, "expires_in_seconds": 60, "account": "odd"},
    "POST /account": {"limits": LIMITS},
}  # fmt: skip


def places(document: Any) -> Iterator[Any]:
    """Yield the document once for each of its scalars and each of its keys, with a mark there."""
    if isinstance(document, dict):
        for name, value in document.items():
            for inner in places(value):
                yield {**document, name: inner}
            yield {**document, _PLACE: value}
    elif isinstance(document, list):
        for index, value in enumerate(document):
            for inner in places(value):
                yield [*document[:index], inner, *document[index + 1 :]]
    else:
        yield _PLACE


@pytest.fixture(scope="module")
def admin(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=f"{service.base_url}/api/v1", headers={"authorization": f"Bearer {BOOTSTRAP_KEY}"}, timeout=60
    ) as client:
        yield client


def _fine(response: httpx.Response) -> None:
    assert response.status_code < 500, f"{response.request.url}: {response.text}"
    if response.status_code >= 400:
        assert response.json()["error"]["message"]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("operation", BODIES)
def test_an_odd_value_in_a_body_is_refused_or_taken(operation: str, odd: str, admin: httpx.Client) -> None:
    mark, path = json.dumps(_PLACE).encode(), operation.partition(" ")[2]
    params = {"account": "odd"} if path == "/account" else None
    for document in places(BODIES[operation]):
        body = json.dumps(document).encode()
        is_key = body.count(mark + b":") > 0
        if is_key and not ODD[odd].startswith(b'"'):
            continue
        _fine(admin.post(path, content=body.replace(mark, ODD[odd]), params=params))


@pytest.mark.parametrize("label", [label for label in OPERATIONS if label.startswith("GET ")])
def test_an_odd_value_in_a_url_is_refused_or_taken(label: str, admin: httpx.Client) -> None:
    path = label.partition(" ")[2]
    names = [parameter["name"] for parameter in OPERATIONS[label].definition.raw.get("parameters", [])]
    queries = [name for name in names if "{" + name + "}" not in path]
    for value in IN_URLS:
        for name in [*queries, "metadata[k]", f"metadata[{value}]"]:
            filled = path.partition("{")[0] + "x" if "{" in path else path
            _fine(admin.get(f"{filled.removeprefix('/api/v1')}?{quote(name, safe='%[]')}={value}"))
        if "{" in path and value:
            head, _, rest = path.partition("{")
            _fine(admin.get(f"{head.removeprefix('/api/v1')}{value}{rest.partition('}')[2]}"))


@pytest.mark.parametrize("header", ["idempotency-key", "last-event-id", "range", "x-request-id", "x-api-key"])
def test_an_odd_value_in_a_header_is_refused_or_taken(header: str, admin: httpx.Client) -> None:
    file = admin.post("/files", files={"file": ("a.jsonl", b"{}")}, data={"purpose": "batch"}).json()["id"]
    job = admin.post("/jobs", json={"request": chat("fake-odd")}).json()["id"]
    digits = b"9" * 5000
    for value in (b"\xff", digits, b"bytes=%b-" % digits, b"bytes=-%b" % digits, b"1-99999999999999999999", b""):
        _fine(admin.get(f"/files/{file}/content", headers={header.encode(): value}))
        _fine(admin.get(f"/jobs/{job}", headers={header.encode(): value}))
        with admin.stream("GET", f"/jobs/{job}/events", headers={header.encode(): value}) as response:
            response.read()
            _fine(response)
        _fine(admin.post("/agents", json={"name": "a", "model": "fake-odd"}, headers={header.encode(): value}))
