"""`GET /`: what this service is, its version, and where its API, its reference and its console are."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

import headrace
from api.http.errors import render_json
from api.http.request import ApiRequest
from headrace.settings import Settings

router = APIRouter(tags=["Health"])

_WHAT = "An asynchronous completion service: it accepts requests to language models, and loses none."
_STYLE = (
    ":root{color-scheme:light dark;font:1rem/1.6 system-ui,sans-serif}"
    "main{max-width:38rem;margin:15vh auto 0;padding:0 1.5rem}"
    "h1{font-size:1.6rem;margin:0}p{margin:.25rem 0 1.5rem}"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:.5rem 1.5rem}dd{margin:0;overflow-wrap:anywhere}"
)
_HEADERS = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Home(BaseModel):
    """The service. Paths are at the same address."""

    object: Literal["service"]
    name: str
    version: str
    description: str
    api: str = Field(description="The path below which the API is")
    openapi: str = Field(description="The path of the API's description for programs")
    reference: str | None = Field(description="The path of the interactive reference; null if it is turned off")
    console: str | None = Field(description="The address of the web console, where the operator has set one")


def _describe(settings: Settings) -> Home:
    return Home(
        object="service",
        name="Headrace",
        version=headrace.__version__,
        description=_WHAT,
        api="/api/v1",
        openapi="/openapi.json",
        reference="/docs" if settings.docs else None,
        console=settings.console_url or None,
    )


def _wants_page(accept: str) -> bool:
    """Return whether a request is a browser's: those name HTML, and programs that read both also name JSON."""
    return "text/html" in accept and "json" not in accept


@router.get(
    "/",
    summary="What is this?",
    responses={200: {"model": Home, "content": {"text/html": {}}}},
)
async def get_home(request: ApiRequest) -> Response:
    """Tell what this service is and where its parts are: as HTML to browsers, as JSON to others."""
    home = _describe(request.state["settings"])
    if _wants_page(request.headers.get("accept", "")):
        return Response(_page(home), headers={**_HEADERS, "vary": "accept"}, media_type="text/html; charset=utf-8")
    return render_json(home.model_dump(), {"vary": "accept"})


def _page(home: Home) -> str:
    links = [
        ("Web console", home.console),
        ("API reference", home.reference),
        ("OpenAPI document", home.openapi),
    ]
    rows = [f'<dt>{name}<dd><a href="{escape(link)}">{escape(link)}</a>' for name, link in links if link is not None]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{home.name}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<main><h1>{home.name} {escape(home.version)}</h1><p>{home.description}</p>"
        f"<dl><dt>API<dd><code>{home.api}</code>{''.join(rows)}</dl></main></html>"
    )
