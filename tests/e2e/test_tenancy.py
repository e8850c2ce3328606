"""An id of another account is answered as an id that never was, on every path that takes one."""

from __future__ import annotations

import pytest

from tests.e2e.tenants import BODIES, OPERATIONS, Json, make_everything
from tests.service import Service, connect


@pytest.fixture
async def ids(service: Service, model: str) -> Json:
    return await make_everything(service, model)


async def test_a_stranger_learns_of_no_id(service: Service, ids: Json) -> None:
    stranger = service.create_key("stranger", "--scope", "keys:write", "--scope", "webhooks:write")
    never = {name: value[:-6] + "abcdef" for name, value in ids.items()}
    never["completion_id"] = f"chatcmpl-{never['job_id'].removeprefix('job_')}"
    async with connect(service, stranger["key"]) as client:
        for method, path in OPERATIONS:
            answers = []
            for known in (ids, never):
                response = await client.request(
                    method, path.format(**known), json=BODIES.get(path, {}) if method == "POST" else None
                )
                text = response.text
                for name, value in known.items():
                    text = text.replace(value, name)
                answers.append((response.status_code, text))
            assert answers[0] == answers[1], f"{method} {path}"
            assert answers[0][0] == 404, f"{method} {path} {answers[0]}"
