"""`GET /docs`: an interactive reference of the HTTP API. Swagger UI draws it from `/openapi.json`.

The files of Swagger UI come with the package `fastapi-offline`, so a browser fetches nothing from another host. The
page needs no key: it shows what `/openapi.json` shows. A key that its reader enters stays in the page's memory, and
the policy below lets the page send it to this server alone.
"""

from __future__ import annotations

from pathlib import Path

import fastapi_offline
from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

router = APIRouter(prefix="/docs", include_in_schema=False)

_SWAGGER_UI = Path(fastapi_offline.__file__).parent / "static"
_FILES = {
    "swagger-ui.css": _SWAGGER_UI / "swagger-ui.css",
    "swagger-ui-bundle.js": _SWAGGER_UI / "swagger-ui-bundle.js",
    "reference.css": Path(__file__).with_name("reference.css"),
    "reference.js": Path(__file__).with_name("reference.js"),
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
# A browser may reuse the files for ten minutes: after an upgrade it has the new ones soon.
_FILE_HEADERS = {"cache-control": "public, max-age=600", "x-content-type-options": "nosniff"}
# Paths are relative, so that the page works behind a proxy that serves it below another path.
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Headrace API</title>
<meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="stylesheet" href="docs/reference.css">
<main id="reference"></main>
<noscript>This page needs JavaScript. <a href="openapi.json">openapi.json</a> describes the API without it.</noscript>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/reference.js" type="module"></script>
</html>
"""


@router.get("")
async def get_reference() -> Response:
    """Return the page."""
    return Response(_PAGE, headers=_HEADERS, media_type="text/html; charset=utf-8")


@router.get("/{name}")
async def get_file(name: str) -> Response:
    """Return a script or a style sheet of the page.

    Raises:
        HTTPException: The page has no such file.
    """
    if name not in _FILES:
        raise HTTPException(404)
    return FileResponse(_FILES[name], headers=_FILE_HEADERS)
