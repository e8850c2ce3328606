"""What `GET /status` shows of a service."""

from __future__ import annotations

import httpx

from api.resources.status import Status
from tests.fakes.provider import Json
from tests.service import BOOTSTRAP_KEY, Service


def read(service: Service) -> Json:
    """Return the status, which has the documented form."""
    headers = {"authorization": f"Bearer {BOOTSTRAP_KEY}"}
    told = httpx.get(f"{service.base_url}/api/v1/status", headers=headers, timeout=30).raise_for_status()
    Status.model_validate_json(told.content, strict=True)
    body: Json = told.json()
    assert body.keys() == Status.model_fields.keys()
    return body


def provider_of(told: Json, name: str) -> Json:
    """Return what a status tells of a provider."""
    return next(each for each in told["providers"] if each["name"] == name)
