"""The API introduces itself without a key: `/` names it, and `/docs` is its interactive reference."""

from __future__ import annotations

import re

import httpx
import pytest
from starlette.testclient import TestClient

import headrace
from api.app import create_app
from api.resources import home
from headrace.settings import Settings
from tests.service import Service

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
LINK = re.compile(r"""(?:src|href)=["']?([^"'> ]+)""")


@pytest.fixture
def root(service: Service) -> str:
    return service.base_url


def policy(response: httpx.Response) -> dict[str, str]:
    """Return the directives of a page's Content-Security-Policy."""
    directives = response.headers["content-security-policy"].split("; ")
    return {name: sources for name, _, sources in (directive.partition(" ") for directive in directives)}


async def test_programs_are_told_in_json(anonymous: httpx.AsyncClient, root: str) -> None:
    about = (await anonymous.get(f"{root}/")).json()
    assert (about["object"], about["name"], about["version"]) == ("service", "Headrace", headrace.__version__)
    assert (about["api"], about["console"]) == ("/api/v1", None)
    for accept in ("application/json", "application/json, text/plain, */*", "text/html, application/json"):
        response = await anonymous.get(f"{root}/", headers={"accept": accept})
        assert response.headers["vary"] == "accept"
        assert response.json() == about
    for path in (about["openapi"], about["reference"]):
        assert (await anonymous.get(root + path)).status_code == 200
    assert (await anonymous.head(f"{root}/")).status_code == 200


async def test_browsers_are_shown_a_page_with_links(anonymous: httpx.AsyncClient, root: str) -> None:
    response = await anonymous.get(f"{root}/", headers={"accept": BROWSER})
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert f"Headrace {headrace.__version__}" in response.text
    assert set(LINK.findall(response.text)) == {"/docs", "/openapi.json"}
    assert policy(response)["default-src"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]


async def test_the_reference_is_made_of_this_servers_files(anonymous: httpx.AsyncClient, root: str) -> None:
    page = await anonymous.get(f"{root}/docs")
    assert page.status_code == 200
    links = {link for link in LINK.findall(page.text) if not link.startswith("data:")}
    assert len(links) == 5
    for link in links:
        file = await anonymous.get(str(httpx.URL(f"{root}/docs").join(link)))
        assert file.status_code == 200, link
        assert not re.match(r"(?:\w+:)?//", link)
    allowed = policy(page)
    assert allowed["default-src"] == "'none'"
    assert allowed["script-src"] == allowed["style-src"] == allowed["connect-src"] == "'self'"
    assert allowed["frame-ancestors"] == allowed["form-action"] == allowed["base-uri"] == "'none'"
    assert "<script>" not in page.text
    assert "style=" not in page.text


@pytest.mark.parametrize("name", ["redoc.standalone.js", "..%2f__init__.py", "x"])
async def test_no_other_file_is_served(anonymous: httpx.AsyncClient, root: str, name: str) -> None:
    response = await anonymous.get(f"{root}/docs/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_url"


def test_the_reference_can_be_turned_off_and_the_console_named() -> None:
    settings = Settings(docs=False, console_url="https://console.example/?a&b")
    client = TestClient(create_app(settings))
    assert client.get("/docs").status_code == 404
    assert client.get("/docs/reference.js").status_code == 404
    page = home._page(home._describe(settings))
    assert set(LINK.findall(page)) == {"/openapi.json", "https://console.example/?a&amp;b"}
