"""Choices of a format that has one an answer: as many calls, of which few are under way at once."""

from __future__ import annotations

import asyncio
import json

import pytest

from headrace.jobs.state import State
from headrace.settings import Settings
from tests.fakes.provider import Behaviour, Provider, answer, status, usage_of
from tests.fakes.provider import Exchange as Answering
from tests.integration.job_rows import Jobs
from tests.integration.worker.test_executor import collected, executing, settings  # noqa: F401

CATALOGUE = """
[providers.messages]
kind = "anthropic"
base_url = "{url}"
api_key = "env:TESTS_PROVIDER_KEY"
{limits}
[models."{model}"]
routes = ["messages/{model}"]
output_limit = 100
"""


class Crowd:
    """Answers that come once so many calls have been under way at once, and the most that ever were."""

    def __init__(self, size: int) -> None:
        self.now = self.most = 0
        self._size = size
        self._complete = asyncio.Event()

    def answering(self, behaviour: Behaviour) -> Behaviour:
        async def behave(answering: Answering) -> None:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now >= self._size:
                self._complete.set()
            await self._complete.wait()
            await asyncio.sleep(0.02)  # a call too many would be here as well
            self.now -= 1
            await behaviour(answering)

        return behave


@pytest.mark.parametrize(("limits", "most"), [("", 8), ("max_concurrency = 2", 2), ("requests_per_minute = 20", 8)])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_few_of_the_calls_that_choices_take_are_under_way_at_once(
    settings: Settings,  # noqa: F811  (the fixture)
    jobs: Jobs,
    model: str,
    provider: Provider,
    limits: str,
    most: int,
    streamed: bool,
) -> None:
    assert settings.config is not None
    settings.config.write_text(CATALOGUE.format(url=provider.url(), limits=limits, model=model))
    crowd = Crowd(most)
    provider.always(model, crowd.answering(answer("One of many.", usage=usage_of(10, 3))))
    request = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "n": 20}
    async with executing(settings, jobs, model) as rig:
        job_id = await jobs.submit(model=model, request=json.dumps(request), background=False, streamed=streamed)
        await rig.executor.take([job_id], tier="default")
        assert await rig.ended(job_id) is State.COMPLETED
    answered = json.loads((await jobs.row(job_id)).response)
    assert [choice["index"] for choice in answered["choices"]] == list(range(20))
    assert {choice["message"]["content"] for choice in answered["choices"]} == {"One of many."}
    assert answered["usage"]["total_tokens"] == 20 * 13
    assert len(provider.calls_for(model)) == 20
    assert crowd.most == most


async def test_after_a_call_that_fails_no_other_begins(
    settings: Settings,  # noqa: F811  (the fixture)
    jobs: Jobs,
    model: str,
    provider: Provider,
) -> None:
    assert settings.config is not None
    settings.config.write_text(CATALOGUE.format(url=provider.url(), limits="max_concurrency = 1", model=model))
    provider.script(model, *[answer("One of many.", usage=usage_of(10, 3))] * 3, status(400))
    request = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "n": 20}
    async with executing(settings, jobs, model) as rig:
        job_id = await jobs.submit(model=model, request=json.dumps(request), background=False)
        await rig.executor.take([job_id], tier="default")
        assert await rig.ended(job_id) is State.FAILED
    assert len(provider.calls_for(model)) == 4
    [spent] = await jobs.ledger(job_id)
    assert (spent.prompt_tokens, spent.completion_tokens) == (30, 9)
