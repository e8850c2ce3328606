"""Background responses: what their clients get if the response is erased before the answer."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from api.resources import responses
from headrace.errors import NotFoundError
from headrace.ids import new_id, response_id


async def test_a_response_that_is_erased_at_once_is_named_by_its_own_id(monkeypatch: pytest.MonkeyPatch) -> None:
    async def accept(*_: object) -> int:
        return 0

    async def find_response(*_: object) -> None:
        return None

    monkeypatch.setattr(responses, "answering", lambda *_: nullcontext(lambda: None))
    monkeypatch.setattr(responses, "accept", accept)
    monkeypatch.setattr(responses, "find_response", find_response)
    job_id = new_id("job")
    principal: Any = SimpleNamespace(account_id="")
    submission: Any = SimpleNamespace(
        job=SimpleNamespace(id=job_id), asked=SimpleNamespace(terms=SimpleNamespace(stream=False))
    )
    request: Any = None
    with pytest.raises(NotFoundError, match=response_id(job_id)):
        await responses._start(request, principal, submission)
