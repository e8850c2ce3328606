"""Requests of every kind that the OpenAPI document allows, and many that it does not: every answer is as documented."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.app import create_app
from headrace.settings import Settings
from tests.service import Service

_CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]

schema = schemathesis.openapi.from_dict(create_app(Settings()).openapi())


@pytest.fixture(scope="module")
def headers(service: Service) -> dict[str, str]:
    """Of a key of an account that nobody else has."""
    key = service.create_key("fuzz", "--scope", "keys:write", "--scope", "usage:read")
    return {"authorization": f"Bearer {key['key']}"}


@schema.parametrize()
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_documented(case: Any, service: Service, headers: dict[str, str]) -> None:
    if isinstance(case.query, dict):
        case.query.pop("wait", None)  # nobody here waits
    if isinstance(case.body, dict):
        case.body.pop("timeout", None)
        if isinstance(case.body.get("model"), str):
            case.body["model"] = "fake-fuzz"  # what a provider would be asked
    response = case.call(base_url=service.base_url, headers=headers, timeout=30)
    assert response.status_code != 500, response.text
    case.validate_response(response, checks=_CHECKS)
