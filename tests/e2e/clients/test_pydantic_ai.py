"""pydantic-ai's model for the Responses API."""

from __future__ import annotations

import openai
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.providers.openai import OpenAIProvider

from tests.e2e.clients.answers import asked, calling
from tests.fakes.provider import Provider, answer, usage_of

CALL = ("weather", {"city": "Ulm"})


def responses_model(client: openai.AsyncOpenAI, model: str) -> OpenAIResponsesModel:
    return OpenAIResponsesModel(model, provider=OpenAIProvider(openai_client=client))


@pytest.fixture
def agent(openai_client: openai.AsyncOpenAI, model: str) -> Agent[None, str]:
    """An agent with a tool."""
    agent = Agent(responses_model(openai_client, model), instructions="Be brief.")

    @agent.tool_plain
    def weather(city: str) -> str:
        """Return the weather of a city."""
        return f"rain in {city}"

    return agent


async def test_an_agent_calls_its_tool(agent: Agent[None, str], provider: Provider, model: str) -> None:
    provider.script(model, calling(CALL, usage=usage_of(20, 3)), answer("Take a coat.", usage=usage_of(30, 4)))
    result = await agent.run("Do I need a coat?")
    assert result.output == "Take a coat."
    assert (result.usage.input_tokens, result.usage.output_tokens) == (50, 7)
    assert asked(provider.calls_for(model)[1]) == [
        ("system", "Be brief."),
        ("user", "Do I need a coat?"),
        ("assistant", ["call_0"]),
        ("tool", "rain in Ulm"),
    ]


async def test_a_streamed_run(agent: Agent[None, str], provider: Provider, model: str) -> None:
    provider.script(model, calling(CALL), answer("Take a warm coat."))
    async with agent.run_stream("Do I need a coat?") as result:
        pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
    assert "".join(pieces) == "Take a warm coat."
    assert len(pieces) > 1


@pytest.mark.parametrize("chained", [False, True])
async def test_turns(agent: Agent[None, str], provider: Provider, model: str, chained: bool) -> None:
    """The framework sends the whole history, or the last response's id and what is new."""
    provider.script(model, calling(CALL), answer("Take a coat."), answer("And boots."))
    settings = OpenAIResponsesModelSettings()
    if chained:
        settings["openai_previous_response_id"] = "auto"
    first = await agent.run("Do I need a coat?", model_settings=settings)
    second = await agent.run("Only a coat?", message_history=first.all_messages(), model_settings=settings)
    assert second.output == "And boots."
    assert asked(provider.calls_for(model)[2]) == [
        ("system", "Be brief."),
        ("user", "Do I need a coat?"),
        ("assistant", ["call_0"]),
        ("tool", "rain in Ulm"),
        ("assistant", "Take a coat."),
        ("user", "Only a coat?"),
    ]


class Advice(BaseModel):
    coat: bool
    reason: str


@pytest.mark.parametrize("output", [ToolOutput, NativeOutput])
async def test_an_answer_of_a_type(openai_client: openai.AsyncOpenAI, output: type[ToolOutput[Advice]]) -> None:
    agent = Agent(responses_model(openai_client, "demo"), output_type=output(Advice))
    assert isinstance((await agent.run("Do I need a coat?")).output, Advice)


async def test_a_request_that_is_refused_is_an_error_with_its_status(agent: Agent[None, str]) -> None:
    settings = OpenAIResponsesModelSettings(openai_previous_response_id="resp_" + "0" * 32)
    with pytest.raises(Exception, match="previous_response_not_found"):
        await agent.run("Do I need a coat?", model_settings=settings)
