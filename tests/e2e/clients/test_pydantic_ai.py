"""pydantic-ai's model for the Responses API."""

from __future__ import annotations

import base64

import openai
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai import OpenAIProvider

from tests.e2e.clients.answers import asked, calling
from tests.fakes.provider import Provider, answer, usage_of

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
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


@pytest.mark.parametrize("kept_by", ["client", "chain", "conversation"])
async def test_turns(
    agent: Agent[None, str], openai_client: openai.AsyncOpenAI, provider: Provider, model: str, kept_by: str
) -> None:
    """The framework sends the whole history; or what is new, with the last response's id or a conversation's."""
    provider.script(model, calling(CALL), answer("Take a coat."), answer("And boots."))
    settings = OpenAIResponsesModelSettings()
    if kept_by == "chain":
        settings["openai_previous_response_id"] = "auto"
    elif kept_by == "conversation":
        settings["openai_conversation_id"] = (await openai_client.conversations.create()).id
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


async def test_thoughts_and_images(agent: Agent[None, str], provider: Provider, model: str) -> None:
    name = f"anthropic-{model}"
    provider.script(name, calling(CALL, thoughts=["Rain", " or not?"]), answer("Take a coat."))
    settings = OpenAIResponsesModelSettings(openai_reasoning_effort="low", openai_reasoning_summary="detailed")
    assert isinstance(agent.model, OpenAIResponsesModel)
    result = await agent.run(
        ["Is this rain?", BinaryContent(PNG, media_type="image/png")],
        model=OpenAIResponsesModel(
            name,
            provider=OpenAIProvider(openai_client=agent.model.client),
            # The framework keeps sealed thoughts for models with OpenAI's names only, unless it is told.
            profile=OpenAIModelProfile(openai_supports_encrypted_reasoning_content=True),
        ),
        model_settings=settings,
    )
    thoughts = [
        part.content for message in result.all_messages() for part in message.parts if part.part_kind == "thinking"
    ]
    assert thoughts == ["Rain or not?"]
    sent = provider.calls_for(name)[1].body["messages"]
    assert sent[0]["content"][1]["source"]["data"] == base64.b64encode(PNG).decode()
    assert sent[1]["content"][0] == {"type": "thinking", "thinking": "Rain or not?", "signature": "c2ln"}


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
