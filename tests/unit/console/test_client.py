"""The console's client of the API."""

from __future__ import annotations

import logging

import pytest

from console.client import Api, ApiUnavailableError, open_http
from tests.service import free_port


async def test_an_api_that_does_not_answer_is_a_warning_with_its_address_and_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with open_http(url) as http:
        with pytest.raises(ApiUnavailableError):
            await Api(http, "hr_key").get("/models")
    [record] = [record for record in caplog.records if record.name == "console.client"]
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"cannot reach the API at {url}/api/v1/ (HEADRACE_CONSOLE_API_URL): ")
    assert "connection" in record.getMessage()
