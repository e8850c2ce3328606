"""The demo models as a newcomer meets them: OpenAI's own client, and the examples of the README as they stand there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessage, ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel, Field

from headrace.catalogue.demo import DEMO_MODELS
from tests.service import BOOTSTRAP_KEY, ROOT, Service
from tests.waiting import PATIENCE

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello!"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Step(BaseModel):
    explanation: str
    minutes: int = Field(gt=0, le=60)


class Recipe(BaseModel):
    name: str
    steps: list[Step] = Field(min_length=2)
    source: str | None


async def test_a_pydantic_model_is_parsed(openai_client: openai.AsyncOpenAI) -> None:
    completion = await openai_client.chat.completions.parse(model="demo", messages=HELLO, response_format=Recipe, n=2)
    recipes = [choice.message.parsed for choice in completion.choices]
    assert len(recipes) == 2
    for recipe in recipes:
        assert isinstance(recipe, Recipe)
        assert len(recipe.steps) >= 2


async def ask(
    client: openai.AsyncOpenAI, messages: list[ChatCompletionMessageParam], *, streamed: bool
) -> ChatCompletionMessage:
    if streamed:
        async with client.chat.completions.stream(model="demo", messages=messages, tools=[WEATHER]) as events:
            return (await events.get_final_completion()).choices[0].message
    answer = await client.chat.completions.create(model="demo", messages=messages, tools=[WEATHER])
    return answer.choices[0].message


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_tool_is_called_and_its_result_answered(openai_client: openai.AsyncOpenAI, streamed: bool) -> None:
    messages = list(HELLO)
    message = await ask(openai_client, messages, streamed=streamed)
    [call] = message.tool_calls or []
    assert call.type == "function"
    assert set(json.loads(call.function.arguments)) == {"city"}
    messages.append(message.model_dump(include={"role", "content", "tool_calls"}))  # type: ignore[arg-type]
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    message = await ask(openai_client, messages, streamed=streamed)
    assert not message.tool_calls
    assert str(message.content).startswith("weather returned: sunny")


async def test_choices_with_log_probabilities_stream_side_by_side(openai_client: openai.AsyncOpenAI) -> None:
    texts, tokens, reasons = ["", ""], ["", ""], ["", ""]
    stream = await openai_client.chat.completions.create(
        model="demo", messages=HELLO, n=2, logprobs=True, top_logprobs=2, max_completion_tokens=5, stream=True
    )
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            for token in (choice.logprobs and choice.logprobs.content) or ():
                tokens[choice.index] += token.token
                assert len(token.top_logprobs) == 2
            reasons[choice.index] += choice.finish_reason or ""
    assert texts == tokens
    assert texts[0] != texts[1]
    assert reasons == ["length", "length"]


async def test_one_that_fails_once_is_answered(openai_client: openai.AsyncOpenAI) -> None:
    answer = await openai_client.chat.completions.create(model="demo-flaky", messages=HELLO)
    assert "Hello!" in str(answer.choices[0].message.content)


@pytest.mark.parametrize(("model", "status"), [("demo-failing", 502), ("demo-overloaded", 429), ("demo-broken", 502)])
async def test_others_fail_as_they_say(openai_client: openai.AsyncOpenAI, model: str, status: int) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        await openai_client.chat.completions.create(model=model, messages=HELLO)
    assert raised.value.status_code == status


async def test_a_stream_that_breaks_off_says_so(openai_client: openai.AsyncOpenAI) -> None:
    stream = await openai_client.chat.completions.create(model="demo-broken", messages=HELLO, stream=True)
    iterator, text = aiter(stream), ""
    while "You said: Hello!" not in text:
        text += (await anext(iterator)).choices[0].delta.content or ""
    with pytest.raises(openai.APIError, match="broke off"):
        [chunk async for chunk in iterator]


async def test_a_schema_that_nothing_fits_is_the_requests_fault(openai_client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no example for the schema"):
        await openai_client.chat.completions.create(
            model="demo",
            messages=HELLO,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": []}}},
        )


async def test_an_unknown_model_is_told_with_those_that_are_there(openai_client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        await openai_client.chat.completions.create(model="demoo", messages=HELLO)
    assert "There are: demo, " in raised.value.message
    assert all(name in raised.value.message for name in DEMO_MODELS)


async def test_a_key_sees_no_model_that_it_may_not_ask(service: Service) -> None:
    key = service.create_key("frugal", "--model", "demo-s*", "--model", "gone")["key"]
    async with openai.AsyncOpenAI(base_url=f"{service.base_url}/v1", api_key=str(key), max_retries=0) as client:
        for model in ("demo", "gone"):
            with pytest.raises(openai.NotFoundError) as raised:
                await client.chat.completions.create(model=model, messages=HELLO)
            assert "There are: demo-slow." in raised.value.message


EXAMPLES = ("try-without-an-account", "watch-a-job", "background-responses")
"""The guides whose examples in Python go on from the README's."""


def examples(text: str, language: str) -> list[str]:
    """Return the examples of a text in a language, but for what asks the reader for a key."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
    return [block for block in blocks if "hr_..." not in block]


def test_the_examples_of_the_documents_run(service: Service, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text().partition("\n## Use it\n")[2].partition("\n## ")[0]
    pages = [(ROOT / "docs/how-to" / f"{name}.md").read_text() for name in EXAMPLES]
    shell = "\n".join(["set -eu -o pipefail", *examples(readme, "sh")])
    shell = shell.replace("http://127.0.0.1:8700", service.base_url)
    python = "\n".join(examples("".join([readme, *pages]), "python"))
    environment = {
        "URL": f"{service.base_url}/api/v1",
        "KEY": BOOTSTRAP_KEY,
        "DATABASE_URL": service.stores.database_url,
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
    }
    for command in (["bash", "-c", shell], [sys.executable, "-c", python]):
        ended = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert '"error":{' not in ended.stdout
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 2
