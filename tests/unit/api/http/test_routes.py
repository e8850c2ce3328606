"""Which requests are answered ahead of FastAPI's router."""

from __future__ import annotations

from api.app import create_app
from headrace.settings import Settings

PATHS = ("/chat/completions", "/responses", "/responses/compact", "/responses/input_tokens")


def test_every_request_for_a_completion_goes_straight_to_its_endpoint() -> None:
    direct = create_app(Settings()).direct
    assert set(direct) == {("POST", prefix + path) for prefix in ("/v1", "/api/v1") for path in PATHS}
